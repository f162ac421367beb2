"""edgetl doctor: what is on this machine, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer

from edgetl.cli.options import Json
from edgetl.cli.terminal import print_json, print_text
from edgetl.numbers import counted

_INSTEAD = {"ort": ("ort-gpu", "onnxruntime"), "ort-gpu": ("ort", "onnxruntime-gpu")}
"""Of these extras there can be one. Each: the other, and its own package; both are builds of one library."""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="doctor", help="What is on this machine: libraries, GPU, and which targets run here.")(_doctor)


def _doctor(json: Json = False) -> None:
    from edgetl.pipeline.describe import describe_machine

    found = describe_machine()
    if json:
        print_json("doctor", found)
        return
    print_text(f"edgetl {found['edgetl']}, Python {found['python']}, {found['system']}")
    print_text(f"{found['cpu']}, {counted(found['cores'], 'core')}, {found['memory_gib']} GiB")
    print_text("GPU: " + (", ".join(found["gpu"]) or "none that nvidia-smi knows"))
    print_text("\nextras:")
    missing = {
        extra: [name for name, version in packages.items() if version is None]
        for extra, packages in found["extras"].items()
    }
    _list({extra: _state(extra, missing) for extra in missing})
    print_text("\ntargets:")
    _list({name: "runs here" if reason is None else reason for name, reason in found["targets"].items()})


def _state(extra: str, missing: Mapping[str, Sequence[str]]) -> str:
    """Whether an extra is there, and else what installs it."""
    if not missing[extra]:
        return "installed"
    other = _INSTEAD[extra][0] if extra in _INSTEAD else None
    if other is not None and not missing[other]:
        return (
            f"{other} is installed, and never both are; to change: pip uninstall {_INSTEAD[other][1]}, then"
            f" pip install 'edgetl[{extra}]'"
        )
    return f"missing {', '.join(missing[extra])}: pip install 'edgetl[{extra}]'"


def _list(found: Mapping[str, str]) -> None:
    widest = max(map(len, found), default=0)
    for name, text in found.items():
        print_text(f"  {name.ljust(widest)} {text}")
