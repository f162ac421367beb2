"""Why input tensors differ, or what an engine would have them be: wrong colours, another mean, another resize.

Each of these is a defect that looks like a bad network. What is compared here are the tensors that a bundle recorded
where it was built with those that this machine makes of the same raw inputs, and an engine's answers to tensors that
were made otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.parity.numeric import Explained, sqnr_db
from edgetl.runtime.preprocessing import ImagePreprocessing, Readable
from edgetl.runtime.preprocessing.images import INTERPOLATION
from edgetl.runtime.replay import TENSOR_TOLERANCE

_SAME = 1e-3
"""Largest difference of pixels, on the scale 0 to 1, that is rounding: a step of eight bits is four times as much."""
_COLOURS = ("red", "green", "blue")
_GEOMETRY = ("resize", "interpolation", "crop_pct")
"""Fields of a contract that say how a picture is brought to its size."""
_CROPS = (1.0, 0.8, 0.875, 0.9, 0.95, 0.96, 224 / 232)
"""Shares that published networks are evaluated with."""
_TURNED = {
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT, "upside down": Image.Transpose.FLIP_TOP_BOTTOM,
    "turned by 90°": Image.Transpose.ROTATE_90, "turned by 180°": Image.Transpose.ROTATE_180,
    "turned by 270°": Image.Transpose.ROTATE_270, "transposed": Image.Transpose.TRANSPOSE,
}  # fmt: skip
_IMAGENET = tuple(np.asarray(v)[None, :, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
_NAMED = 3
"""Features that are named."""
_CLEARER = 20.0
"""dB by which the float graph must answer more like an engine to changed inputs, before the change is named."""
_CLEARER_INPUT = 10.0
"""dB by which other inputs must make an engine answer better, and better than not at all, before they are named."""


def preprocessing_cause(
    contract: ImagePreprocessing, sources: Sequence[Readable | bytes], recorded: NDArray[np.floating]
) -> str | None:
    """What would make a contract give the tensors that were recorded.

    Tried are another order of the colours, another mean and standard deviation (alone and together with it), every
    other way to resize, and pictures that are turned or mirrored.

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
    for other in _ways_to_resize(contract):
        found = _pixels(other, other.together([other(source) for source in sources]))
        if _close(found, wanted):
            crops = [f" and crop_pct {each.crop_pct:.4g}" if other.crop_pct != contract.crop_pct else "" for each in
                     (other, contract)]  # fmt: skip
            return (
                f"the recorded tensors were made with resize '{other.resize}' and interpolation"
                f" '{other.interpolation}'{crops[0]}, the contract has '{contract.resize}' and"
                f" '{contract.interpolation}'{crops[1]}"
            )
    for said, turned in _TURNED.items():
        pictures = [contract.decode(source).transpose(turned) for source in sources]
        if _close(_pixels(contract, contract.together([contract.prepare(each) for each in pictures])), wanted):
            return f"the golden pictures give the recorded tensors where they are {said}"
    return None


def feature_cause(features: Sequence[str], made: NDArray[np.floating], recorded: NDArray[np.floating]) -> str:
    """Which features of a table are others than those that were recorded.

    Args:
        features: Names, k.
        made: Of the golden rows by the contract, (n, k).
        recorded: (n, m).

    Returns:
        A clause.
    """
    if made.shape != recorded.shape:
        return f"the contract makes {made.shape[1]} features, and those recorded are {recorded.shape[1]}"
    others = np.flatnonzero(~(np.abs(made.astype(np.float64) - recorded).max(0) <= TENSOR_TOLERANCE))  # NaN is another
    named = ", ".join(f"'{features[place]}'" for place in others[:_NAMED])
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f"{len(others)} of {len(features)} features differ: {named}{more}"


def token_cause(made: Sequence[NDArray[np.integer]], recorded: Sequence[NDArray[np.integer]]) -> str | None:
    """Which golden text the contract cuts into other tokens, and where.

    Args:
        made: Ids of each text by the contract, without padding.
        recorded: The same, as recorded; there may be padding behind them.
    """
    for place, (mine, its) in enumerate(zip(made, recorded, strict=True)):
        length = min(len(mine), len(its))
        differ = np.flatnonzero(mine[:length] != its[:length])
        if len(differ):
            first = int(differ[0])
            return f"token {first} of golden input {place} is {mine[first]} by the contract, and was {its[first]}"
        if len(mine) > len(its):
            return f"golden input {place} has {len(mine)} tokens by the contract, and had {len(its)}"
    return None


