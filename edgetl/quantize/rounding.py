"""Weights rounded for the layer's output, not each to its nearest integer.

Rounding errors of the weights of one output channel meet in one sum. For inputs x of a layer with second moments
H = E[x xᵀ], the squared error of an output is δᵀ H δ, δ being the error of its weights; the nearest integers minimise
δᵀ δ instead. Nagel et al. 2020, Up or down? Adaptive rounding for post-training quantization (AdaRound),
arXiv:2004.10568.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgetl.errors import ModelError

_Floats32 = NDArray[np.float32]
_Floats64 = NDArray[np.float64]

_ZETA, _GAMMA = 1.1, -0.1
"""The stretch of the rectified sigmoid, the paper's equation 23."""
_BETAS = (8, 4, 2)
"""Exponents of the regulariser 1 - |2h - 1|^beta (equation 24), one after the other: even, so that products suffice."""
_FREE_SHARE = 0.2
"""Share of the iterations before the regulariser starts."""
_REGULARIZER = 1.0
_LEARNING_RATE = 0.1
_TRUST = 0.9
"""How much of the sequential solution the relaxation starts from; the rest is the float weight."""
_BLOCK = 128
"""Columns that are rounded before their errors are carried to all later ones."""
_MAX_SWEEPS = 8
_ENUMERABLE = 10
"""Up to so many weights per output channel all choices are compared."""
_DAMPING = 0.1
"""Share of the mean second moment that is added to each: a few samples do not know every direction.

Of 0.01, 0.05, 0.2 and 0.5, tried without the relaxation, 0.05 and 0.2 left less error than 0.01 on held-out inputs of a
1,152 → 320 and a 112 → 672 convolution of EfficientNet-Lite0; its last Gemm, seen with 48 rows, gained up to 0.5.
"""
_CHUNK_FLOATS = 1 << 23


@dataclass(frozen=True, kw_only=True)
class Gram:
    """Moments of the inputs of one weighted operator, over samples and positions. Adding two merges them."""

    products: _Floats64
    """Shape (groups, K, K): sum of x xᵀ."""
    sums: _Floats64
    """Shape (groups, K): sum of x."""
    count: int
    """Number of vectors x."""

    def __add__(self, other: Gram) -> Gram:
        """The moments of both sets of inputs together.

        Raises:
            ModelError: They are of inputs of different shapes.
        """
        if self.products.shape != other.products.shape:
            raise ModelError(f"moments of shapes {self.products.shape} and {other.products.shape} cannot be added")
        return Gram(
            products=self.products + other.products, sums=self.sums + other.sums, count=self.count + other.count
        )

    def matrix(self, *, centred: bool = False) -> _Floats64:
        """H of the layer's output error.

        Args:
            centred: The covariance instead of the second moments: right where the bias is corrected afterwards, which
                takes the mean of the error away whatever the rounding.

        Returns:
            Shape (groups, K, K), float64, symmetric.
        """
        moments: _Floats64 = self.products / max(1, self.count)
        if centred:
            means = self.sums / max(1, self.count)
            moments = moments - means[:, :, None] * means[:, None, :]
        return moments


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Weights in integers."""

    integers: NDArray[np.int8]
    """Of the weights' shape."""
    objective_before: float
    """Sum over output channels of δᵀ H δ with the nearest integers, in squared units of the output."""
    objective_after: float
    """The same with these integers; never larger."""
    channels: int
    """Output channels."""
    kept_nearest: int
    """Output channels that keep the nearest integers, since nothing better was found."""
    chosen: dict[str, int]
    """Method (nearest, and exact or sequential and adaround) → output channels whose integers are its."""


