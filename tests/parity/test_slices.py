"""Which part of the test split an engine is worse on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import DataError
from edgetl.parity.slices import slices


def test_counts_by_hand() -> None:
    reference = np.array([True, True, True, False, True, True])
    engine = np.array([False, True, True, True, True, True])
    found = {each.value: each for each in slices(reference, engine, {"light": [*"ddnnn", ""]}, 0.95)}
    assert set(found) == {"d", "n"}
    assert (found["d"].decisions, found["d"].worse, found["d"].better, found["d"].drop) == (2, 1, 0, 0.5)
    assert (found["n"].decisions, found["n"].worse, found["n"].better) == (3, 0, 1)
    assert found["d"].p_value == 0.5 and found["d"].p_adjusted == 1.0 and not found["d"].regressed


def test_of_several_classes_each_is_a_slice_over_all_samples() -> None:
    reference, engine = np.ones((40, 3), dtype=bool), np.ones((40, 3), dtype=bool)
    engine[:12, 1] = False
    found = slices(reference, engine, {}, 0.95, classes=("a", "b", "c"))
    first = found[0]
    assert (first.value, first.decisions, first.worse, first.regressed) == ("b", 40, 12, True)
    assert not any(each.regressed for each in found[1:])


def test_false_alarms_are_no_more_than_stated_however_many_slices_there_are() -> None:
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        groups = [str(value) for value in random.integers(0, 30, 600)]
        reference, engine = random.random(600) < 0.9, random.random(600) < 0.9
        alarms += any(each.regressed for each in slices(reference, engine, {"g": groups}, 0.95))
    assert alarms <= 0.05 * 300


def test_labels_of_one_sample_that_change_together_are_no_more_evidence_than_the_sample() -> None:
    """An engine as good as the reference, which changes a sample's labels all to the better or all to the worse."""
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        reference = random.random((300, 20)) < 0.9
        engine = reference.copy()
        sign, touched = random.choice([-1, 0, 1], 300, p=[0.03, 0.94, 0.03])[:, None], random.random((300, 20)) < 0.4
        reference[(sign != 0) & touched] = (sign > 0).repeat(20, 1)[(sign != 0) & touched]
        engine[(sign != 0) & touched] = (sign < 0).repeat(20, 1)[(sign != 0) & touched]
        cameras = random.choice(list("abc"), 300).tolist()
        alarms += any(each.regressed for each in slices(reference, engine, {"camera": cameras}, 0.95))
    assert alarms <= 0.05 * 200 + 6  # two standard errors; counted label by label they were half of all


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("abc")), min_size=1, max_size=60))
def test_slices_of_a_column_add_up(rows: list[tuple[bool, bool, str]]) -> None:
    reference, engine = (np.array([row[place] for row in rows]) for place in (0, 1))
    found = slices(reference, engine, {"g": [row[2] for row in rows]}, 0.9)
    assert sum(each.decisions for each in found) == len(rows)
    assert sum(each.worse for each in found) == int((reference & ~engine).sum())
    assert all(each.p_value <= each.p_adjusted <= 1.0 for each in found)


def test_what_does_not_fit_together() -> None:
    with pytest.raises(DataError, match="do not fit together"):
        slices(np.ones(3, dtype=bool), np.ones(4, dtype=bool), {}, 0.95)
    with pytest.raises(DataError, match="column 'g' has 2 values for 3 samples"):
        slices(np.ones(3, dtype=bool), np.ones(3, dtype=bool), {"g": ["a", "b"]}, 0.95)