def input_cause(
    contract: ImagePreprocessing,
    run: Callable[[NDArray[np.float32]], NDArray[np.floating]],
    inputs: NDArray[np.float32],
    reference: NDArray[np.floating],
    outputs: NDArray[np.floating],
) -> Explained | None:
    """What an engine that answers otherwise would want to be fed with, to answer as the reference does.

    Args:
        contract: By which the inputs were made.
        run: The engine: inputs → outputs, both (n, ...).
        inputs: Tensors, (n, 3, height, width).
        reference: The reference's outputs for them, (n, k), finite.
        outputs: The engine's.

    Returns:
        None where nothing that is tried explains it.
    """
    usual = sqnr_db(reference, outputs) if np.isfinite(outputs).all() else -np.inf
    tried: list[tuple[float, str]] = []
    for said, fed in _other_inputs(contract, inputs):
        found = run(fed.astype(np.float32))
        tried.append((sqnr_db(reference, found) if np.isfinite(found).all() else -np.inf, said))
    best, said = max(tried)
    if best < max(usual, 0.0) + _CLEARER_INPUT:
        return None
    return Explained(said=f"it answers as PyTorch does where {said}", db=best)


def changed_input_cause(
    contract: ImagePreprocessing,
    run: Callable[[NDArray[np.float32]], NDArray[np.floating]],
    inputs: NDArray[np.float32],
    reference: NDArray[np.floating],
    outputs: NDArray[np.floating],
) -> Explained | None:
    """What an engine does to its inputs that the network does not: fed with that, the float graph answers as it does.

    Args:
        contract: By which the inputs were made.
        run: The float graph: inputs → outputs, both (n, ...).
        inputs: Tensors, (n, 3, height, width).
        reference: The float graph's outputs for them, (n, k), finite.
        outputs: The engine's, finite.

    Returns:
        None where nothing that is tried explains it.
    """
    usual = max(sqnr_db(outputs, reference), 0.0)
    tried = [(sqnr_db(outputs, run(fed.astype(np.float32))), said) for said, fed in _changed(contract, inputs)]
    best, said = max(tried)
    if best < usual + _CLEARER:
        return None
    return Explained(said=f"it answers as PyTorch does to inputs that are {said}", db=best)


def _changed(contract: ImagePreprocessing, inputs: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Inputs after one step too many, and what it is."""
    pixels, given = _pixels(contract, inputs), inputs.astype(np.float64)
    mean, std = (np.asarray(values)[None, :, None, None] for values in (contract.mean, contract.std))
    yield "normalised twice", (given - mean) / std
    yield "divided by the standard deviation twice", given / std
    yield "multiplied by the standard deviation, not divided", given * std * std
    yield "not centred: the mean is not subtracted", given + mean / std
    yield "divided by 255 once more", given / 255.0
    yield "multiplied by 255", given * 255.0
    yield "normalised with ImageNet's mean and standard deviation", (pixels - _IMAGENET[0]) / _IMAGENET[1]
    yield "normalised with a mean and standard deviation of 0.5", pixels * 2.0 - 1.0
    yield "cut off at 0 and 1", given.clip(0.0, 1.0)
    yield "grey", np.broadcast_to(given.mean(1, keepdims=True), given.shape)
    height, width = given.shape[2:]
    yield "read in the order height, width, colour", given.reshape(-1, height, width, 3).transpose(0, 3, 1, 2)


def _other_inputs(
    contract: ImagePreprocessing, inputs: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Inputs as another preprocessing would have made them, and what it is."""
    pixels = _pixels(contract, inputs)
    yield "its input is mirrored", inputs[:, :, :, ::-1].astype(np.float64)
    yield "its input is upside down", inputs[:, :, ::-1].astype(np.float64)
    if contract.height == contract.width:
        yield "height and width of its input are exchanged", inputs.transpose(0, 1, 3, 2).astype(np.float64)
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


def _ways_to_resize(contract: ImagePreprocessing) -> list[ImagePreprocessing]:
    """Contracts that resize in another way; what is otherwise in one thing comes first."""
    ways = get_args(get_type_hints(ImagePreprocessing)["resize"])
    found = [
        replace(contract, resize=resize, interpolation=interpolation, crop_pct=crop_pct)  # type: ignore[arg-type]
        for resize in ways
        for interpolation in INTERPOLATION
        for crop_pct in (dict.fromkeys((contract.crop_pct, *_CROPS)) if resize == "crop" else (contract.crop_pct,))
    ]
    apart = [sum(getattr(one, name) != getattr(contract, name) for name in _GEOMETRY) for one in found]
    return [found[place] for place in np.argsort(apart, kind="stable") if apart[place]]


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"
