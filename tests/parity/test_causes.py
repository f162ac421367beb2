"""Defects on purpose, each of which is named by its cause."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetl.parity.causes import batch_cause, input_cause, length_cause, order_cause, preprocessing_cause
from edgetl.runtime.preprocessing import ImagePreprocessing

CONTRACT = ImagePreprocessing(
    height=24, width=24, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic"
)


def pictures(count: int = 3) -> list[bytes]:
    """Smooth colour pictures, wider than high."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        small = Image.fromarray(random.integers(0, 255, (6, 9, 3), dtype=np.uint8))
        buffer = BytesIO()
        small.resize((60, 40), Image.Resampling.BICUBIC).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def made(contract: ImagePreprocessing) -> np.ndarray:
    return contract.together([contract(picture) for picture in pictures()])


def test_the_same_needs_no_cause() -> None:
    assert preprocessing_cause(CONTRACT, pictures(), made(CONTRACT)) is None


def test_red_and_blue_in_each_others_place() -> None:
    mean, std = (np.asarray(values)[:, None, None] for values in (CONTRACT.mean, CONTRACT.std))
    swapped = ((made(CONTRACT) * std + mean)[:, ::-1] - mean) / std
    cause = preprocessing_cause(CONTRACT, pictures(), swapped)
    assert cause == "the recorded tensors have the colours in the order blue, green, red"


@given(
    st.tuples(*[st.floats(0.0, 0.9)] * 3), st.tuples(*[st.floats(0.1, 2.0)] * 3)
)  # fmt: skip
def test_another_mean_or_standard_deviation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    other = replace(CONTRACT, mean=mean, std=std)
    cause = preprocessing_cause(CONTRACT, pictures(), made(other))
    assert cause is not None and "were made with mean (" in cause
    told = cause.split("mean (")[1].split(")")[0].split(", ")
    assert [float(value) for value in told] == pytest.approx(mean, abs=0.01)


def test_colours_and_scale_at_once() -> None:
    plain = replace(CONTRACT, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    cause = preprocessing_cause(CONTRACT, pictures(), made(plain)[:, ::-1])
    assert cause is not None
    assert cause.startswith("the recorded tensors have the colours in the order blue, green, red, and mean (")


@pytest.mark.parametrize(
    "other", [{"resize": "stretch"}, {"resize": "pad"}, {"interpolation": "nearest"}, {"interpolation": "bilinear"}]
)
def test_another_way_to_resize(other: dict[str, str]) -> None:
    contract = replace(CONTRACT, **other)  # type: ignore[arg-type]
    cause = preprocessing_cause(CONTRACT, pictures(), made(contract))
    assert cause is not None
    assert f"resize '{contract.resize}' and interpolation '{contract.interpolation}'" in cause


def test_another_size() -> None:
    cause = preprocessing_cause(CONTRACT, pictures(), made(replace(CONTRACT, height=16, width=16)))
    assert cause == "the contract makes tensors of 3×24×24, and those recorded are of 3×16×16"


def test_what_nothing_explains() -> None:
    noise = np.random.default_rng(1).normal(size=(3, 3, 24, 24))
    assert preprocessing_cause(CONTRACT, pictures(), noise) is None


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

    def test_a_bad_engine_is_not_one_in_another_order(self) -> None:
        random = np.random.default_rng(0)
        assert order_cause(random.normal(size=(8, 6)), random.normal(size=(8, 6)), list("abcdef")) is None
        assert order_cause(np.ones((8, 2)), np.full((8, 2), np.nan), list("ab")) is None


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


class TestInputs:
    WEIGHTS = np.random.default_rng(3).normal(size=(3 * 24 * 24, 6)) / 24

    def engine(self, inputs: np.ndarray) -> np.ndarray:
        return inputs.reshape(len(inputs), -1) @ self.WEIGHTS

    @pytest.mark.parametrize(
        ("wants", "said"),
        [
            (lambda pixels: pixels, "its input is pixels from 0 to 1"),
            (lambda pixels: pixels * 255, "its input is pixels from 0 to 255"),
            (
                lambda pixels: pixels[:, ::-1] * 255,
                "pixels from 0 to 255 and its input has the colours in the order blue",
            ),
        ],
    )
    def test_pixels_of_another_scale(self, wants, said: str) -> None:
        inputs = made(CONTRACT)
        mean, std = (np.asarray(values)[None, :, None, None] for values in (CONTRACT.mean, CONTRACT.std))
        reference = self.engine(wants(inputs * std + mean))
        cause = input_cause(CONTRACT, self.engine, inputs, reference, self.engine(inputs))
        assert cause is not None and cause.startswith("it answers as PyTorch does where its input") and said in cause

    def test_an_engine_that_is_right_or_merely_bad(self) -> None:
        inputs = made(CONTRACT)
        reference = self.engine(inputs)
        assert input_cause(CONTRACT, self.engine, inputs, reference, reference) is None
        noise = np.random.default_rng(1).normal(size=reference.shape)
        assert input_cause(CONTRACT, lambda fed: self.engine(fed) * np.nan, inputs, reference, noise) is None
        assert input_cause(CONTRACT, lambda fed: noise, inputs, reference, noise) is None
