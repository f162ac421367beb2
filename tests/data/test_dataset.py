from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.data.dataset import Dataset, Sample
from edgetl.errors import DataError

some_samples = st.lists(
    st.builds(Sample, st.text("abc/ é", min_size=1).map(Path), st.integers(-1, 1), st.none() | st.text(), st.text()),
    max_size=4,
).map(tuple)
datasets = st.builds(Dataset, st.just(("cat", "dog")), some_samples, some_samples, some_samples)


@given(datasets)
def test_json_round_trip(dataset: Dataset) -> None:
    again = Dataset.from_json(json.loads(json.dumps(dataset.to_json())))
    assert again == dataset and again.digest() == dataset.digest()


DATASET = Dataset(
    ("cat", "dog"),
    (Sample(Path("/d/1.png"), 0, None, "a"), Sample(Path("/d/2.png"), 1, "g", "b")),
    (Sample(Path("/d/3.png"), 0, None, "c"),),
    (Sample(Path("/d/4.png"), 1, None, "d"),),
)


def test_the_digest_does_not_see_paths() -> None:
    moved = tuple(replace(sample, raw=Path("/e") / sample.raw.name) for sample in DATASET.train)
    assert replace(DATASET, train=moved).digest() == DATASET.digest()


@pytest.mark.parametrize(
    "other",
    [
        replace(DATASET, classes=("dog", "cat")),
        replace(DATASET, train=DATASET.train[::-1]),
        replace(DATASET, val=DATASET.test, test=DATASET.val),
        replace(DATASET, test=(replace(DATASET.test[0], label=0),)),
        replace(DATASET, test=(replace(DATASET.test[0], digest="x"),)),
        replace(DATASET, test=(replace(DATASET.test[0], group="x"),)),
    ],
)
def test_the_digest_sees_everything_else(other: Dataset) -> None:
    assert other.digest() != DATASET.digest()


def test_the_digest_of_classes_sees_order_and_borders() -> None:
    assert DATASET.classes_digest() == replace(DATASET, test=()).classes_digest()
    digests = {replace(DATASET, classes=names).classes_digest() for names in (("a", "b"), ("b", "a"), ("ab",))}
    assert len(digests) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2}, {"train": 3}, {"classes": None}, {"val": [["/d/1.png", 2, None, "a"]]},
        {"val": [["/d/1.png", "0", None, "a"]]}, {"val": [["/d/1.png", 0, "a"]]}, {"val": [[1, 0, None, "a"]]},
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match="the stored data set"):
        Dataset.from_json({**DATASET.to_json(), **change})
    values = DATASET.to_json()
    del values["test"]
    with pytest.raises(DataError, match="cannot be read"):
        Dataset.from_json(values)
