"""Scales that cannot be right: each is compared with the data that it stands for, or with what calibration recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends.inside import Quantizer, Restored

_WRONG = 1.5
"""Factor from which on a size is not a matter of rounding or of clipping."""
_ALIKE = 0.98
"""Least correlation of constants that are the same but for their size. Eight bits leave 0.999."""
_ALIKE_BIASES = 0.999
"""Of biases, integers of 32 bits or floats: corrected, three small ones are at 0.98 by chance once in fifty."""
_EXACT = 0.01
"""Share by which scales that should be equal may differ: they are float32, float16 at the least."""
_STEPS = 1.01
"""From a float value to the integer that stands for it: half a step where it was rounded, one where rounding was
learned."""
_ODD = 0.1
"""Share of the values of a channel that may be further away than that."""
_CUT_STEPS, _CUT = 4.0, 0.02
"""Share of the values that may be cut off by more than so many steps. A range of least squared error cuts off fewer:
each of them costs what finer steps save on two hundred others."""
_NEARLY = 0.05
"""Share by which sizes may be off that were estimated from rounded values."""
_NOTHING = 1e-30
_HALF = float(np.finfo(np.float16).max)
_EDGE = 126.5
"""Steps from which on an integer of eight bits is the last one: what lies beyond is cut off there."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What calibration recorded of an activation."""

    scale: float
    low: float | None = None
    """The least value of its range."""
    in_bias: bool = False
    """Whether what its zero point adds went into the biases behind it: it is then restored without one."""


def pair_causes(pairs: Sequence[Quantizer], recorded: Mapping[str, Chosen]) -> list[str]:
    """Activations whose scale or zero point is not the one of calibration, or whose two differ.

    Args:
        pairs: Of an engine's graph.
        recorded: Tensor → what calibration chose; without those that it does not tell of.

    Returns:
        A clause each.
    """
    said = []
    for pair in pairs:
        wanted = recorded.get(pair.tensor)
        none = [scale for scale in (pair.scale, pair.back) if not is_scale(scale)]
        if none:
            said.append(f"the tensor '{pair.tensor}' has the scale {none[0]:.4g}, which is none")
        elif abs(pair.back / pair.scale - 1.0) > _EXACT:
            said.append(
                f"the tensor '{pair.tensor}' is quantized with the scale {pair.scale:.4g} and restored with"
                f" {pair.back:.4g}, {_times(pair.back / pair.scale)} that"
            )
        elif wanted and abs(pair.scale / wanted.scale - 1.0) > _EXACT:
            said.append(
                f"the scale of the tensor '{pair.tensor}' is {_times(pair.scale / wanted.scale)} what calibration"
                f" chose: {pair.scale:.4g}, not {wanted.scale:.4g}"
            )
        else:
            said += _zero_point_causes(pair, wanted)
    return said


def is_scale(value: float) -> bool:
    """Whether a number can be a scale: finite, and above zero."""
    return 0.0 < value < math.inf


def _zero_point_causes(pair: Quantizer, wanted: Chosen | None) -> list[str]:
    """Whether the zero points of a pair whose scales are right are not."""
    said = []
    if wanted and wanted.low is not None and (higher := round((wanted.low - pair.low) / pair.scale)):
        said.append(
            f"the zero point of the tensor '{pair.tensor}' is {abs(higher)} {'above' if higher > 0 else 'below'} what"
            f" calibration chose: its range begins at {pair.low:.4g}, not at {wanted.low:.4g}"
        )
    # Restored without a zero point, it may be in the biases behind the pair; without a record nobody can tell.
    without = round(pair.low / pair.scale) + pair.shift == 0
    if pair.shift and not (without and (wanted is None or wanted.in_bias)):
        said.append(
            f"the tensor '{pair.tensor}' is quantized with one zero point and restored with another, {abs(pair.shift)}"
            f" {'below' if pair.shift > 0 else 'above'} it"
        )
    return said


def constant_cause(
    found: Restored, wanted: NDArray[np.floating], *, by_channel: bool = True, clips: bool = False
) -> str | None:
    """Whether weights or a bias are those of the float graph in another size: in all, or in some channels.

    Args:
        found: As the engine's graph restores them.
        wanted: The float graph's, of the same number of values.
        by_channel: Whether channels may be judged by themselves; not where a recipe moved their sizes on purpose.
        clips: Whether values may be cut off on purpose.

    Returns:
        A clause; None where their sizes are the same, or they are other values altogether.
    """
    mine, its = found.values, np.asarray(wanted, dtype=np.float64)
    if not np.isfinite(mine).all():
        return f"{found.what} are not finite numbers"
    if mine.shape != its.shape:
        its = its.T if its.ndim == 2 and its.T.shape == mine.shape else its.reshape(mine.shape)
    least = 0.0 if found.steps is None else found.steps
    if by_channel and not mine.any() and (np.abs(its) > least).any():
        return f"{found.what} are zero, and are not in the float graph"
    # Biases that are one number say nothing by their correlation: a correction of all channels by the same is like it.
    told = mine.ndim > 1 or np.ptp(its) > 0.0
    size = _size(its.ravel(), mine.ravel(), _ALIKE if mine.ndim > 1 else _ALIKE_BIASES) if told else None
    if size is not None and _is_wrong(size):
        return f"{found.what} are {_times(size)} those of the float graph: their scale is"
    return _channel_cause(found, its) or _value_cause(found, its, clips=clips) if by_channel else None


