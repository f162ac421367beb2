"""The Hugging Face hub: whether it answers, and what its client's errors mean."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from http.client import HTTPException
from pickle import UnpicklingError
from urllib import error as url_error
from urllib import request

from edgetl.errors import ModelError

_TIMEOUT_S = 10.0


def ask_hub(repository: str, files: Sequence[str]) -> None:
    """See at once whether the hub answers: its client tries an unreachable host for three quarters of a minute.

    Args:
        repository: owner/name.
        files: Where one of them is in the cache, or the client is told to stay offline, nothing is asked.

    Raises:
        OSError: It does not answer.
    """
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    cached = any(isinstance(try_to_load_from_cache(repository, name), str) for name in files)
    if cached or constants.HF_HUB_OFFLINE:
        return
    question = request.Request(hf_hub_url(repository, files[0]), method="HEAD")
    # An HTTP status is an answer. What it means, the client knows better.
    with contextlib.suppress(url_error.HTTPError), request.urlopen(question, timeout=_TIMEOUT_S):
        pass


def failures() -> tuple[type[Exception], ...]:
    """What a download or a damaged cache can raise."""
    # The hub's HTTP client, whichever its version uses, has errors that are no OSError.
    clients = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    own = [client.HTTPError for client in clients if client is not None]
    return (OSError, RuntimeError, ValueError, EOFError, HTTPException, UnpicklingError, *own)


def not_there(error: Exception, repository: str, file: str) -> ModelError | None:
    """The error to raise where the hub answered that it has no such thing; None where it is another failure.

    Args:
        error: One of :func:`failures`.
        repository: owner/name that was asked for.
        file: Of the repository, in words for people.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):  # one that may not be read is answered for in the same way
        return ModelError(
            f"the hub has no repository {repository}, or none that this machine may read",
            hint="correct model.backbone in edgetl.toml; a private or gated repository needs `hf auth login`",
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return ModelError(
            f"{repository} has no {file} on the hub", hint="model.weights and model.backbone in edgetl.toml"
        )
    return None
