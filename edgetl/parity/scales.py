"""Scales that cannot be right: each is compared with the data that it stands for, or with what calibration recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WRONG = 1.5
"""Factor from which on a size is not a matter of rounding or of clipping."""
_ALIKE = 0.98
"""Least correlation of constants that are the same but for their size. Eight bits leave 0.999."""
_EXACT = 0.01
"""Share by which scales that should be equal may differ: they are float32, float16 at the least."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """How an activation is quantized."""

    tensor: str
    """What is quantized, by its name in the float graph."""
    scale: float
    """With which it is."""
    back: float
    """With which the integers become real values again."""


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Weights or a bias, as an engine's graph restores them."""

    what: str
    """As "the weights of 'stem'"."""
    values: NDArray[np.float64]
    axis: int | None
    """Of the channels that have a scale each; None: there is one scale."""


def pair_causes(pairs: Sequence[Pair], recorded: Mapping[str, float]) -> list[str]:
    """Activations whose scale is not the one of calibration, or whose two scales differ.

    Args:
        pairs: Of an engine's graph.
        recorded: Tensor → scale that calibration chose; without those that it does not tell of.

    Returns:
        A clause each.
    """
    said = []
    for pair in pairs:
        wanted = recorded.get(pair.tensor)
        if abs(pair.back / pair.scale - 1.0) > _EXACT:
            said.append(
                f"the tensor '{pair.tensor}' is quantized with the scale {pair.scale:.4g} and restored with"
                f" {pair.back:.4g}, {_times(pair.back / pair.scale)} that"
            )
        elif wanted and abs(pair.scale / wanted - 1.0) > _EXACT:
            said.append(
                f"the scale of the tensor '{pair.tensor}' is {_times(pair.scale / wanted)} what calibration chose:"
                f" {pair.scale:.4g}, not {wanted:.4g}"
            )
    return said


def constant_cause(found: Constant, wanted: NDArray[np.floating], *, by_channel: bool = True) -> str | None:
    """Whether weights or a bias are those of the float graph in another size: in all, or in some channels.

    Args:
        found: As the engine's graph restores them.
        wanted: The float graph's, of the same number of values.
        by_channel: Whether channels may be judged by themselves; not where a recipe moved their sizes on purpose.

    Returns:
        A clause; None where their sizes are the same, or they are other values altogether.
    """
    mine, its = found.values, np.asarray(wanted, dtype=np.float64)
    if mine.shape != its.shape:
        its = its.T if its.ndim == 2 and its.T.shape == mine.shape else its.reshape(mine.shape)
    size = _size(its.ravel(), mine.ravel())
    if size is not None and _is_wrong(size):
        return f"{found.what} are {_times(size)} those of the float graph: their scale is"
    if not by_channel or found.axis is None or mine.shape[found.axis] == mine.size:
        return None
    rows = [np.moveaxis(array, found.axis, 0).reshape(mine.shape[found.axis], -1) for array in (its, mine)]
    sizes = {place: _size(one, other) for place, (one, other) in enumerate(zip(*rows, strict=True))}
    wrong = {place: size for place, size in sizes.items() if size is not None and _is_wrong(size)}
    if not wrong:
        return None
    first = next(iter(wrong))
    more = f", and those of {len(wrong) - 1} more channels are not in their size either" if len(wrong) > 1 else ""
    return f"{found.what} in channel {first} are {_times(wrong[first])} those of the float graph: its scale is{more}"


def gain_cause(tensor: str, gain: float) -> str | None:
    """Whether the values of a tensor are those of the float graph in another size.

    Args:
        tensor: Its name.
        gain: Slope of its values over the float graph's.
    """
    return f"the values of '{tensor}' are {_times(gain)} those of the float graph" if _is_wrong(gain) else None


def _size(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float | None:
    """Slope of values over others; None where they are not the same values in another size."""
    own, other = float(wanted @ wanted), float(found @ found)
    product = float(wanted @ found)
    if len(wanted) < 3 or own <= 0.0 or other <= 0.0 or product < _ALIKE * np.sqrt(own * other):
        return None
    return product / own


def _is_wrong(size: float) -> bool:
    return not 1.0 / _WRONG < size < _WRONG


def _times(factor: float) -> str:
    """As people say it."""
    for value, word in ((2.0, "twice"), (0.5, "half"), (1.0, "once")):
        if abs(factor / value - 1.0) <= 0.03:
            return word
    return f"{factor:.2f} times"
