"""Multiply-adds against counting them one by one, or against the layer's definition."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgetl.runtime import products

small = st.integers(1, 4)


@given(small, small, small, small, small, st.integers(1, 3))
def test_convolution_in_both_spellings_of_its_weights(n: int, groups: int, m: int, c: int, size: int, k: int) -> None:
    output = (n, groups * m, size, size)
    one_by_one = sum(c * k * k for _ in np.ndindex(output))
    assert products.convolution(output, (groups * m, c, k, k)) == one_by_one
    assert products.convolution(output, (groups, m, c, k, k)) == one_by_one
    channels_last = (n, size, size, groups * m)
    assert products.convolution(channels_last, (groups * m, c, k, k)) == one_by_one


@given(small, small, small, small, small)
def test_a_transposed_convolution_is_the_convolution_turned_round(n: int, c: int, m: int, size: int, k: int) -> None:
    data = (n, c, size, size)
    assert products.transposed_convolution(data, (c, m, k, k)) == products.convolution(data, (c, m, k, k))
    assert products.transposed_convolution(data, (1, c, m, k, k)) == n * c * size * size * m * k * k


@given(st.lists(small, max_size=2), small, small, small)
def test_matrix_product_whichever_way_the_first_factor_lies(stack: list[int], m: int, k: int, n: int) -> None:
    expected = prod(stack) * m * k * n
    assert products.matrix_product((*stack, m, k), (*stack, m, n)) == expected
    assert products.matrix_product((*stack, k, m), (*stack, m, n)) == expected


def test_matrix_products_with_vectors_and_nothing() -> None:
    assert products.matrix_product((7,), (3,)) == 21
    assert products.matrix_product((7,), ()) == 7
    assert products.matrix_product((5, 7), (5,)) == 35
    assert products.matrix_product((0, 7), (0, 3)) == 0


@given(st.lists(small, min_size=1, max_size=4), st.lists(small, min_size=1, max_size=4), small)
def test_matrix_product_of_whatever_numpy_multiplies(first: list[int], second: list[int], k: int) -> None:
    """Vectors and broadcast stacks: each of the results takes as many as the factors share."""
    first[-1] = second[-2 if len(second) > 1 else -1] = k
    first[:-2], second[:-2] = [1] * len(first[:-2]), second[:-2]
    output = np.matmul(np.zeros(first), np.zeros(second)).shape
    assert products.matrix_product(first, output) == prod(output) * k


@given(small, small, small, small, small)
def test_attention_is_its_two_products(n: int, heads: int, length: int, keys: int, width: int) -> None:
    query, key = (n, heads, length, width), (n, heads, keys, width)
    expected = 2 * n * heads * length * keys * width
    assert products.attention(query, key, key) == expected
    flat = (n, keys, heads * width)
    assert products.attention((n, length, heads * width), flat, flat) == expected
    shared, both = (n, keys, heads * width), (n, length, 2 * heads * width)  # by two heads of the query each
    assert products.attention(both, shared, shared) == 2 * expected


@given(small, small, small)
def test_packed_attention_adds_the_products_that_make_its_inputs(n: int, length: int, width: int) -> None:
    data = (n, length, width)
    expected = n * length * width * 3 * width + products.attention(data, data, data)
    assert products.packed_attention(data, (width, 3 * width)) == expected


def test_an_lstm_multiplies_input_and_state_by_four_gates() -> None:
    time, n, c, hidden = 3, 2, 5, 7
    found = products.recurrent((time, n, c), (1, 4 * hidden, c), (1, 4 * hidden, hidden))
    assert found == time * n * 4 * hidden * (c + hidden)


sizes = st.integers(0, 1 << 30)


@given(sizes, sizes, sizes)
def test_traffic_is_each_tensor_once_and_no_more_than_is_needed(constants: int, read: int, written: int) -> None:
    given_ = {"constants": constants, "read": read, "written": written}
    assert products.traffic("Conv", **given_) == {"weight_bytes": constants, "activation_bytes": read + written}
    assert products.traffic("Reshape", **given_) == {"weight_bytes": 0, "activation_bytes": 0}
    part = products.traffic("Gather", **given_)
    assert part["weight_bytes"] == 0 and written <= part["activation_bytes"] <= 2 * written
    assert part["activation_bytes"] <= constants + read + written