def _channel_cause(found: Restored, its: NDArray[np.float64]) -> str | None:
    """Whether some channels of a constant are the float graph's in another size."""
    mine = found.values
    if found.axis is None or mine.shape[found.axis] == mine.size:
        return None
    sizes = _sizes(mine, its, found.axis)
    wrong = {place: size for place, size in enumerate(sizes) if size is not None and _is_wrong(size)}
    if not wrong:
        return None
    if _in_another_order(found, sizes):
        return f"the scales of {found.what} stand in another order than its channels"
    first = next(iter(wrong))
    more = f", and those of {len(wrong) - 1} more channels are not in their size either" if len(wrong) > 1 else ""
    return f"{found.what} in channel {first} are {_times(wrong[first])} those of the float graph: its scale is{more}"


def _value_cause(found: Restored, its: NDArray[np.float64], *, clips: bool) -> str | None:
    """Whether a constant is not the float graph's, by more than rounding to its steps explains.

    Steps that are far too large for the values, as those that leave room for a large bias, explain much.
    """
    mine = found.values
    if found.steps is None or mine.ndim < 2:  # a bias may have been corrected
        return None
    edge = (np.abs(mine) >= _EDGE * found.steps) & (its * mine > 0) & (np.abs(its) > np.abs(mine))
    cut = edge & (np.abs(mine - its) > _CUT_STEPS * found.steps)
    if not clips and float(cut.mean()) > _CUT:
        return f"{found.what} are cut off in {cut.mean():.0%} of their values: their scale is too small"
    axis = found.axis or 0
    rows = _rows((np.abs(mine - its) > _STEPS * found.steps) & ~edge, axis)
    odd = np.flatnonzero((rows.mean(1) > _ODD) & (rows.sum(1) > 1))
    if not len(odd):
        return None
    sizes = _sizes(mine, its, axis)
    if _in_another_order(found, sizes):
        return f"the scales of {found.what} stand in another order than its channels"
    resized = [size for place in odd if (size := sizes[place]) is not None]
    if len(resized) == len(odd):
        low, high = min(resized), max(resized)
        span = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
        return f"{found.what} are {span} times those of the float graph in {_channels(odd, len(rows))}: the scales are"
    places = _places(_rows(mine, axis), _rows(its, axis))
    if places is not None:
        first = int(np.flatnonzero(places != np.arange(len(places)))[0])
        return (
            f"the channels of {found.what} stand in another order: what is channel {first} in the float graph is"
            f" channel {int(np.flatnonzero(places == first)[0])}"
        )
    return f"{found.what} are not those of the float graph in {_channels(odd, len(rows))}"


def _rows(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """A row for each channel."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _sizes(mine: NDArray[np.float64], its: NDArray[np.float64], axis: int) -> list[float | None]:
    """Of each channel, the size in the float graph's; None where it is not the same in another size."""
    return [_size(one, other) for one, other in zip(_rows(its, axis), _rows(mine, axis), strict=True)]


def _in_another_order(found: Restored, sizes: Sequence[float | None]) -> bool:
    """Whether the steps of channels are right but for their order, by the sizes that the channels have with them."""
    if found.steps is None or found.steps.size != len(sizes) or None in sizes:
        return False
    steps = found.steps.ravel()
    right = steps / np.asarray(sizes, dtype=np.float64)
    return bool(np.abs(np.sort(steps) / np.sort(right) - 1.0).max() < _NEARLY)


def _places(mine: NDArray[np.float64], its: NDArray[np.float64]) -> NDArray[np.intp] | None:
    """For each channel, which one of the float graph it is; None where that is not another one each, and clear."""
    if mine.shape[1] < 3:
        return None
    one, other = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _NOTHING) for rows in (mine, its))
    alike = one @ other.T
    places = alike.argmax(1)
    clear = len(set(places.tolist())) == len(places) and float(alike.max(1).min(initial=1.0)) >= _ALIKE
    return places if clear and (places != np.arange(len(places))).any() else None


def _channels(odd: NDArray[np.intp], count: int) -> str:
    """How many channels, and which where it is one."""
    return f"channel {int(odd[0])} of {count}" if len(odd) == 1 else f"{len(odd)} of {count} channels"


def overflow_cause(tensor: str, peak: float) -> str | None:
    """Whether the values of a tensor that is not finite in an engine are beyond what float16 can hold.

    Args:
        tensor: Its name.
        peak: Their largest size in the float graph.
    """
    return (
        f"the values of '{tensor}' reach {peak:.3g} in the float graph; float16 ends at 65504" if peak > _HALF else None
    )


def gain_cause(tensor: str, gain: float, alike: float = 1.0) -> str | None:
    """Whether the values of a tensor are those of the float graph in another size.

    Args:
        tensor: Its name.
        gain: Slope of its values over the float graph's.
        alike: Correlation of its values with the float graph's: of others no size is told.
    """
    told = alike >= _ALIKE and _is_wrong(gain)
    return f"the values of '{tensor}' are {_times(gain)} those of the float graph" if told else None


def _size(wanted: NDArray[np.float64], found: NDArray[np.float64], alike: float = _ALIKE) -> float | None:
    """Slope of values over others; None where they are not the same values in another size, by their correlation."""
    own, other = float(wanted @ wanted), float(found @ found)
    product = float(wanted @ found)
    if len(wanted) < 3 or own <= 0.0 or other <= 0.0 or product < alike * np.sqrt(own * other):
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