def gram(
    inputs: NDArray[np.floating],
    *,
    op_type: Literal["Conv", "Gemm", "MatMul"],
    kernel: Sequence[int] = (),
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    groups: int = 1,
    max_positions: int | None = 64,
) -> Gram:
    """Moments of what each output of a weighted operator is a sum over.

    Which positions of a sample are taken depends on its shape alone: the moments of a set of samples are the sum of
    those of its batches, whatever their size (up to the rounding of float64).

    Args:
        inputs: float; for a Conv of shape (n, C, *spatial), else (n, ..., K).
        op_type: The operator.
        kernel: Only for a Conv, as the other geometry: its spatial shape.
        strides: One per spatial axis; empty: 1.
        pads: As in ONNX, first all beginnings, then all ends; empty: 0. Padding is of zeros.
        dilations: One per spatial axis; empty: 1.
        groups: Groups of the convolution.
        max_positions: At most so many positions of one sample; None takes all.

    Returns:
        K is C / groups times the kernel's size, in the order of a weight tensor (O, C / groups, *kernel).

    Raises:
        ModelError: The inputs do not fit the geometry, or hold NaN or Inf.
    """
    if not np.isfinite(inputs).all():
        raise ModelError("the inputs of a layer hold NaN or Inf: their moments cannot be taken")
    if op_type != "Conv":
        if inputs.ndim < 2 or groups != 1:
            raise ModelError(
                f"{op_type} takes inputs of shape (n, ..., K) in one group, not {inputs.shape} in {groups}"
            )
        flat = inputs.reshape(inputs.shape[0], int(np.prod(inputs.shape[1:-1])), inputs.shape[-1])
        return _moments(flat[:, _positions(flat.shape[1], max_positions), None, :])
    spatial = len(kernel)
    strides, dilations = strides or (1,) * spatial, dilations or (1,) * spatial
    pads = pads or (0,) * (2 * spatial)
    if not spatial or inputs.ndim != spatial + 2 or inputs.shape[1] % groups or len(pads) != 2 * spatial:
        raise ModelError(
            f"a convolution with kernel {tuple(kernel)}, pads {tuple(pads)} and {groups} groups does not fit inputs of "
            f"shape {inputs.shape}"
        )
    windows = _windows(inputs, kernel, strides, pads, dilations)
    channels, places = inputs.shape[1], windows.shape[2 : 2 + spatial]
    chosen = np.unravel_index(_positions(int(np.prod(places)), max_positions), places)
    size = channels * int(np.prod(kernel))
    total = Gram(
        products=np.zeros((groups, size // groups, size // groups)), sums=np.zeros((groups, size // groups)), count=0
    )
    step = max(1, _CHUNK_FLOATS // max(1, len(chosen[0]) * size))
    for start in range(0, len(inputs), step):
        # (n, C, positions, *kernel) → (n, positions, groups, K)
        index: tuple[slice | NDArray[np.int64], ...] = (slice(start, start + step), slice(None), *chosen)
        patches = windows[index].swapaxes(1, 2)
        total = total + _moments(patches.reshape(patches.shape[0], patches.shape[1], groups, size // groups))
    return total


def adaround(
    weights: NDArray[np.floating],
    scales: NDArray[np.floating],
    axis: int,
    low: int,
    high: int,
    gram: NDArray[np.floating],
    iterations: int = 100,
    *,
    damping: float = _DAMPING,
) -> Rounded:
    """Choose for each weight the integer below or above it, for the least error of the layer's output.

    With up to 10 weights per output channel all choices are compared. Otherwise the sequential rounding with error
    feedback of Frantar et al. 2022 (GPTQ, arXiv:2210.17323; here kept within one step of the float weight) is improved
    by single changes until none helps. AdaRound's relaxation starts near that, and its result is improved the same way:
    from the float weights alone it needs several times the iterations for the same error. Each output channel takes the
    best of both and of the nearest integers.

    Args:
        weights: float; of a Conv (O, C / groups, *kernel) with axis 0, of a Gemm or MatMul (K, N) with axis 1, or
            (N, K) with axis 0.
        scales: Shape (output channels,), or () for all, > 0: real = scale · integer.
        axis: The output channels' axis of the weights.
        low: Smallest integer, at least -128.
        high: Largest integer, at most 127.
        gram: H, shape (groups, K, K), from :meth:`Gram.matrix`.
        iterations: Steps of AdaRound's gradient descent; 0 leaves it out.
        damping: This share of H's mean diagonal is added to its diagonal while searching.

    Raises:
        ModelError: Shapes do not fit, or a number is NaN or Inf, or a scale is not positive.
    """
    rows, steps = _checked(weights, scales, axis, low, high, gram)
    real = rows / steps
    nearest = np.clip(np.rint(real), low, high)
    exact = np.asarray(gram, dtype=np.float64)
    level, damped = _damped(exact, damping)
    # Rows see H up to a factor: with a mean diagonal of 1 one learning rate fits every layer.
    problem = _Problem.of(real, low, high, damped / level[:, None, None])
    candidates = _candidates(problem, iterations) if rows.size else {}
    best, source = _best(real, nearest, list(candidates.values()), exact, damped)
    area = np.square(steps[:, :, 0])
    moved = np.moveaxis(weights, axis, 0)
    return Rounded(
        integers=np.moveaxis(best.reshape(moved.shape), 0, axis).astype(np.int8),
        objective_before=float((_objective(nearest - real, exact) * area).sum()),
        objective_after=float((_objective(best - real, exact) * area).sum()),
        channels=source.size,
        kept_nearest=int((source == 0).sum()),
        chosen={name: int((source == number).sum()) for number, name in enumerate(["nearest", *candidates])},
    )


def _damped(matrix: _Floats64, damping: float) -> tuple[_Floats64, _Floats64]:
    """The mean of H's diagonal in each group, 1 where it is 0, and H with a share of that on its diagonal."""
    reduced = matrix.shape[1]
    level = np.trace(matrix, axis1=1, axis2=2) / max(1, reduced)
    level = np.where(level > 0.0, level, 1.0)
    return level, matrix + damping * level[:, None, None] * np.eye(reduced)


def _best(
    real: _Floats64, nearest: _Floats64, candidates: Sequence[_Floats32], exact: _Floats64, damped: _Floats64
) -> tuple[_Floats64, NDArray[np.int64]]:
    """Of the nearest integers and some others, the best of each output channel, and its place, the nearest being 0.

    The best has the least error by the damped H, and by the exact one no more than the nearest integers.

    Args:
        real: Weights in units of their scales, shape (groups, outputs per group, K).
        nearest: Integers of that shape.
        candidates: Others.
        exact: H, shape (groups, K, K).
        damped: What was searched with.
    """
    before = _objective(nearest - real, exact)
    limit, best = _objective(nearest - real, damped), nearest
    source = np.zeros(before.shape, dtype=np.int64)
    for number, candidate in enumerate(candidates, start=1):
        found = candidate.astype(np.float64)
        searched, seen = _objective(found - real, damped), _objective(found - real, exact)
        better = (searched < limit) & (seen <= before)
        best = np.where(better[:, :, None], found, best)
        limit = np.where(better, searched, limit)
        source[better] = number
    return best, source


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """One layer in units of its scales; the shapes are (groups, outputs per group, K) and (groups, K, K)."""

    real: _Floats32
    lower: _Floats32
    upper: _Floats32
    matrix: _Floats32

    @classmethod
    def of(cls, real: _Floats64, low: int, high: int, matrix: _Floats64) -> _Problem:
        """With the integers below and above each weight, as far as they are among those from low to high."""
        return cls(
            real=real.astype(np.float32),
            lower=np.clip(np.floor(real), low, high).astype(np.float32),
            upper=np.clip(np.ceil(real), low, high).astype(np.float32),
            matrix=matrix.astype(np.float32),
        )


def _positions(count: int, most: int | None) -> NDArray[np.int64]:
    """Which of so many positions are taken: always the same ones, scattered: no column is favoured."""
    if most is None or count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(count).permutation(count)[:most])


def _windows(
    inputs: NDArray[np.floating],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> NDArray[np.floating]:
    """A view of the patches, shape (n, C, *positions, *kernel)."""
    spatial = len(kernel)
    margins = [(0, 0), (0, 0), *((pads[axis], pads[spatial + axis]) for axis in range(spatial))]
    padded = np.pad(inputs, margins) if any(pads) else inputs
    reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))
    if any(size < wanted for size, wanted in zip(padded.shape[2:], reach, strict=True)):
        raise ModelError(f"a kernel that reaches over {reach} does not fit inputs of shape {inputs.shape}")
    windows = sliding_window_view(padded, reach, axis=tuple(range(2, 2 + spatial)))
    strided = [slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations))]
    return windows[tuple(strided)]


def _moments(vectors: NDArray[np.floating]) -> Gram:
    """Of vectors of shape (n, positions, groups, K)."""
    flat = vectors.reshape(vectors.shape[0] * vectors.shape[1], *vectors.shape[2:]).astype(np.float64)
    by_group = np.ascontiguousarray(flat.swapaxes(0, 1))
    return Gram(
        products=np.matmul(by_group.swapaxes(1, 2), by_group), sums=by_group.sum(axis=1), count=by_group.shape[1]
    )


def _checked(
    weights: NDArray[np.floating],
    scales: NDArray[np.floating],
    axis: int,
    low: int,
    high: int,
    matrix: NDArray[np.floating],
) -> tuple[_Floats64, _Floats64]:
    """Weights as (groups, outputs per group, K) and scales as (groups, outputs per group, 1)."""
    if not -128 <= low < high <= 127:
        raise ModelError(f"the integers {low} to {high} are not a range of int8")
    if weights.ndim < 2 or not -weights.ndim <= axis < weights.ndim:
        raise ModelError(f"weights of shape {weights.shape} have no axis {axis} beside others")
    if matrix.ndim != 3 or matrix.shape[1] != matrix.shape[2]:
        raise ModelError(f"H has the shape (groups, K, K), not {matrix.shape}")
    moved = np.moveaxis(weights, axis, 0)
    rows = moved.reshape(len(moved), int(np.prod(moved.shape[1:]))).astype(np.float64)
    groups, reduced = matrix.shape[:2]
    if rows.shape[1] != reduced or not groups or len(rows) % groups:
        raise ModelError(
            f"weights of shape {weights.shape}, with {len(rows)} output channels of {rows.shape[1]} weights, do not "
            f"fit moments of {groups} groups of {reduced} inputs"
        )
    if np.shape(scales) not in ((), (len(rows),)):
        raise ModelError(f"there are {np.shape(scales)} scales for {len(rows)} output channels")
    steps = np.broadcast_to(np.asarray(scales, dtype=np.float64), (len(rows),))
    if not (np.isfinite(rows).all() and np.isfinite(steps).all() and np.isfinite(matrix).all()):
        raise ModelError("the weights, scales or moments of a layer hold NaN or Inf: they cannot be rounded")
    if not (steps > 0.0).all():
        raise ModelError("a scale is not positive")
    shape = (groups, len(rows) // groups)
    return rows.reshape(*shape, reduced), steps.reshape(*shape, 1)


def _objective(errors: _Floats64, matrix: _Floats64) -> _Floats64:
    """δᵀ H δ of each output channel, shape (groups, outputs per group)."""
    return np.asarray((np.matmul(errors, matrix) * errors).sum(axis=2))


def _candidates(problem: _Problem, iterations: int) -> dict[str, _Floats32]:
    """Integers by the method that found them."""
    if problem.real.shape[2] <= _ENUMERABLE:
        return {"exact": _enumerated(problem)}
    found = {"sequential": _polished(problem, _sequential(problem))}
    if iterations > 0:
        found["adaround"] = _polished(problem, _relaxed(problem, found["sequential"], iterations))
    return found


def _enumerated(problem: _Problem) -> _Floats32:
    """The best of all 2^K choices of each output channel: few enough for a depthwise 3 × 3 convolution."""
    groups, outputs, reduced = problem.real.shape
    choices = (np.arange(2**reduced)[:, None] >> np.arange(reduced) & 1).astype(np.float32)
    real, lower, upper = (array.reshape(-1, reduced) for array in (problem.real, problem.lower, problem.upper))
    result = np.empty_like(real)
    step = max(1, (_CHUNK_FLOATS >> 2) // choices.size)
    for start in range(0, len(real), step):
        part = slice(start, start + step)
        base, span = lower[part, None], upper[part, None] - lower[part, None]
        integers = base + span * choices  # (rows, 2^K, K)
        errors = integers - real[part, None]
        matrices = problem.matrix[np.arange(groups * outputs)[part] // outputs]
        best = (np.matmul(errors, matrices) * errors).sum(axis=2).argmin(axis=1)
        result[part] = integers[np.arange(len(best)), best]
    return result.reshape(problem.real.shape)


def _sequential(problem: _Problem) -> _Floats32:
    """Round one input after another; the error of each is carried to those that are still free.

    With U the upper Cholesky factor of the inverse of H, the best reaction of the later weights to an error e of weight
    k is -e · U[k, k+1:] / U[k, k] (GPTQ, arXiv:2210.17323, algorithm 1). Inputs with large moments go first.
    """
    order = np.argsort(-np.diagonal(problem.matrix, axis1=1, axis2=2), axis=1, kind="stable")
    columns = order[:, None, :]
    matrix = np.take_along_axis(np.take_along_axis(problem.matrix, order[:, :, None], axis=1), columns, axis=2)
    factor = np.linalg.cholesky(np.linalg.inv(matrix.astype(np.float64))).swapaxes(1, 2).astype(np.float32)
    weights, lower, upper = (
        np.take_along_axis(array, np.broadcast_to(columns, array.shape), axis=2)
        for array in (problem.real, problem.lower, problem.upper)
    )
    reduced = weights.shape[2]
    for start in range(0, reduced, _BLOCK):
        end = min(start + _BLOCK, reduced)
        block = weights[:, :, start:end].copy()
        errors = np.empty_like(block)
        for k in range(end - start):
            place = start + k
            chosen = np.minimum(np.maximum(np.rint(block[:, :, k]), lower[:, :, place]), upper[:, :, place])
            errors[:, :, k] = (block[:, :, k] - chosen) / factor[:, place, place, None]
            block[:, :, k + 1 :] -= errors[:, :, k, None] * factor[:, None, place, place + 1 : end]
            block[:, :, k] = chosen
        weights[:, :, start:end] = block
        weights[:, :, end:] -= np.matmul(errors, factor[:, start:end, end:])
    result = np.empty_like(weights)
    np.put_along_axis(result, np.broadcast_to(columns, result.shape), weights, axis=2)
    return result


def _relaxed(problem: _Problem, start: _Floats32, iterations: int) -> _Floats32:
    """AdaRound: gradient descent (Adam) on how far each weight is rounded up, pushed towards 0 and 1 in the end.

    Args:
        problem: The layer.
        start: Integers near which the search begins.
        iterations: Gradient steps.
    """
    free = problem.upper > problem.lower
    share = (1.0 - _TRUST) * (problem.real - problem.lower) + _TRUST * (start - problem.lower)
    inner = np.clip((np.clip(share, 0.0, 1.0) - _GAMMA) / (_ZETA - _GAMMA), 1e-4, 1 - 1e-4)
    v = np.log(inner / (1.0 - inner)).astype(np.float32)
    base = problem.lower - problem.real
    first, second = np.zeros_like(v), np.zeros_like(v)
    begin = int(_FREE_SHARE * iterations)
    for step in range(1, iterations + 1):
        sigmoid = 1.0 / (1.0 + np.exp(-v))
        raw = sigmoid * np.float32(_ZETA - _GAMMA) + np.float32(_GAMMA)
        soft = np.clip(raw, 0.0, 1.0)
        gradient = np.matmul(base + soft, problem.matrix)
        gradient *= 2.0
        if step > begin:
            beta = _BETAS[(step - begin - 1) * len(_BETAS) // (iterations - begin)]
            gradient -= np.float32(2.0 * _REGULARIZER * beta) * _odd_power(2.0 * soft - 1.0, beta - 1)
        gradient *= sigmoid * (1.0 - sigmoid) * ((raw > 0.0) & (raw < 1.0) & free)
        first += np.float32(0.1) * (gradient - first)
        second += np.float32(0.001) * (gradient * gradient - second)
        rate = _LEARNING_RATE * np.sqrt(1.0 - 0.999**step) / (1.0 - 0.9**step)
        v -= np.float32(rate) * first / (np.sqrt(second) + np.float32(1e-8))
    rounded: _Floats32 = np.where(free & (v >= 0.0), problem.upper, problem.lower)
    return rounded


def _odd_power(values: _Floats32, exponent: int) -> _Floats32:
    """The power 1, 3 or 7 by products; NumPy's power takes several times as long."""
    result: _Floats32 = values.copy()
    square = values * values
    while exponent > 1:
        result *= square
        square *= square
        exponent //= 2
    return result


def _polished(problem: _Problem, integers: _Floats32) -> _Floats32:
    """Move single weights to their other integer as long as that lowers δᵀ H δ (coordinate descent).

    A change d of weight k adds 2 d (Hδ)_k + d² H_kk.
    """
    chosen: _Floats32 = integers.copy()
    slope = np.matmul(chosen - problem.real, problem.matrix)  # Hδ
    span = problem.lower + problem.upper
    diagonal = np.diagonal(problem.matrix, axis1=1, axis2=2)
    for _ in range(_MAX_SWEEPS):
        changed = 0
        for k in range(chosen.shape[2]):
            change = span[:, :, k] - 2.0 * chosen[:, :, k]
            own = diagonal[:, k, None]
            groups, rows = np.nonzero(change * (2.0 * slope[:, :, k] + change * own) < -1e-6 * own)
            if groups.size:
                flips = change[groups, rows]
                chosen[groups, rows, k] += flips
                slope[groups, rows] += problem.matrix[groups, k] * flips[:, None]
                changed += groups.size
        if not changed:
            break
    return chosen
