"""Defects of inputs on purpose, each of which is named by its cause."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetl.diagnosis import input_causes
from edgetl.diagnosis.input_causes import feature_cause, preprocessing_cause, token_cause
from edgetl.runtime.preprocessing import ImagePreprocessing

CONTRACT = ImagePreprocessing(
    height=24, width=24, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic"
)


def input_cause(*given: Any) -> str | None:
    found = input_causes.input_cause(*given)
    return found.said if found else None


def changed_input_cause(*given: Any) -> str | None:
    found = input_causes.changed_input_cause(*given)
    return found.said if found else None


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


@pytest.mark.parametrize("share", [0.875, 0.9])
def test_another_share_that_is_cut_out(share: float) -> None:
    cause = preprocessing_cause(CONTRACT, pictures(), made(replace(CONTRACT, crop_pct=share)))
    assert cause is not None and f"'bicubic' and crop_pct {share}, the contract has 'crop'" in cause
    cause = preprocessing_cause(replace(CONTRACT, crop_pct=share), pictures(), made(CONTRACT))
    assert cause is not None and "with resize 'crop' and interpolation 'bicubic' and crop_pct 1, the" in cause


def test_pictures_that_are_turned_or_mirrored() -> None:
    for transpose, said in (
        (Image.Transpose.FLIP_LEFT_RIGHT, "mirrored"), (Image.Transpose.ROTATE_180, "turned by 180°"),
        (Image.Transpose.ROTATE_90, "turned by 90°"),
    ):  # fmt: skip
        recorded = CONTRACT.together(
            [CONTRACT.prepare(CONTRACT.decode(each).transpose(transpose)) for each in pictures()]
        )
        cause = preprocessing_cause(CONTRACT, pictures(), recorded)
        assert cause == f"the golden pictures give the recorded tensors where they are {said}"


def test_features_and_tokens_that_differ() -> None:
    recorded = np.zeros((8, 4))
    found = recorded.copy()
    found[3, [1, 2]] = 0.5
    assert feature_cause(list("abcd"), found, recorded) == "2 of 4 features differ: 'b', 'c'"
    assert feature_cause(list("abcd"), recorded + 1, recorded) == "4 of 4 features differ: 'a', 'b', 'c' and 1 more"
    # What is refused for 1e-4 is named for it, too: it was said that none of four differs.
    small = recorded + np.asarray([0.0, 0.0, 5e-4, 0.0])
    assert feature_cause(list("abcd"), small, recorded) == "1 of 4 features differ: 'c'"
    small[1, 3] = np.nan
    assert feature_cause(list("abcd"), small, recorded) == "2 of 4 features differ: 'c', 'd'"
    said = feature_cause(list("abcd"), recorded, recorded[:, :3])
    assert said == "the contract makes 4 features, and those recorded are 3"
    texts = [np.asarray([1, 7, 2]), np.asarray([1, 8, 9, 2])]
    padded = [np.asarray([1, 7, 2, 0]), np.asarray([1, 8, 9, 2])]
    assert token_cause(texts, padded) is None
    assert token_cause(texts, [padded[0], padded[1] + 1]) == "token 0 of golden input 1 is 1 by the contract, and was 2"
    assert token_cause(texts, [padded[0], padded[1][:3]]) == "golden input 1 has 4 tokens by the contract, and had 3"


def test_another_size() -> None:
    cause = preprocessing_cause(CONTRACT, pictures(), made(replace(CONTRACT, height=16, width=16)))
    assert cause == "the contract makes tensors of 3×24×24, and those recorded are of 3×16×16"


def test_what_nothing_explains() -> None:
    noise = np.random.default_rng(1).normal(size=(3, 3, 24, 24))
    assert preprocessing_cause(CONTRACT, pictures(), noise) is None


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


class TestChangedInputs:
    """One step too many in the engine, which no other input takes back."""

    WEIGHTS = np.random.default_rng(3).normal(size=(3 * 24 * 24, 6)) / 24

    def network(self, inputs: np.ndarray) -> np.ndarray:
        return np.tanh(inputs.reshape(len(inputs), -1) @ self.WEIGHTS)

    def cause(self, fed: np.ndarray) -> str | None:
        inputs = made(CONTRACT)
        return changed_input_cause(CONTRACT, self.network, inputs, self.network(inputs), self.network(fed))

    def test_it_is_named(self) -> None:
        inputs = made(CONTRACT)
        mean, std = (np.asarray(values)[:, None, None] for values in (CONTRACT.mean, CONTRACT.std))
        for said, fed in {
            "normalised twice": (inputs - mean) / std,
            "not centred: the mean is not subtracted": inputs + mean / std,
            "divided by 255 once more": inputs / 255,
            "grey": np.broadcast_to(inputs.mean(1, keepdims=True), inputs.shape),
            "read in the order height, width, colour": inputs.reshape(-1, 24, 24, 3).transpose(0, 3, 1, 2),
        }.items():
            assert self.cause(fed) == f"it answers as PyTorch does to inputs that are {said}"

    def test_noise_is_none(self) -> None:
        inputs = made(CONTRACT)
        assert self.cause(inputs) is None
        assert self.cause(inputs + np.random.default_rng(0).normal(size=inputs.shape)) is None
