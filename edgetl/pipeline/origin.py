"""Where a build comes from: its configuration's place in the repository, the lines of its keys, its data's name."""

from __future__ import annotations

from pathlib import Path

from edgetl.config import Config
from edgetl.pipeline.session import Session
from edgetl.report import model
from edgetl.tomlfile import lines_of

_KEYS = (
    "project", "data", "data.slices", "parity", "parity.max_drop", "parity.require", "parity.undecided", "quantize",
    "quantize.recipe", "bench", "bench.unstable", "target",
    "parity.tolerances.fp32", "parity.tolerances.fp16", "parity.tolerances.bf16", "parity.tolerances.int8",
)  # fmt: skip
"""Of the project, that findings point at: see :mod:`edgetl.report.findings`."""
_OF_TARGETS = ("target", "target.device", "target.precisions", "target.budget")


def config_name(path: Path | None) -> str:
    """The configuration's path in its git repository, with "/"; its bare name outside of one; empty for None."""
    if path is None:
        return ""
    place = path.resolve()
    root = next((folder for folder in place.parents if (folder / ".git").exists()), place.parent)
    return place.relative_to(root).as_posix()


def settings(session: Session) -> tuple[model.Setting, ...]:
    """The lines of the keys that decide about gates; none where the configuration did not come from a file."""
    path, entries = session.config_file, session.config.target
    if path is None:
        return ()
    wanted: list[tuple[str, str, list[str | int]]] = [(key, "", list(key.split("."))) for key in _KEYS]
    for index, entry in enumerate(entries):
        for key in _OF_TARGETS:
            wanted.append((key, _target_name(entry.device), ["target", index, *key.split(".")[1:]]))
    lines = lines_of(path, [parts for *_, parts in wanted])
    return tuple(
        model.Setting(key=key, target=target, line=line)
        for (key, target, _), line in zip(wanted, lines, strict=True)
        if line is not None
    )


def dataset_name(session: Session) -> str:
    """What the model learned from, by name: no path of the machine, but one relative to the configuration."""
    data = session.config.data
    if data.hub:
        return data.hub
    path = data.manifest or data.train
    if path is None:
        return ""
    if session.config_file is not None:
        folder = session.config_file.resolve().parent
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name


def hub_id(config: Config) -> str:
    """The data set's id on the Hugging Face hub; empty where it is not from there."""
    return (config.data.hub or "").partition("@")[0].partition(":")[0]


def _target_name(device: str) -> str:
    """A file's stem is its target's name, as :mod:`edgetl.catalog` has it."""
    return Path(device).stem if device.endswith(".toml") else device
