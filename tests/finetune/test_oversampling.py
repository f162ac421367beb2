"""Synthetic rows: what SMOTE must keep, whatever the table."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.errors import DataError, MissingExtraError
from edgetl.finetune.oversampling import Rows, oversampled
from edgetl.runtime.preprocessing.tables import Categorical, Numeric, TablePreprocessing

CLASSES = ("many", "few", "fewer")
INCOME = Numeric(name="income", mean=10.0, std=4.0, fill=9.0, missing=True)
AGE = Numeric(name="age", mean=40.0, std=12.0, fill=38.0)
HOME = Categorical(name="home", values=("own", "parents", "rent"), missing=True)
JOB = Categorical(name="job", values=("fixed", "free"))
MIXED = TablePreprocessing(columns=(AGE, HOME, INCOME, JOB))
NUMBERS = TablePreprocessing(columns=(AGE, Numeric(name="debt", mean=0.0, std=1.0, fill=0.0)))
NAMES = TablePreprocessing(columns=(HOME, JOB))
CONTRACTS = {"mixed": MIXED, "numbers": NUMBERS, "names": NAMES}


def value(column: Numeric | Categorical, random: np.random.Generator) -> Any:
    if column.missing and random.random() < 0.25:
        return None
    if isinstance(column, Numeric):
        return float(random.normal(column.mean, column.std))
    return str(random.choice([*column.values, "another"]))  # a name that the contract does not know is all zeros


def table(contract: TablePreprocessing, counts: tuple[int, ...], seed: int) -> Rows:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(counts)), counts))
    rows = [json.dumps({column.name: value(column, random) for column in contract.columns}) for _ in labels]
    return Rows(vectors=np.stack([contract(row) for row in rows]), labels=labels.astype(np.int64))


counts = st.tuples(st.integers(2, 30), st.integers(2, 12), st.integers(2, 6))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(CONTRACTS)), counts, st.integers(0, 1000))
def test_laws(name: str, sizes: tuple[int, ...], seed: int) -> None:
    contract = CONTRACTS[name]
    given_ = table(contract, sizes, seed)
    found = oversampled(given_, contract, CLASSES, seed)
    count = len(given_)
    # The given rows come first, in their order and bit for bit; then every class has as many as the largest.
    np.testing.assert_array_equal(found.vectors[:count], given_.vectors)
    np.testing.assert_array_equal(found.labels[:count], given_.labels)
    assert np.bincount(found.labels).tolist() == [max(sizes)] * 3
    assert found.vectors.dtype == np.float32 and found.labels.dtype == np.int64
    for label in range(3):
        own = given_.vectors[given_.labels == label]
        new = found.vectors[count:][found.labels[count:] == label]
        # Inside its class's range, number by number, and with no name that the class does not have.
        assert (new >= own.min(0)).all() and (new <= own.max(0)).all()
        place = 0
        for column in contract.columns:
            part = slice(place, place + len(column.features))
            place = part.stop
            if isinstance(column, Categorical):
                assert {tuple(row) for row in new[:, part]} <= {tuple(row) for row in own[:, part]}
                assert set(np.unique(new[:, part])) <= {0.0, 1.0}
            elif column.missing:
                flags = new[:, part.stop - 1]
                fill = contract.apply({c.name: None if c.missing else value(c, np.random.default_rng()) for c in
                                       contract.columns})[part.start]  # fmt: skip
                assert set(np.unique(flags)) <= {0.0, 1.0}
                assert (new[flags == 1.0, part.start] == fill).all()


def test_numbers_lie_between_two_neighbours_of_the_class() -> None:
    given_ = table(NUMBERS, (40, 6, 3), 4)
    found = oversampled(given_, NUMBERS, CLASSES, 0)
    few = given_.vectors[given_.labels == 1].astype(np.float64)
    new = found.vectors[len(given_) :][found.labels[len(given_) :] == 1]
    assert len(np.unique(new, axis=0)) == len(new) == 34, "they are new, and not copies"
    for row in new.astype(np.float64):
        ends = [(a, b) for a in few for b in few if a is not b]
        gaps = [abs(np.linalg.norm(row - a) + np.linalg.norm(row - b) - np.linalg.norm(a - b)) for a, b in ends]
        assert min(gaps) < 1e-5


def test_it_is_a_function_of_the_seed() -> None:
    given_ = table(MIXED, (30, 8, 4), 1)
    one, again, other = (oversampled(given_, MIXED, CLASSES, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.vectors, again.vectors)
    assert not np.array_equal(one.vectors, other.vectors)


def test_numbers_that_are_all_alike_in_a_class() -> None:
    """Distances between names have no unit then; the names stay valid."""
    given_ = table(MIXED, (20, 5, 3), 2)
    given_.vectors[given_.labels == 1, 0] = 0.5
    income = MIXED.features.index("income")
    given_.vectors[given_.labels == 1, income] = given_.vectors[0, income]
    given_.vectors[given_.labels == 1, income + 1] = 0.0
    found = oversampled(given_, MIXED, CLASSES, 0)
    assert (found.vectors[found.labels == 1, 0] == 0.5).all()
    assert set(np.unique(found.vectors[found.labels == 1][:, MIXED.features.index("job = fixed") :])) <= {0.0, 1.0}


def test_classes_of_equal_size_are_left_as_they_are() -> None:
    given_ = table(MIXED, (5, 5, 5), 0)
    found = oversampled(given_, MIXED, CLASSES, 0)
    np.testing.assert_array_equal(found.vectors, given_.vectors)
    single = Rows(vectors=given_.vectors[:2], labels=np.array([0, 1]))
    assert len(oversampled(single, MIXED, CLASSES, 0)) == 2


def test_a_class_of_one_row_is_named() -> None:
    with pytest.raises(DataError, match="a single row of the class 'fewer'") as caught:
        oversampled(table(MIXED, (9, 4, 1), 0), MIXED, CLASSES, 0)
    assert "sampler" in str(caught.value.hint)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imblearn", None)
    with pytest.raises(MissingExtraError, match="needs the Python package 'imblearn'") as caught:
        oversampled(table(MIXED, (9, 4, 2), 0), MIXED, CLASSES, 0)
    assert caught.value.hint == "pip install 'edgetl[train]'"


def test_rows_are_read_as_batches() -> None:
    rows = table(NUMBERS, (3, 2, 2), 0)
    vectors, labels = rows.collate(rows.__getitems__([(0, 6), (2, 0)]))
    np.testing.assert_array_equal(vectors.numpy(), rows.vectors[[6, 0]])
    assert labels.tolist() == rows.labels[[6, 0]].tolist()
