"""Why answers differ: classes in another order, a function too many or too few, a batch or a length that matters.

Each of these is a defect that looks like a bad network. What is compared here are the outputs that a bundle recorded
where it was built with those that this machine makes of the same raw inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgetl.parity.numeric import MOST_DB, Explained, sqnr_db

_CLEARER = 20.0
"""dB by which another form of the outputs must fit better, before it is named."""
_MOVES = 1e-4
"""Of the reference's range over some inputs: outputs that move by less do not depend on them."""
_LESS = 10.0
"""dB by which the movement of each output may be less alike than the outputs."""
_SIMPLER = 3.0
"""dB by which a function must explain outputs better than a factor does, and a factor and a summand better than it."""
_FEWEST = 6
"""Numbers through which a line is laid: through two there always is one."""
_CLEARER_ORDER, _SAME_ORDER = 10.0, 15.0
"""dB by which another order must fit better, and dB that it must fit at least: of eight samples a thousand columns of
noise are matched at some 5 dB. An engine in eight bits may be 18 dB nearer in the right order, and no more."""
_FAITHFUL = 60.0
"""dB: an engine that is nearer to the reference than this is measured as if it were no nearer."""
_DEPENDS = 15.0
"""dB by which single answers and those of a batch, or of filled-up inputs, may lie further apart than single answers
and the reference's. Dynamic quantization takes its ranges from the batch: MiniLM in int8-dynamic, 27 dB from the
reference, differs from itself by 22 to 32 dB in batches of eight; float and statically quantized engines differ by
rounding alone."""
_MOST_CLASSES = 4096
"""Whose order is looked for: every pair of two outputs is compared."""


def output_cause(reference: NDArray[np.floating], outputs: NDArray[np.floating]) -> Explained | None:
    """Whether an engine's outputs are the reference's behind one more function, or those behind it the reference's.

    Args:
        reference: (n, k), finite.
        outputs: Of the same shape.

    Returns:
        None where no function that is tried explains the outputs.
    """
    if not np.isfinite(outputs).all():
        return None
    mine, its = reference.astype(np.float64), outputs.astype(np.float64)
    if 0.0 < float(np.ptp(mine, axis=0).max()) * _MOVES >= float(np.ptp(its, axis=0).max()):
        return Explained(said="its outputs are the same whatever its input is", db=MOST_DB)
    line, line_db = _line(mine, its)
    tried = (
        [(line_db + (-_SIMPLER if " and " in line else _SIMPLER), f"its outputs are PyTorch's {line}")] if line else []
    )
    for said, function in _FUNCTIONS.items():
        tried.append((_alike_db(its, function(mine)), f"its outputs are PyTorch's {said}"))
        tried.append((_alike_db(mine, function(its)), f"PyTorch's outputs are its {said}"))
    best, said = max(tried)
    return Explained(said=said, db=best) if best >= max(sqnr_db(mine, its), 0.0) + _CLEARER else None


def _line(mine: NDArray[np.float64], its: NDArray[np.float64]) -> tuple[str, float]:
    """By what an engine's outputs are multiplied and what is added, in words (or nothing), and how well that fits."""
    if mine.size < _FEWEST or not np.ptp(mine):
        return "", 0.0
    centred = mine - mine.mean()
    factor = float((centred * its).sum()) / max(float(np.square(centred).sum()), np.finfo(np.float64).tiny)
    added = float(its.mean() - factor * mine.mean())
    spoken = [f"times {factor:.3g}"] if abs(factor - 1.0) > 0.02 else []
    if abs(added) > 0.02 * float(np.abs(its).max()):
        spoken.append(f"{'plus' if added > 0 else 'less'} {abs(added):.3g}")
    return " and ".join(spoken), _alike_db(its, factor * mine + added)


