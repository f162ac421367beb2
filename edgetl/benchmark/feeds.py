"""What is fed to an engine that is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetl.runtime.runner import TensorSpec

    Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Feeds:
    """How inputs are made. Plain values, so that they can be sent to another process."""

    batch_size: int = 1
    """For dynamic leading dimensions."""
    size: int | None = None
    """For every other dynamic dimension: height and width, or the length of a sequence."""
    file: Path | None = None
    """An .npy file with the batch for the one input, or an .npz file with an array by the name of each; None: random
    numbers, zeros for integers."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; the inverse of :meth:`from_json`."""
        return {"batch_size": self.batch_size, "size": self.size, "file": str(self.file) if self.file else None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Feeds:
        """From :meth:`to_json`."""
        return cls(**{**values, "file": Path(values["file"]) if values["file"] else None})


def make_feeds(feeds: Feeds, inputs: Sequence[TensorSpec], name: str) -> Arrays:
    """The arrays that an engine is fed with.

    Args:
        feeds: How to make them.
        inputs: Of the engine.
        name: Of the engine, for messages.

    Returns:
        Input name → array of its shape and dtype, the same for the same arguments.

    Raises:
        UsageError: A dynamic dimension has no size, an input takes no numbers, or a file is to feed several inputs.
    """
    import numpy as np

    if feeds.file is not None and feeds.file.suffix == ".npz":
        with np.load(feeds.file, allow_pickle=False) as arrays:
            return {each: arrays[each] for each in arrays.files}
    if feeds.file is not None:
        if len(inputs) != 1:
            raise UsageError(f"one array cannot feed the {len(inputs)} inputs of {name}")
        return {inputs[0].name: np.load(feeds.file, allow_pickle=False)}
    generator = np.random.default_rng(0)
    made: Arrays = {}
    for spec in inputs:
        shape = _shape(feeds, spec, name)
        try:
            dtype = np.dtype(spec.dtype)
        except TypeError:  # strings, as ONNX Runtime calls them
            raise UsageError(
                f"the input '{spec.name}' of {name} takes {spec.dtype}, and only numbers can be made up",
                hint="time the graph behind it, whose inputs are numbers",
            ) from None
        values = generator.normal(size=shape) if dtype.kind == "f" else np.zeros(shape)
        made[spec.name] = values.astype(dtype)
    return made


def other_feeds(arrays: Arrays) -> Arrays:
    """Arrays of the same shapes, dtypes and, for integers, values, on which an engine should answer something else.

    Floats are mirrored; integers, which may name tokens, change places along the last axis, or are all 1 where every
    value is the same.
    """
    import numpy as np

    made: Arrays = {}
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            made[name] = (1 - 2 * array).astype(array.dtype)
        elif array.size and (array == array.flat[0]).all():
            made[name] = np.ones_like(array)
        else:
            made[name] = np.roll(array, 1, axis=-1)
    return made


def described(arrays: Arrays) -> tuple[str, ...]:
    """As "input float32[1, 3, 224, 224]"."""
    return tuple(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())


def _shape(feeds: Feeds, spec: TensorSpec, name: str) -> list[int]:
    shape = []
    for axis, length in enumerate(spec.shape):
        chosen = length if isinstance(length, int) else (feeds.batch_size if axis == 0 else feeds.size)
        if chosen is None:  # a model timed at some length of our choosing would be another model
            raise UsageError(
                f"the input '{spec.name}' of {name} has the dynamic dimension '{length}'", hint="--size 224"
            )
        shape.append(chosen)
    return shape
