"""Why answers differ: wrong colours, another mean, another resize, classes in another order, a batch or a length that
matters.

Each of these is a defect that looks like a bad network. What is compared here are the tensors and outputs that a bundle
recorded where it was built with those that this machine makes of the same raw inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from edgetl.parity.numeric import sqnr_db
from edgetl.runtime.preprocessing import ImagePreprocessing, Readable
from edgetl.runtime.preprocessing.images import INTERPOLATION

_SAME = 1e-3
"""Largest difference of pixels, on the scale 0 to 1, that is rounding: a step of eight bits is four times as much."""
_COLOURS = ("red", "green", "blue")
_CLEARER = 20.0
"""dB by which another order of the outputs must fit better, before it is named."""
_CLEARER_INPUT = 10.0
"""dB by which other inputs must make an engine answer better, and better than not at all, before they are named."""
_FAITHFUL = 60.0
"""dB: an engine that is nearer to the reference than this is measured as if it were no nearer."""
_DEPENDS = 15.0
"""dB by which single answers and those of a batch, or of filled-up inputs, may lie further apart than single answers
and the reference's. Dynamic quantization takes its ranges from the batch: MiniLM in int8-dynamic, 27 dB from the
reference, differs from itself by 22 to 32 dB in batches of eight; float and statically quantized engines differ by
rounding alone."""
_MOST_CLASSES = 4096
"""Whose order is looked for: every pair of two outputs is compared."""


def preprocessing_cause(
    contract: ImagePreprocessing, sources: Sequence[Readable | bytes], recorded: NDArray[np.floating]
) -> str | None:
    """What would make a contract give the tensors that were recorded.

    Tried are another order of the colours, another mean and standard deviation (alone and together with it), and
    every other way to resize.

    Args:
        contract: Of images.
        sources: Encoded images.
        recorded: Their tensors, float (n, 3, height, width).

    Returns:
        A clause; None where the contract gives these tensors, or nothing that is tried explains them.
    """
    if recorded.shape[1:] != contract.input_shape:
        own, there = ("×".join(map(str, shape)) for shape in (contract.input_shape, recorded.shape[1:]))
        return f"the contract makes tensors of {own}, and those recorded are of {there}"
    made = _pixels(contract, contract.together([contract(source) for source in sources]))
    wanted = _pixels(contract, recorded)
    if _close(made, wanted):
        return None
    named = _colours_or_scale(contract, made, wanted)
    if named:
        return named
    for resize, interpolation in _ways_to_resize():
        other = replace(contract, resize=resize, interpolation=interpolation)  # type: ignore[arg-type]
        found = _pixels(other, other.together([other(source) for source in sources]))
        if other != contract and _close(found, wanted):
            return (
                f"the recorded tensors were made with resize '{resize}' and interpolation '{interpolation}', the"
                f" contract has '{contract.resize}' and '{contract.interpolation}'"
            )
    return None


def input_cause(
    contract: ImagePreprocessing,
    run: Callable[[NDArray[np.float32]], NDArray[np.floating]],
    inputs: NDArray[np.float32],
    reference: NDArray[np.floating],
    outputs: NDArray[np.floating],
) -> str | None:
    """What an engine that answers otherwise would want to be fed with, to answer as the reference does.

    Args:
        contract: By which the inputs were made.
        run: The engine: inputs → outputs, both (n, ...).
        inputs: Tensors, (n, 3, height, width).
        reference: The reference's outputs for them, (n, k), finite.
        outputs: The engine's.

    Returns:
        A clause; None where nothing that is tried explains it.
    """
    usual = sqnr_db(reference, outputs) if np.isfinite(outputs).all() else -np.inf
    tried: list[tuple[float, str]] = []
    for said, fed in _other_inputs(contract, inputs):
        found = run(fed.astype(np.float32))
        tried.append((sqnr_db(reference, found) if np.isfinite(found).all() else -np.inf, said))
    best, said = max(tried)
    return f"it answers as PyTorch does where {said}" if best >= max(usual, 0.0) + _CLEARER_INPUT else None


def _other_inputs(
    contract: ImagePreprocessing, inputs: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Inputs as another preprocessing would have made them, and what it is."""
    pixels = _pixels(contract, inputs)
    scaled = {
        "": inputs.astype(np.float64),
        "its input is pixels from 0 to 1": pixels,
        "its input is pixels from 0 to 255": pixels * 255.0,
        "its input is pixels from -1 to 1": pixels * 2.0 - 1.0,
    }
    for scale, tensors in scaled.items():
        for order in permutations(range(3)):
            swapped = f"its input has the colours in the order {', '.join(_COLOURS[c] for c in order)}"
            if order == (0, 1, 2):
                if scale:
                    yield scale, tensors
            elif scale:
                yield f"{scale} and {swapped}", tensors[:, order]
            else:  # mean and standard deviation go with their colour, or stay with their place
                mean, std = (np.asarray(values)[None, :, None, None] for values in (contract.mean, contract.std))
                yield swapped, tensors[:, order]
                yield swapped, (pixels[:, order] - mean) / std


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
    if sqnr_db(reference, outputs[:, order]) < sqnr_db(reference, outputs) + _CLEARER:
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


def _pixels(contract: ImagePreprocessing, tensors: NDArray[Any]) -> NDArray[np.float64]:
    """Tensors on the scale 0 to 1, as they were before mean and standard deviation, if those are the contract's."""
    mean, std = (np.asarray(values)[None, :, None, None] for values in (contract.mean, contract.std))
    pixels: NDArray[np.float64] = tensors.astype(np.float64) * std + mean
    return pixels


def _close(made: NDArray[np.float64], wanted: NDArray[np.float64]) -> bool:
    return bool(np.abs(made - wanted).max(initial=0.0) <= _SAME)


def _colours_or_scale(
    contract: ImagePreprocessing, made: NDArray[np.float64], wanted: NDArray[np.float64]
) -> str | None:
    for order in permutations(range(3)):
        colours = made[:, order]
        swapped = order != (0, 1, 2)
        spoken = f"the recorded tensors have the colours in the order {', '.join(_COLOURS[c] for c in order)}"
        if swapped and _close(colours, wanted):
            return spoken
        fitted = [_line(colours[:, channel], wanted[:, channel]) for channel in range(3)]
        if all(each is not None for each in fitted):
            # wanted = slope · pixel + offset, and (pixel - mean') / std' = (wanted - mean) / std.
            std = [contract.std[c] / each[0] for c, each in enumerate(fitted) if each]
            mean = [(contract.mean[c] - each[1]) / each[0] for c, each in enumerate(fitted) if each]
            other = f"mean {_numbers(mean)} and standard deviation {_numbers(std)}"
            own = f"{_numbers(contract.mean)} and {_numbers(contract.std)}"
            if swapped:
                return f"{spoken}, and {other}; the contract has {own}"
            return f"the recorded tensors were made with {other}; the contract has {own}"
    return None


def _line(pixels: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[float, float] | None:
    """Slope and offset of a line through one channel; None where none fits, or all pixels are alike."""
    x, y = pixels.ravel(), wanted.ravel()
    spread = float(np.square(x - x.mean()).sum())
    if spread < 1e-9:
        return None
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    offset = float(y.mean() - slope * x.mean())
    if slope <= 0 or float(np.abs(slope * x + offset - y).max()) > _SAME * max(1.0, slope):
        return None
    return slope, offset


def _ways_to_resize() -> list[tuple[str, str]]:
    ways = get_args(get_type_hints(ImagePreprocessing)["resize"])
    return [(resize, interpolation) for resize in ways for interpolation in INTERPOLATION]


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


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"