def _alike_db(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """SQNR of what outputs have besides their mean, which says nothing of the inputs.

    Nor does the mean of each output: without that they must be alike, too, but less so, as there is less of them.
    """
    whole = sqnr_db(wanted - wanted.mean(), found - wanted.mean())
    return min(whole, sqnr_db(wanted - wanted.mean(0), found - found.mean(0)) + _LESS)


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(values - values.max(1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return found


_FUNCTIONS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = MappingProxyType({
    "behind a softmax": _softmax,
    "behind the logarithm of a softmax": lambda values: np.log(np.maximum(_softmax(values), 1e-300)),
    "behind a sigmoid": lambda values: 1.0 / (1.0 + np.exp(-np.clip(values, -700.0, 700.0))),
    "behind a ReLU": lambda values: np.maximum(values, 0.0),
    "scaled to length 1": lambda values: values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-300),
})  # fmt: skip
"""What is put behind a network, or left out, without any answer of its changing."""


def order_cause(reference: NDArray[np.floating], outputs: NDArray[np.floating], classes: Sequence[str]) -> str | None:
    """Whether outputs are the reference's in another order.

    Args:
        reference: (n, k), finite.
        outputs: Of the same shape.
        classes: k names.

    Returns:
        A clause; None where the order is the same, or no order explains the outputs.
    """
    count = reference.shape[1]
    if not np.isfinite(outputs).all() or not 2 <= count <= _MOST_CLASSES:
        return None
    mine, its = reference.astype(np.float64), outputs.astype(np.float64)
    distances = np.square(mine).sum(0)[:, None] + np.square(its).sum(0)[None, :] - 2.0 * mine.T @ its
    order = _assigned(distances)
    if order == list(range(count)) or len(set(order)) < count:
        return None
    if sqnr_db(reference, outputs[:, order]) < max(sqnr_db(reference, outputs) + _CLEARER_ORDER, _SAME_ORDER):
        return None
    moved = [place for place in range(count) if order[place] != place]
    first = moved[0]
    return (
        f"its outputs stand in another order: what should be '{classes[first]}' (output {first}) is output"
        f" {order[first]}; {len(moved)} of {count} are elsewhere"
    )


def batch_cause(
    reference: NDArray[np.floating], single: NDArray[np.floating], together: NDArray[np.floating]
) -> str | None:
    """Whether an answer depends on what else is in the batch, by more than the engine's precision explains.

    Args:
        reference: The reference's outputs, (n, k): how far the engine is from them is its precision.
        single: The engine's, of samples one at a time.
        together: Of the same samples in one batch.

    Returns:
        A clause; None where they are the same but for rounding.
    """
    db = _apart(reference, single, together)
    if db is None:
        return None
    return (
        f"its answers depend on what else is in a batch: {len(single)} samples at once and one at a time differ"
        f" (SQNR {db:.1f} dB), most sample {_worst(single, together)}"
    )


def length_cause(
    reference: NDArray[np.floating],
    alone: NDArray[np.floating],
    padded: NDArray[np.floating],
    sizes: Sequence[int],
    size: int,
) -> str | None:
    """Whether an answer depends on how far a sample is filled up, by more than the engine's precision explains.

    Args:
        reference: The reference's outputs, (n, k).
        alone: The engine's, each sample in its own size.
        padded: Of the same samples, each by itself and filled up.
        sizes: The samples' own sizes, as tokens.
        size: To which they were filled up.

    Returns:
        A clause; None where they are the same but for rounding.
    """
    db = _apart(reference, alone, padded)
    if db is None:
        return None
    worst = _worst(alone, padded)
    return (
        f"its answers depend on how far an input is filled up: {len(alone)} samples in their own length and filled up"
        f" to {size} differ (SQNR {db:.1f} dB), most sample {worst}, whose length is {sizes[worst]}"
    )


def _apart(reference: NDArray[np.floating], one: NDArray[np.floating], other: NDArray[np.floating]) -> float | None:
    """How far two answers to the same samples lie apart, in dB; None where the engine's precision explains it."""
    db = sqnr_db(one, other) if np.isfinite(other).all() else -np.inf
    if not np.isfinite(one).all() or db >= min(sqnr_db(reference, one), _FAITHFUL) - _DEPENDS:
        return None
    return db


def _worst(one: NDArray[np.floating], other: NDArray[np.floating]) -> int:
    """The sample whose two answers differ most."""
    return int(np.abs(np.nan_to_num(other, nan=np.inf) - one).max(1).argmax())


def _assigned(distances: NDArray[np.float64]) -> list[int]:
    """For each row its column, the closest pair first; every column once."""
    order = [-1] * len(distances)
    left = distances.copy()
    for _ in range(len(order)):
        row, column = np.unravel_index(int(np.argmin(left)), left.shape)
        order[int(row)] = int(column)
        left[row, :] = np.inf
        left[:, column] = np.inf
    return order
