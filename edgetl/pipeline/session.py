"""What every stage of a build is given: the configuration, the store, and somebody to tell."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgetl.config import Config
from edgetl.store import Artifact, Store, digest_of

_interrupted = threading.Event()
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_POLL_S = 0.2
"""Between two looks for what another process makes."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Remember Ctrl-C for as long as this is open, and other signals whose handlers raise KeyboardInterrupt.

    The exception may come up in a library's callback or destructor, which swallows it; then the next progress or stage
    raises it again. Handlers do what they did; nothing changes outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}

    def remember(number: int, frame: Any) -> None:
        try:
            handlers[number](number, frame)
        except KeyboardInterrupt:
            _interrupted.set()
            raise

    for number in handlers:
        signal.signal(number, remember)
    try:
        yield
        _check_interruption()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _interrupted.clear()


def _check_interruption() -> None:
    if _interrupted.is_set():
        raise KeyboardInterrupt


def rank() -> int:
    """Number of this process among those that train together; 0 for the first, or the only one."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Reporter(Protocol):
    """Somebody who is told how a build goes: a terminal, a log, nobody."""

    def started(self, stage: str, what: str) -> None:
        """A stage begins to make something."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Part of a stage is done."""

    def finished(self, stage: str, what: str, *, cached: bool, seconds: float) -> None:
        """A stage has its result."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """Tells nobody."""

    def started(self, stage: str, what: str) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def finished(self, stage: str, what: str, *, cached: bool, seconds: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class WouldRun(Exception):  # noqa: N818 - not an error: how a dry run ends
    """A dry run came to the first stage that has no result yet."""

    def __init__(self, stage: str, what: str) -> None:
        super().__init__(stage)
        self.stage = stage
        self.what = what


@dataclass(frozen=True, kw_only=True)
class Session:
    """One build."""

    config: Config
    store: Store
    reporter: Reporter = field(default_factory=Silent)
    force: frozenset[str] = frozenset()
    """Stages that are made even where their results are there."""
    dry_run: bool = False
    """Make nothing: stop with :class:`WouldRun` at the first stage without a result."""
    config_file: Path | None = None
    """Where the configuration was read from, for reports; None where it did not come from a file."""

    def config_digest(self, *sections: str) -> str:
        """SHA-256 of sections of the configuration; of all of it without any."""
        document = self.config.model_dump(mode="json", by_alias=True)
        return digest_of({name: document[name] for name in sections} if sections else document)

    def progress(self, what: str, done: int, total: int) -> None:
        """Part of a stage is done; see :meth:`Reporter.progress`.

        Raises:
            KeyboardInterrupt: There was one, and a library swallowed it.
        """
        _check_interruption()
        self.reporter.progress(what, done, total)

    def stage(
        self,
        stage: str,
        what: str,
        inputs: dict[str, Any],
        make: Callable[[Path], None],
        *,
        everywhere: bool = False,
        within: tuple[str, ...] = (),
    ) -> Artifact:
        """The result of a stage, with word to the reporter.

        Of several processes (torchrun, accelerate launch) the first makes it, and the others wait until it is there.

        Args:
            stage: Its name in the store.
            what: For people.
            inputs: All that can change the result.
            make: Fills a folder with it.
            everywhere: All processes make it together; the first one's is kept.
            within: Stages that are made only while this one is: where one of them is forced, so is this one.
        """
        _check_interruption()
        began = time.perf_counter()
        forced = not self.force.isdisjoint({stage, *within})
        found = None if forced else self.store.find(stage, digest_of(inputs))
        if found is None:
            if self.dry_run:
                raise WouldRun(stage, what)
            self.reporter.started(stage, what)
            if not rank():
                found = self.store.get(stage, inputs, make, force=forced)
            else:
                found = self._elsewhere(stage, inputs, make if everywhere else None)
        self.reporter.finished(stage, what, cached=found.cached, seconds=time.perf_counter() - began)
        return found

    def _elsewhere(self, stage: str, inputs: dict[str, Any], make: Callable[[Path], None] | None) -> Artifact:
        """A result that the first process keeps; what this one makes of it is thrown away."""
        if make is not None:
            with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
                make(Path(folder))
        key = digest_of(inputs)
        while (found := self.store.find(stage, key)) is None:
            _check_interruption()
            time.sleep(_POLL_S)  # should the first process fail, the launcher ends the others
        return found
