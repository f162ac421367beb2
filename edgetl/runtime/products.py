"""Multiply-adds of convolutions and matrix products, and bytes moved, from what an engine reports of its nodes.

Multiply-adds are counted as the layer is defined, whatever algorithm computes it; bias and scaling are not. Where an
engine has padded the channels to its registers' width, its shapes have the padding in them, and so have the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypedDict

Shape = Sequence[int]

_VIEWS = frozenset({"reshape", "squeeze", "unsqueeze", "flatten", "identity", "shape", "size", "constantofshape"})
"""Operators, in lower case, that move no data: their result is their input under another shape, or its shape."""
_PARTS = frozenset(
    {"gather", "gathernd", "gatherelements", "embedding", "slice", "stridedslice", "split", "expand", "broadcast"}
)
"""Operators that read no more of their inputs than they write."""


class Traffic(TypedDict):
    """Bytes that a node moves at least."""

    weight_bytes: int
    activation_bytes: int


def traffic(kind: str, *, constants: int, read: int, written: int) -> Traffic:
    """The bytes that a node cannot do without moving, if each tensor is read or written once.

    Args:
        kind: Its operator, in an engine's words.
        constants: Bytes of the constants among its inputs.
        read: Bytes of its other inputs.
        written: Bytes of its outputs.
    """
    name = kind.lower()
    if name in _VIEWS:
        return {"weight_bytes": 0, "activation_bytes": 0}
    if name in _PARTS:
        return {"weight_bytes": 0, "activation_bytes": min(constants + read, written) + written}
    return {"weight_bytes": constants, "activation_bytes": read + written}


def convolution(output: Shape, weights: Shape) -> int:
    """Multiply-adds of a convolution: each output needs one for every weight of its channel.

    Args:
        output: (N, M, spatial …), in any order.
        weights: (M, C / groups, kernel …), or (groups, M / groups, C / groups, kernel …).
    """
    return prod(output) * prod(weights[2 if len(weights) > len(output) else 1 :])


def transposed_convolution(data: Shape, weights: Shape) -> int:
    """Multiply-adds of a transposed convolution: each input meets every weight of its channel.

    Args:
        data: The input, (N, C, spatial …), in any order.
        weights: (C, M / groups, kernel …), or (groups, C / groups, M / groups, kernel …).
    """
    return prod(data) * prod(weights[2 if len(weights) > len(data) else 1 :])


def matrix_product(first: Shape, output: Shape) -> int:
    """Multiply-adds of a product of (stacks of) matrices, whichever way the factors lie.

    Args:
        first: (… , M, K) or transposed (… , K, M); of a vector (K).
        output: (… , M, N); of a product with a vector without that dimension.
    """
    if len(output) < len(first):
        return prod(first)  # by a vector
    if len(first) == 1:
        return prod(output) * first[0]
    return prod(output) * (first[-1] * first[-2] // output[-2] if output[-2] else 0)


def attention(query: Shape, key: Shape, value: Shape) -> int:
    """Multiply-adds of softmax(query · keyᵀ) · value.

    Args:
        query: (N, heads, L, E), or (N, L, heads · E).
        key: (N, heads, S, E), or (N, S, heads · E); of heads that several of the query's share, fewer.
        value: (N, heads, S, V), or (N, S, heads · V); likewise.
    """
    width = value[-1] * query[-1] // key[-1] if key[-1] else 0  # of all the query's heads
    return prod(query) * key[-2] + prod(query[:-1]) * value[-2] * width


def packed_attention(data: Shape, weights: Shape) -> int:
    """Multiply-adds of attention together with the products that make query, key and value.

    Args:
        data: (N, L, C).
        weights: (C, query, key and value side by side).
    """
    return prod(data) * weights[-1] + 2 * prod(data[:-1]) * data[-2] * (weights[-1] // 3)


def recurrent(data: Shape, weights: Shape, recurrence: Shape) -> int:
    """Multiply-adds of an RNN, GRU or LSTM.

    Args:
        data: (time, N, C).
        weights: Of the input, all gates and directions.
        recurrence: Of the state, all gates and directions.
    """
    return prod(data[:-1]) * (prod(weights) + prod(recurrence))
