"""edgetl doctor: what is on this machine, and what is missing."""

from __future__ import annotations

import typer

from edgetl.cli.options import Json
from edgetl.cli.terminal import print_json, print_text


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
    print_text(f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB")
    print_text("GPU: " + (", ".join(found["gpu"]) or "none that nvidia-smi knows"))
    print_text("\nextras:")
    for extra, packages in found["extras"].items():
        missing = [name for name, version in packages.items() if version is None]
        state = "installed" if not missing else f"missing {', '.join(missing)}: pip install 'edgetl[{extra}]'"
        print_text(f"  {extra.ljust(13)} {state}")
    print_text("\ntargets:")
    for name, reason in found["targets"].items():
        print_text(f"  {name.ljust(18)} {'runs here' if reason is None else reason}")
