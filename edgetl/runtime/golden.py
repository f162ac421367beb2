"""Golden inputs: raw inputs in a bundle, with the tensors that were made of them and what PyTorch said."""

from __future__ import annotations

import zlib
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BundleError
from edgetl.runtime.preprocessing import Array

ARRAYS = "golden/golden.npz"


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Raw inputs that every engine of a bundle can be tried with."""

    sources: tuple[Path, ...]
    inputs: Array
    """What the preprocessing made of them, as one batch."""
    outputs: NDArray[np.float32]
    """The reference's, (n, k)."""
    classes: tuple[str, ...] | None = None
    """Names of the outputs in their order, where the bundle was built; None where it does not say."""


def read_golden(folder: Path, files: Container[str]) -> Golden:
    """Read what :data:`ARRAYS` holds.

    Args:
        folder: Of the bundle.
        files: That were checked, as the manifest names them.

    Raises:
        BundleError: There are no golden inputs, or they are not what a build writes.
    """
    if ARRAYS not in files:
        raise BundleError(
            f"{folder} has no golden inputs to replay",
            hint="build the bundle again; open_bundle(…, replay=False) and edgetl run --no-replay do without",
        )
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            names, inputs, outputs = arrays["names"].tolist(), arrays["inputs"], arrays["outputs"]
            classes = tuple(arrays["classes"].tolist()) if "classes" in arrays else None
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise BundleError(f"{folder / ARRAYS} cannot be read: {error!r}", hint="build the bundle again") from None
    wrong = _wrong(folder, names, inputs, outputs)
    if wrong:
        raise BundleError(f"{folder / ARRAYS}: {wrong}", hint="build the bundle again")
    return Golden(
        sources=tuple(folder / "golden" / name for name in names), inputs=inputs, outputs=outputs, classes=classes
    )


def _wrong(folder: Path, names: list[str], inputs: Array, outputs: NDArray[np.float32]) -> str:
    """What is wrong with golden inputs; empty where nothing is."""
    if not isinstance(names, list) or not names:
        return "there is no golden input"
    if not all(isinstance(name, str) for name in names):
        return "the names of golden inputs are no names"
    for name in names:  # whatever lies in the folder was checked; nothing outside is read
        if PurePosixPath(name).name != name or not (folder / "golden" / name).is_file():
            return f"there is no golden input {name}"
    if outputs.ndim != 2 or not inputs.ndim or len(inputs) != len(names) or len(outputs) != len(names):
        return f"{len(names)} names, inputs {list(inputs.shape)} and outputs {list(outputs.shape)} do not fit together"
    if inputs.dtype.kind not in "fiu":
        return f"its inputs are {inputs.dtype.name}, and no numbers"
    if outputs.dtype != np.float32:
        return f"its outputs are {outputs.dtype}, and those of a build are float32"
    for what, array in (("inputs", inputs), ("outputs", outputs)):
        wrong = int((~np.isfinite(array).reshape(len(names), -1).all(1)).sum())
        if wrong:
            return f"its {what} are not finite numbers for {wrong} of {len(names)} golden inputs"
    return ""
