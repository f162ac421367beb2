"""The exceptions of edgetl, and the exit code of each.

    EdgetlError                       1  an error that edgetl raised on purpose
    ├── UsageError                    2  the command line cannot be used as given
    │   ├── ConfigError               2  edgetl.toml, a target file or a recipe file is not valid
    │   └── UnknownNameError          2  no such target, recipe, example, backend, stage
    ├── DataError                     3  the data set cannot be used as it is
    │   ├── ImageError                3  one image cannot be decoded, or is too large
    │   ├── LeakError                 3  the same content stands in two splits
    │   └── TokenizerError            3  a tokenizer does not fit the network or the texts
    ├── ModelError                    2  weights or a model do not fit what was asked of them
    │   └── ExportError               1  the exported graph is not the PyTorch model
    ├── TrainingError                 1  a training cannot go on: it came to NaN, or memory ran out
    ├── ParityError                   4  no engine of a target was shown to be as good as the reference
    ├── BudgetError                   5  a latency budget was missed, or something is slower than it may be
    ├── MeasurementError              5  a measurement that cannot be finished, or cannot be believed
    ├── TargetError                   6  a target cannot run this model
    ├── BundleError                   7  a bundle is not what its manifest says
    └── SetupError                    8  something is missing on this machine
        ├── MissingExtraError         8  a Python package that belongs to an extra
        ├── ProviderError             8  an execution provider or device that is not there
        └── StorageError              8  a folder that cannot be written, a full disk

130 is an interruption by the user (KeyboardInterrupt); 143 and 129 are the end by SIGTERM and SIGHUP. Anything else
that escapes is a defect: exit code 1.
"""

from __future__ import annotations


class EdgetlError(Exception):
    """An error with a message for people: what was asked, what exists, what to type next.

    Args:
        message: What was asked for and what was found instead.
        hint: What to type or change next; printed on its own line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgetlError):
    """The command line cannot be used as given."""

    exit_code = 2


class ConfigError(UsageError):
    """A TOML file of the user's is not valid."""


class UnknownNameError(UsageError):
    """A name that nothing has: a target, a recipe, an example, a backend, a stage."""


class DataError(EdgetlError):
    """The data set cannot be used as it is."""

    exit_code = 3


class ImageError(DataError):
    """One image cannot be decoded, or is larger than the configured limit."""


class LeakError(DataError):
    """The same content stands in two splits."""


class TokenizerError(DataError):
    """A tokenizer makes numbers of texts that the network cannot take: it has more tokens than the network's
    vocabulary, or gives words the id of the padding."""


class ModelError(EdgetlError):
    """Weights or a model do not fit what was asked of them: shapes, names, a damaged file."""

    exit_code = 2


class ExportError(ModelError):
    """The exported graph does not compute what the PyTorch model computes."""

    exit_code = 1


class TrainingError(EdgetlError):
    """A training cannot go on: its loss or weights became NaN or infinite, a GPU's memory does not hold a step, or a
    process that reads samples died. What was kept before stays as it was."""

    exit_code = 1


class ParityError(EdgetlError):
    """An engine was not shown to be as good as the PyTorch reference."""

    exit_code = 4


class BudgetError(EdgetlError):
    """A latency budget was missed, or something is slower than it may be."""

    exit_code = 5


class MeasurementError(EdgetlError):
    """A measurement cannot be finished, or its result cannot be believed."""

    exit_code = 5


class TargetError(EdgetlError):
    """A target cannot run this model."""

    exit_code = 6


class BundleError(EdgetlError):
    """A bundle is not what its manifest says."""

    exit_code = 7


class SetupError(EdgetlError):
    """Something is missing on this machine."""

    exit_code = 8


class MissingExtraError(SetupError):
    """A Python package that belongs to an extra of edgetl is not installed.

    Args:
        package: The import name that was not found.
        extra: The extra that installs it.
        needed_for: What was being done, for the message.
    """

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the Python package '{package}', which is not installed",
            hint=f"pip install 'edgetl[{extra}]'",
        )


def not_imported(error: ImportError, package: str, *, extra: str, needed_for: str) -> SetupError:
    """What to raise for a package that cannot be imported: it is not installed, or a library that it needs is not.

    Args:
        error: What importing it raised.
        package: The import name.
        extra: The extra that installs it.
        needed_for: What was being done, for the message.
    """
    if isinstance(error, ModuleNotFoundError):
        return MissingExtraError(package, extra=extra, needed_for=needed_for)
    return SetupError(
        f"{needed_for} needs the Python package '{package}', which is installed and cannot be loaded: {error}",
        hint=f"install what it says is missing; python -c 'import {package}' shows more",
    )


class ProviderError(SetupError):
    """An execution provider or device that was asked for is not there."""


class StorageError(SetupError):
    """A folder cannot be written, or the disk is full."""
