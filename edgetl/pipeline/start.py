"""New projects from examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from edgetl import tomlfile
from edgetl.data.examples.canvases import materialise_multilabel
from edgetl.data.examples.digits import materialise_digits
from edgetl.data.examples.faces import materialise_faces
from edgetl.data.examples.photos import materialise_photos
from edgetl.data.examples.tables import materialise_credit, materialise_lending
from edgetl.data.examples.texts import materialise_reviews
from edgetl.errors import UnknownNameError, UsageError
from edgetl.store import check_folder, storage_errors

_EXAMPLES: dict[str, Callable[[Path], Path]] = {
    "digits": materialise_digits,
    "multilabel": materialise_multilabel,
    "reviews": materialise_reviews,
    "credit": materialise_credit,
    "lending": materialise_lending,
}
"""With data out of Python packages."""
_EXAMPLES_OF_YOURS: dict[str, Callable[[Path, Path | None], Path]] = {
    "photos": materialise_photos,
    "faces": materialise_faces,
}
"""With data of the user, or downloaded."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """What was written."""

    config: Path
    data: Path


def examples() -> tuple[str, ...]:
    """Names of the examples."""
    return (*_EXAMPLES, *_EXAMPLES_OF_YOURS)


def init(folder: Path, example: str, source: Path | None = None) -> Started:
    """Write an example's data and its commented edgetl.toml into a folder.

    Args:
        folder: Made where it is not there.
        example: Of :func:`examples`.
        source: Of photos and faces: a folder with one sub-folder of images per class or person. None: download.

    Raises:
        UnknownNameError: There is no such example.
        UsageError: The folder has an edgetl.toml with other content, or the example takes no source.
        MissingExtraError: The package with the example's data is not installed.
        StorageError: The folder cannot be written.
    """
    if example not in examples():
        raise UnknownNameError(f"there is no example '{example}'; {tomlfile.did_you_mean(example, examples())}")
    if source is not None and example in _EXAMPLES:
        raise UsageError(
            f"the example '{example}' brings its own data", hint=f"--source is of {', '.join(_EXAMPLES_OF_YOURS)}"
        )
    text = (files("edgetl") / "data" / "projects" / f"{example}.toml").read_text(encoding="utf-8")
    path = folder / "edgetl.toml"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UsageError(f"{path} is there already, with other content", hint="edgetl init ANOTHER_FOLDER")
    check_folder(folder)
    with storage_errors(folder):
        if example in _EXAMPLES:
            data = _EXAMPLES[example](folder / "data")
        else:
            data = _EXAMPLES_OF_YOURS[example](folder / "data", source)
        path.write_text(text, encoding="utf-8")
    return Started(config=path, data=data)
