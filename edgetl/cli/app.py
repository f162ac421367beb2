"""The command line: one file per verb, and one place where exceptions become exit codes."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from typing import Annotated, Any

import typer

from edgetl import __version__
from edgetl.cli import bench, build, calibrate, doctor, init, inspect, quantize, report, run_, targets, train, verify
from edgetl.cli.ending import Ending, heeded
from edgetl.cli.strict import StrictCommand
from edgetl.cli.terminal import print_error, print_json_error
from edgetl.errors import EdgetlError, MissingExtraError, SetupError, StorageError, UsageError

_INTERRUPTED = 130
_OF_THE_SYSTEM = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE, errno.EMFILE}
)
"""Errors that a file or folder of the user's makes, wherever it is read."""

app = typer.Typer(
    name="edgetl",
    help="Fine-tune, export, quantize, prove and ship models to edge devices.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# ClickException, by way of typer: newer ones bring their own copy of click, older ones import the package.
_CommandLineError: Any = typer.BadParameter.__mro__[2]

for module in (init, build, train, calibrate, quantize, bench, verify, report, run_, inspect, targets, doctor):
    module.register(app)
for command in app.registered_commands:
    command.cls = StrictCommand


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
    with heeded() as ending:
        code = _run(arguments, ending)
        if code == _INTERRUPTED:
            sys.stderr.write(f"\n{ending.words}; what was finished is kept\n")
            return ending.exit_code
    return code


def _run(arguments: list[str], ending: Ending) -> int:
    as_json = "--json" in arguments
    if os.environ.get("RANK", "0") != "0":  # of several processes that train together, the first one speaks
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - open until the process ends
    try:
        try:
            result = app(args=arguments, standalone_mode=False, prog_name="edgetl")
        except Exception:
            if ending.came:  # to all processes of a terminal or service: whatever the end of the others came to here
                return _INTERRUPTED
            raise
    except EdgetlError as error:
        print_error(error, as_json=as_json)
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except _CommandLineError as error:
        error.show()
        if as_json:
            print_json_error(UsageError(error.format_message()))
        return UsageError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except ModuleNotFoundError as error:
        extra = _extra_of(error.name or "")
        if extra is None:
            return _defect()
        missing = MissingExtraError(error.name or "", extra=extra, needed_for=f"edgetl {arguments[0]}")
        print_error(missing, as_json=as_json)
        return missing.exit_code
    except MemoryError as error:
        said = f": {error}" if str(error) else ""  # Python's own says nothing
        found = SetupError(f"not enough memory{said}", hint="a smaller batch, image size or number of threads")
        print_error(found, as_json=as_json)
        return found.exit_code
    except BrokenPipeError:
        return EdgetlError.exit_code  # nobody reads on: whatever was to be decided may not have been
    except OSError as error:
        refused = _refused(error)
        if refused is None:
            return _defect()
        print_error(refused, as_json=as_json)
        return refused.exit_code
    except Exception:  # noqa: BLE001 - the last line of defence: a defect, with everything needed to report it
        return _defect()
    return result if isinstance(result, int) else 0  # newer versions of typer turn Ctrl-C into a code themselves


def _refused(error: OSError) -> SetupError | None:
    """What the system refused, where that is no defect of edgetl's; None where it may be."""
    if error.errno == errno.ENOENT and "usable temporary directory" in str(error):  # tempfile's words
        return StorageError(
            f"temporary files can be written nowhere: {error.strerror}",
            hint="make room, or TMPDIR=FOLDER, one that can be written",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"the disk is full: {error}",
            hint=f"make room; temporary files are in {tempfile.gettempdir()}, or where TMPDIR says",
        )
    if error.errno in _OF_THE_SYSTEM:
        place = f": {error.filename}" if error.filename is not None else ""
        return SetupError(f"the system refuses: {error.strerror or error}{place}")
    return None


def _defect() -> int:
    """Report the exception that is being handled as one that should not have come here."""
    traceback.print_exc()
    sys.stderr.write(f"\nThis is a defect in edgetl {__version__}. Please report it with the lines above.\n")
    return EdgetlError.exit_code


def _extra_of(module: str) -> str | None:
    """The extra that installs a module; None for one that none does."""
    from edgetl.pipeline.describe import EXTRAS

    package = module.partition(".")[0].replace("_", "-")
    return next((extra for extra, packages in EXTRAS.items() if package in packages), None)
