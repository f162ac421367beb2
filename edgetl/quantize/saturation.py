"""Integer weights whose products cannot saturate on x86 processors without VNNI.

The instruction vpmaddubsw multiplies unsigned by signed bytes, adds each pair of neighbouring products in 16 bits and
saturates: 255 · 127 + 255 · 127 = 64,770 becomes 32,767. VNNI adds in 32 bits. docs/saturation.md says which engines
and operators use it, in which order they pair products, and how that was seen.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import UsageError
from edgetl.quantize.schemes import IntegerType

Packing = Literal["any", "channels-last"]
"""Which weights of an output channel meet in a pair.

any: any two. channels-last: neighbours, once the channel's weights are laid out by kernel position first and input
channel last (for a matrix product: in their order). Where the count of input channels is odd, both a pair across two
positions (ONNX Runtime) and a last channel alone (OpenVINO) are covered.
"""

_LOW, _HIGH = -(2**15), 2**15 - 1
"""What 16 bits hold."""


def round_weights(
    weights: NDArray[np.floating[Any]], scales: NDArray[np.float32], axis: int, type_: IntegerType
) -> NDArray[np.int8]:
    """Integers of weights: divided by the scale of their channel in float32, rounded to even, clipped.

    Args:
        weights: Any shape.
        scales: Shape (channels,), above zero.
        axis: The channel axis.
        type_: Bounds of the integers.

    Returns:
        int8, in the shape of the weights.
    """
    shape = [-1 if index == axis % weights.ndim else 1 for index in range(weights.ndim)]
    steps = np.rint(np.asarray(weights, dtype=np.float32) / scales.reshape(shape))
    clipped: NDArray[np.int8] = np.clip(steps, type_.low, type_.high).astype(np.int8)
    return clipped


def pair_sum_bound(
    integers: NDArray[np.int8], axis: int, activation_max: int, packing: Packing = "any"
) -> NDArray[np.int32]:
    """The largest magnitude of a pair of products a0·w0 + a1·w1 with 0 ≤ a ≤ activation_max, exactly.

    Args:
        integers: Weights, any shape with at least two axes.
        axis: The axis of output channels.
        activation_max: The largest quantized activation, 0 to 255, the zero point of padding included. A bound that
            holds for every input, and not for calibrated ones alone, takes 255.
        packing: Which weights meet.

    Returns:
        int32, shape (channels,).

    Raises:
        UsageError: activation_max is not within 0 to 255, or integers are not int8.
    """
    lowest, highest = _extremes(integers, axis, activation_max, packing)
    return np.maximum(-lowest, highest)


def can_saturate(
    integers: NDArray[np.int8], axis: int, activation_max: int, packing: Packing = "any"
) -> NDArray[np.bool_]:
    """Whether a pair of products can be above 32,767 or below -32,768.

    Args:
        integers: As for :func:`pair_sum_bound`, and so the others.
        axis: The axis of output channels.
        activation_max: The largest quantized activation.
        packing: Which weights meet.

    Returns:
        bool, shape (channels,).

    Raises:
        UsageError: As for :func:`pair_sum_bound`.
    """
    lowest, highest = _extremes(integers, axis, activation_max, packing)
    saturates: NDArray[np.bool_] = (lowest < _LOW) | (highest > _HIGH)
    return saturates


def scales_without_saturation(
    weights: NDArray[np.floating[Any]],
    scales: NDArray[np.float32],
    axis: int,
    activation_max: int,
    type_: IntegerType,
    packing: Packing = "any",
) -> NDArray[np.float32]:
    """The smallest float32 scales, from the given ones on, whose rounded weights cannot saturate.

    Rounded magnitudes never grow with the scale, so that bisection over float32 numbers finds the smallest, exactly for
    :func:`round_weights`.

    Args:
        weights: Float, any shape with at least two axes.
        scales: Shape (channels,), above zero.
        axis: The axis of output channels.
        activation_max: As for :func:`pair_sum_bound`.
        type_: Bounds of the integers.
        packing: Which weights meet.

    Returns:
        float32, shape (channels,): the given scale where it cannot saturate, else the first larger one that cannot.

    Raises:
        UsageError: As for :func:`pair_sum_bound`.
    """
    result = np.array(scales, dtype=np.float32)
    _check(activation_max)
    pairs = _pairs(np.asarray(weights, dtype=np.float32), axis, packing)
    channel, place = np.nonzero(_over(pairs, result[:, None], activation_max, type_))
    if not len(channel):
        return result
    # A pair that does not saturate at the given scale never will at a larger one.
    pairs = pairs[channel, place]
    reach = np.zeros(len(result), dtype=np.float32)
    np.maximum.at(reach, channel, np.abs(pairs).max(axis=1))
    # Positive float32 numbers are ordered as their bits are. At the upper end no weight exceeds 32: 255 · 64 is safe.
    low = result.view(np.int32).astype(np.int64)
    high = np.where(reach > 0, np.maximum(result, reach / np.float32(32)).view(np.int32), low)
    while (high - low > 1).any():
        middle = (low + high) // 2
        over = _over(pairs, middle.astype(np.int32).view(np.float32)[channel], activation_max, type_)
        saturates = np.bincount(channel[over], minlength=len(result)) > 0
        low, high = np.where(saturates, middle, low), np.where(saturates, high, middle)
    return high.astype(np.int32).view(np.float32)


def emulate_pair_sums(
    activations: NDArray[np.uint8], integers: NDArray[np.int8], order: NDArray[np.intp] | None = None
) -> NDArray[np.int32]:
    """The matrix product as vpmaddubsw and vpmaddwd compute it: pairs saturate to 16 bits, then add up in 32.

    Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, PMADDUBSW. Memory grows with M · N · K.

    Args:
        activations: uint8, shape (M, K).
        integers: int8, shape (N, K).
        order: The permutation of K that was packed; its elements 0 and 1, 2 and 3, … meet. None for none. An odd last
            element meets zero.

    Returns:
        int32, shape (M, N).

    Raises:
        UsageError: Types or shapes are others, or order is no permutation.
    """
    left, right = _operands(activations, integers)
    if order is not None:
        if not np.array_equal(np.sort(order), np.arange(left.shape[1])):
            raise UsageError(f"the packing order is no permutation of 0 to {left.shape[1] - 1}")
        left, right = left[:, order], right[:, order]
    if left.shape[1] % 2:
        left, right = np.pad(left, ((0, 0), (0, 1))), np.pad(right, ((0, 0), (0, 1)))
    products = left[:, None, :] * right[None, :, :]
    pairs = products[..., 0::2] + products[..., 1::2]
    sums: NDArray[np.int32] = np.clip(pairs, _LOW, _HIGH).sum(axis=-1, dtype=np.int32)
    return sums


def exact_sums(activations: NDArray[np.uint8], integers: NDArray[np.int8]) -> NDArray[np.int32]:
    """The matrix product in 32 bits, as VNNI computes it.

    Args:
        activations: uint8, shape (M, K).
        integers: int8, shape (N, K).

    Returns:
        int32, shape (M, N).

    Raises:
        UsageError: Types or shapes are others.
    """
    left, right = _operands(activations, integers)
    sums: NDArray[np.int32] = left @ right.T
    return sums


def _check(activation_max: int) -> None:
    if not 0 <= activation_max <= 255:
        raise UsageError(f"the largest quantized activation is {activation_max}; a uint8 lies within 0 to 255")


def _pairs(weights: NDArray[Any], axis: int, packing: Packing) -> NDArray[Any]:
    """The pairs that can meet, shape (channels, pairs, 2); of "any", those with the largest sum of either sign."""
    if weights.ndim < 2:
        raise UsageError(f"weights of shape {weights.shape} have no axis besides their output channels")
    positions = np.moveaxis(np.moveaxis(weights, axis, 0), 1, -1)
    channels, inputs = positions.shape[0], positions.shape[-1]
    rows = positions.reshape(channels, int(np.prod(positions.shape[1:])))
    if packing == "any":
        rows = np.pad(rows, ((0, 0), (0, max(0, 2 - rows.shape[1]))))
        return np.stack([np.partition(rows, 1, axis=1)[:, :2], np.partition(rows, -2, axis=1)[:, -2:]], axis=1)
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(channels, -1, 2)
    if inputs % 2 and positions.ndim > 2:
        alone = np.pad(positions, [(0, 0)] * (positions.ndim - 1) + [(0, 1)])
        pairs = np.concatenate([pairs, alone.reshape(channels, -1, 2)], axis=1)
    return pairs


def _over(
    pairs: NDArray[np.float32], scales: NDArray[np.float32], activation_max: int, type_: IntegerType
) -> NDArray[np.bool_]:
    """Which pairs, shape (..., 2), can saturate once divided by scales of shape (...) and rounded."""
    steps = np.clip(np.rint(pairs / scales[..., None]), type_.low, type_.high)
    highest = np.maximum(steps, 0).sum(axis=-1) * activation_max
    lowest = np.minimum(steps, 0).sum(axis=-1) * activation_max
    over: NDArray[np.bool_] = (highest > _HIGH) | (lowest < _LOW)
    return over


def _extremes(
    integers: NDArray[np.int8], axis: int, activation_max: int, packing: Packing
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Smallest and largest sum of two products per channel, int32; zero where no weight has that sign."""
    _check(activation_max)
    if integers.dtype != np.int8:
        raise UsageError(f"the weights are {integers.dtype}; pair sums are those of int8")
    pairs = _pairs(integers, axis, packing)
    # An activation may be 0: a weight of the other sign then does not count.
    lowest = np.minimum(pairs, 0).sum(axis=2, dtype=np.int32).min(axis=1, initial=0)
    highest = np.maximum(pairs, 0).sum(axis=2, dtype=np.int32).max(axis=1, initial=0)
    return lowest * np.int32(activation_max), highest * np.int32(activation_max)


def _operands(
    activations: NDArray[np.uint8], integers: NDArray[np.int8]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    if activations.dtype != np.uint8 or integers.dtype != np.int8:
        raise UsageError(f"{activations.dtype} × {integers.dtype} was asked for; the instruction takes uint8 × int8")
    if activations.ndim != 2 or integers.ndim != 2 or activations.shape[1] != integers.shape[1]:
        raise UsageError(f"shapes {activations.shape} and {integers.shape} are not (M, K) and (N, K)")
    return activations.astype(np.int32), integers.astype(np.int32)
