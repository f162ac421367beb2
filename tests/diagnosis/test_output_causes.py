"""Defects of outputs on purpose, each of which is named by its cause."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.diagnosis import output_causes
from edgetl.diagnosis.output_causes import batch_cause, length_cause, order_cause


def output_cause(*given: Any) -> str | None:
    found = output_causes.output_cause(*given)
    return found.said if found else None


class TestOrder:
    @given(st.permutations(list(range(6))), st.integers(0, 1000))
    def test_every_order_is_found(self, order: list[int], seed: int) -> None:
        random = np.random.default_rng(seed)
        reference = random.normal(size=(8, 6))
        outputs = np.empty_like(reference)
        outputs[:, order] = reference + 0.01 * random.normal(size=(8, 6))
        cause = order_cause(reference, outputs, list("abcdef"))
        if order == sorted(order):
            assert cause is None
        else:
            first = next(place for place in range(6) if order[place] != place)
            assert cause is not None
            assert f"what should be '{'abcdef'[first]}' (output {first}) is output {order[first]};" in cause

    @pytest.mark.parametrize("count", [10, 1000])
    def test_two_that_are_exchanged_in_an_engine_of_eight_bits(self, count: int) -> None:
        """Those that are right hide most of it: it is 18 dB nearer in the right order."""
        random = np.random.default_rng(0)
        reference = random.normal(size=(8, count)) + 3
        reference[:, [1, 4]] += random.normal(size=(8, 2)) * count**0.5
        outputs = reference + random.normal(size=(8, count)) * 0.05 * np.abs(reference).mean()
        outputs[:, [1, 4]] = outputs[:, [4, 1]]
        cause = order_cause(reference, outputs, [str(place) for place in range(count)])
        assert cause is not None and "should be '1' (output 1) is output 4; 2 of" in cause

    @given(st.integers(0, 100), st.sampled_from([2, 10, 1000]))
    def test_noise_has_no_order(self, seed: int, count: int) -> None:
        random = np.random.default_rng(seed)
        names = [str(place) for place in range(count)]
        assert order_cause(random.normal(size=(8, count)), random.normal(size=(8, count)), names) is None

    def test_a_bad_engine_is_not_one_in_another_order(self) -> None:
        random = np.random.default_rng(0)
        assert order_cause(random.normal(size=(8, 6)), random.normal(size=(8, 6)), list("abcdef")) is None
        assert order_cause(np.ones((8, 2)), np.full((8, 2), np.nan), list("ab")) is None


class TestForm:
    REFERENCE = np.random.default_rng(0).normal(size=(8, 5)) * 3

    def softmax(self, values: np.ndarray) -> np.ndarray:
        powers = np.exp(values)
        return powers / powers.sum(1, keepdims=True)

    def test_a_function_too_many(self) -> None:
        for said, outputs in {
            "a softmax": self.softmax(self.REFERENCE),
            "the logarithm of a softmax": np.log(self.softmax(self.REFERENCE)),
            "a sigmoid": 1 / (1 + np.exp(-self.REFERENCE)),
            "a ReLU": np.maximum(self.REFERENCE, 0),
        }.items():
            rounded = outputs + np.random.default_rng(1).normal(size=outputs.shape) * 1e-3
            assert output_cause(self.REFERENCE, rounded) == f"its outputs are PyTorch's behind {said}"
        of_length_1 = self.REFERENCE / np.linalg.norm(self.REFERENCE, axis=1, keepdims=True)
        assert output_cause(self.REFERENCE, of_length_1) == "its outputs are PyTorch's scaled to length 1"

    def test_what_is_said_of_embeddings(self) -> None:
        """Of which a factor is a factor, though both are the same at length 1, and a softmax nearly a straight line."""
        of_length_1 = self.REFERENCE / np.linalg.norm(self.REFERENCE, axis=1, keepdims=True) / 9
        assert output_cause(of_length_1, of_length_1 * 2) == "its outputs are PyTorch's times 2"
        assert output_cause(of_length_1, self.softmax(of_length_1)) == "its outputs are PyTorch's behind a softmax"

    def test_a_function_too_few(self) -> None:
        said = output_cause(self.softmax(self.REFERENCE), self.REFERENCE)
        assert said == "PyTorch's outputs are its behind a softmax"

    def test_another_size_or_offset(self) -> None:
        assert output_cause(self.REFERENCE, self.REFERENCE * 2) == "its outputs are PyTorch's times 2"
        assert output_cause(self.REFERENCE, -self.REFERENCE) == "its outputs are PyTorch's times -1"
        assert output_cause(self.REFERENCE, self.REFERENCE + 1) == "its outputs are PyTorch's plus 1"
        assert output_cause(self.REFERENCE, self.REFERENCE / 4 - 3) == "its outputs are PyTorch's times 0.25 and less 3"

    @given(st.integers(1, 1000), st.floats(0.0, 2.0))
    def test_noise_and_another_network_are_none(self, seed: int, noise: float) -> None:
        random = np.random.default_rng(seed)
        assert output_cause(self.REFERENCE, self.REFERENCE + noise * random.normal(size=(8, 5))) is None
        assert output_cause(self.REFERENCE, random.normal(size=(8, 5))) is None
        assert output_cause(self.REFERENCE, np.full((8, 5), np.nan)) is None

    def test_outputs_that_do_not_move(self) -> None:
        said = "its outputs are the same whatever its input is"
        assert output_cause(self.REFERENCE, np.full((8, 5), 0.3)) == said
        assert output_cause(self.REFERENCE, np.tile(self.REFERENCE[:1], (8, 1))) == said
        assert output_cause(self.REFERENCE[:1], self.REFERENCE[:1]) is None


class TestBatch:
    REFERENCE = np.random.default_rng(0).normal(size=(8, 5))

    def off(self, db: float, seed: int = 1) -> np.ndarray:
        """The reference with noise of so many dB below it."""
        noise = np.random.default_rng(seed).normal(size=self.REFERENCE.shape)
        noise *= np.linalg.norm(self.REFERENCE) / np.linalg.norm(noise)
        return self.REFERENCE + noise * 10 ** (-db / 20)

    def test_one_that_normalises_over_the_batch(self) -> None:
        cause = batch_cause(self.REFERENCE, self.REFERENCE, self.REFERENCE - self.REFERENCE.mean(0))
        assert cause is not None and cause.startswith("its answers depend on what else is in a batch: 8 samples")

    def test_rounding_is_none(self) -> None:
        assert batch_cause(self.REFERENCE, self.off(120), self.off(115, 2)) is None
        assert batch_cause(self.REFERENCE, self.REFERENCE, np.full_like(self.REFERENCE, np.nan)) is not None

    def test_dynamic_quantization_whose_ranges_are_the_batchs_is_none(self) -> None:
        assert batch_cause(self.REFERENCE, self.off(27), self.off(27, 2)) is None  # 24 dB from each other
        assert (
            batch_cause(self.REFERENCE, self.off(110), self.off(24, 2)) is not None
        )  # of a float engine it would be one

    def test_a_length_that_matters_and_one_that_does_not(self) -> None:
        sizes = list(range(3, 11))
        assert length_cause(self.REFERENCE, self.REFERENCE, self.off(110), sizes, 32) is None
        assert length_cause(self.REFERENCE, self.off(27), self.off(27, 2), sizes, 32) is None
        other = self.REFERENCE.copy()
        other[5] += 3
        cause = length_cause(self.REFERENCE, self.REFERENCE, other, sizes, 32)
        assert cause is not None and "in their own length and filled up to 32 differ" in cause
        assert cause.endswith("most sample 5, whose length is 8")


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (4, 3)])
def test_a_line_through_two_numbers_explains_nothing(shape: tuple[int, int]) -> None:
    """Nor does one through outputs that are all alike."""
    random = np.random.default_rng(1)
    exact = random.normal(size=shape) if shape != (4, 3) else np.ones(shape)
    assert output_cause(exact, random.normal(size=shape)) is None
