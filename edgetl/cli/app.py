"""The command line: one file per verb, and one place where exceptions become exit codes."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from edgetl import __version__
from edgetl.cli import bench, build, doctor, init, inspect, quantize, run_, targets, verify
from edgetl.cli.terminal import print_error
from edgetl.errors import EdgetlError

app = typer.Typer(
    name="edgetl",
    help="Fine-tune, export, quantize, prove and ship models to edge devices.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (init, build, quantize, bench, verify, run_, inspect, targets, doctor):
    module.register(app)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"edgetl {__version__}\n")
        raise typer.Exit


@app.callback()
def _edgetl(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune, export, quantize, prove and ship models to edge devices."""


def run(arguments: list[str]) -> int:
    """Run a command line.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code; see :mod:`edgetl.errors`.
    """
    from click import ClickException
    from click.exceptions import Abort, Exit

    as_json = "--json" in arguments
    try:
        result = app(args=arguments, standalone_mode=False, prog_name="edgetl")
    except EdgetlError as error:
        print_error(error, as_json=as_json)
        return error.exit_code
    except Exit as stop:
        return stop.exit_code
    except ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, Abort):
        sys.stderr.write("\ninterrupted; what was finished is kept\n")
        return 130
    except BrokenPipeError:
        return 0
    except Exception:  # noqa: BLE001 - the last line of defence: a defect, with everything needed to report it
        traceback.print_exc()
        sys.stderr.write(f"\nThis is a defect in edgetl {__version__}. Please report it with the lines above.\n")
        return 1
    return result if isinstance(result, int) else 0
