"""Parity: the paired confidence bound against published values and by simulation, and what is made of it."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetl.errors import DataError, ParityError
from edgetl.metrics import metric
from edgetl.parity.bounds import (
    least_bound,
    samples_needed,
    upper_bound,
)
from edgetl.parity.compare import Comparison, compare
from edgetl.parity.numeric import Tolerance, sqnr_db
from edgetl.runtime.decision import MultiLabel, Similarity

# --- SQNR ------------------------------------------------------------------------------------------------------------


def test_sqnr_of_known_signals() -> None:
    signal = np.array([[3.0, 4.0]])
    assert sqnr_db(signal, signal) == 200.0
    assert sqnr_db(signal, signal + np.array([[0.3, 0.4]])) == pytest.approx(20.0)
    assert sqnr_db(signal, np.zeros_like(signal)) == pytest.approx(0.0)
    assert sqnr_db(np.zeros((1, 2)), signal) == -200.0
    assert sqnr_db(np.zeros((1, 2)), np.zeros((1, 2))) == 200.0


def test_sqnr_of_a_signal_that_is_nothing_beside_the_difference() -> None:
    """The ratio of their powers is less than any number; its logarithm is not."""
    assert sqnr_db(np.full(3, 2.9e-162), np.full(3, 2.0)) == -200.0


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_sqnr_does_not_depend_on_the_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    signal, noise = rng.normal(size=(4, 3)), 0.01 * rng.normal(size=(4, 3))
    one = sqnr_db(signal, signal + noise)
    assert sqnr_db(scale * signal, scale * (signal + noise)) == pytest.approx(one)
    assert sqnr_db(signal, signal + 10 * noise) == pytest.approx(one - 20)


# --- the comparison --------------------------------------------------------------------------------------------------


def logits(classes: list[int], count: int = 4) -> NDArray[np.float32]:
    """One row per sample that names the given class."""
    return np.eye(count, dtype=np.float32)[classes] * 8


def comparing(
    reference: list[int],
    got: list[int],
    labels: list[int],
    *,
    max_drop: float = 0.01,
    confidence: float = 0.95,
    sequential: bool = False,
) -> Comparison:
    arrays = logits(reference), logits(got), np.array(labels)
    return compare(*arrays, max_drop=max_drop, confidence=confidence, sequential=sequential)


def test_the_counts() -> None:
    #          both right, worse, better, both wrong alike, both wrong differently
    found = comparing([0, 0, 1, 1, 1], [0, 1, 0, 1, 2], [0, 0, 0, 0, 0])
    assert (found.samples, found.worse, found.better) == (5, 1, 1)
    assert (found.score_reference, found.score, found.drop) == (0.4, 0.4, 0.0)
    assert found.agreement == pytest.approx(2 / 5)
    assert found.drop_upper == upper_bound(1, 1, 5, 0.95)


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=40))
def test_laws_of_a_comparison(rows: list[tuple[int, int, int]]) -> None:
    reference, got, labels = (list(column) for column in zip(*rows, strict=True))
    found, swapped = comparing(reference, got, labels), comparing(got, reference, labels)
    assert found.drop == pytest.approx(found.score_reference - found.score)
    assert (found.worse, found.better) == (swapped.better, swapped.worse)
    assert (found.agreement, found.max_abs_error) == (swapped.agreement, swapped.max_abs_error)
    assert found.passed == (found.drop_upper <= found.max_drop)
    assert (found.outcome == "failed") == (found.drop_lower > found.max_drop)
    assert found.interval[0] <= found.drop_lower <= found.drop <= found.drop_upper <= found.interval[1]
    assert found.interval == pytest.approx((-swapped.interval[1], -swapped.interval[0]), abs=1e-9)
    assert found.p_value == swapped.p_value
    assert (found.samples_to_decide is None) or found.outcome == "undecided"
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()


def test_the_same_engine_passes_with_samples_enough_and_says_so() -> None:
    labels = [index % 4 for index in range(299)]
    found = comparing(labels, labels, labels)
    assert found.passed
    assert (found.agreement, found.max_abs_error, found.sqnr_db) == (1.0, 0.0, 200.0)
    assert found.statement == "with 95% confidence top-1 drops by less than 0.997 points (allowed 1.000)"


def test_too_few_samples_show_nothing_even_for_the_same_engine() -> None:
    labels = [index % 4 for index in range(298)]
    found = comparing(labels, labels, labels)
    assert not found.passed
    assert found.statement == (
        "298 test samples cannot show a drop below 1.00 points with 95% confidence: at least 299 are needed"
    )


def test_a_real_drop_fails_with_its_size() -> None:
    labels = [0] * 1000
    found = comparing(labels, [1] * 30 + [0] * 970, labels)
    assert found.outcome == "failed" and not found.passed
    assert found.statement == ("top-1 drops by 3.00 points, with 95% confidence by at least 2.17, and 1.00 are allowed")


def test_what_samples_do_not_decide_is_undecided_and_says_what_would() -> None:
    labels = [0] * 1000
    found = comparing(labels, [1] * 8 + [0] * 992, labels)
    assert found.outcome == "undecided" and not found.passed
    assert found.drop_lower <= found.max_drop < found.drop_upper
    assert found.samples_to_decide is not None and found.samples_to_decide > 1000
    assert found.statement == (
        "undecided: top-1 drops by 0.80 points on these 1000 samples; with 95% confidence it may drop by up to 1.44,"
        f" and 1.00 are allowed; some {-(-found.samples_to_decide // 1000) * 1000:,} samples would decide it"
    )


def test_a_drop_of_just_what_is_allowed_is_never_decided() -> None:
    labels = [0] * 1000
    found = comparing(labels, [1] * 10 + [0] * 990, labels)
    assert found.outcome == "undecided" and found.samples_to_decide is None
    assert found.statement.endswith("it may be just that")


def test_a_sequential_comparison_decides_by_its_own_test() -> None:
    labels = [index % 4 for index in range(364)]
    found = comparing(labels, labels, labels, sequential=True)
    assert found.passed and found.samples_to_decide is None
    assert found.statement == (
        "after 364 test samples it is sure, with 95% confidence, that top-1 drops by less than 1.00 points"
    )
    fewer = comparing(labels[:300], labels[:300], labels[:300], sequential=True)
    assert fewer.outcome == "undecided" and comparing(labels[:300], labels[:300], labels[:300]).passed
    failed = comparing([0] * 400, [1] * 200 + [0] * 200, [0] * 400, sequential=True)
    assert failed.outcome == "failed" and "drops by more than 1.00 points" in failed.statement
    values = np.eye(2, dtype=np.float32)[np.arange(40) % 2]
    with pytest.raises(DataError, match="AUC is none of them"):
        compare(values, values, np.arange(40) % 2, max_drop=0.1, confidence=0.9, metric=metric("auc"), sequential=True)


def test_numbers_beyond_their_tolerance_fail_whatever_the_decisions_are() -> None:
    labels = np.zeros(1000, dtype=np.int64)
    reference = np.tile(np.array([[4.0, 1.0]], dtype=np.float32), (1000, 1))
    found = compare(
        reference, reference * 1.1, labels, max_drop=0.01, confidence=0.95, tolerance=Tolerance(sqnr_db=30.0)
    )
    assert found.outcome == "failed" and found.agreement == 1.0
    assert found.statement == "SQNR is 20 dB, at least 30 dB is asked for"
    kept = compare(
        reference, reference * 1.001, labels, max_drop=0.01, confidence=0.95, tolerance=Tolerance(sqnr_db=30.0)
    )
    assert kept.passed


def test_a_class_that_is_lost_is_named_though_the_whole_passes() -> None:
    labels = np.arange(20_000) % 100
    reference = np.eye(100, dtype=np.float32)[labels]
    got = reference.copy()
    lost = np.flatnonzero(labels == 7)[:60]
    got[lost] = np.eye(100, dtype=np.float32)[8]
    names = [f"c{index}" for index in range(100)]
    columns = {"light": ["night" if index in set(lost.tolist()) else "day" for index in range(20_000)]}
    found = compare(reference, got, labels, max_drop=0.01, confidence=0.95, classes=names, columns=columns)
    assert found.passed
    regressed = {(each.column, each.value): round(each.drop, 9) for each in found.slices if each.regressed}
    assert regressed == {("class", "c7"): 0.3, ("light", "night"): 1.0}
    assert len(found.slices) == 102


def test_the_last_bits_of_a_metric_are_no_rise_and_no_drop() -> None:
    """The errors of one class on another one: macro-F1 is the same, and was said to drop by 0.00000000 points."""
    random, labels, turned = np.random.default_rng(2), np.arange(480) % 3, np.array([1, 2, 0])
    first, second = labels.copy(), labels.copy()
    first[random.choice(480, 12, replace=False)] = random.integers(0, 3, 12)
    for label in range(3):
        second[labels == turned[label]] = turned[first[labels == label]]
    for one, other in ((first, second), (second, first)):
        found = compare(
            np.eye(3)[one], np.eye(3)[other], labels, max_drop=0.01, confidence=0.95, metric=metric("macro-f1")
        )
        assert found.drop == pytest.approx(0.0, abs=1e-12)
        assert found.statement.startswith("undecided: macro-F1 drops by 0.00 points on these 480 samples; with 95% con")


def test_a_better_engine_passes() -> None:
    assert comparing([1] * 30 + [0] * 970, [0] * 1000, [0] * 1000).passed


def test_the_statement_does_not_round_the_confidence() -> None:
    labels = [0] * 1000
    assert "with 97.5% confidence" in comparing(labels, labels, labels, confidence=0.975).statement
    assert "with 99.99999% confidence" in comparing(labels, labels, labels, confidence=0.9999999).statement


def test_a_statement_tells_a_limit_from_nothing_and_a_rise_from_a_drop() -> None:
    labels = [0] * 1000
    assert "below 0.001 points" in comparing(labels, labels, labels, max_drop=1e-5).statement
    found = comparing([1] * 100 + [0] * 900, labels, labels)
    assert re.match(r"with 95% confidence top-1 rises by at least 8\.\d\d points \(a drop of 1\.00 is", found.statement)
    undecided = comparing([1] * 30 + [0] * 970, [0] * 30 + [1] * 28 + [0] * 942, labels)
    assert undecided.statement.startswith("undecided: top-1 rises by 0.20 points on these 1000 samples; with 95% conf")


@pytest.mark.parametrize(
    ("max_drop", "confidence"), [(0.0, 0.95), (-0.1, 0.95), (1.1, 0.95), (math.nan, 0.95), (0.01, 1.0), (0.01, 0.5)]
)
def test_a_gate_that_is_none(max_drop: float, confidence: float) -> None:
    with pytest.raises(DataError, match="parity needs 0 < max_drop <= 1"):
        comparing([0] * 9, [0] * 9, [0] * 9, max_drop=max_drop, confidence=confidence)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_no_class_has(label: int) -> None:
    labels = np.array([0, label])
    with pytest.raises(DataError, match="for 4 classes"):
        compare(logits([0, 1]), logits([0, 1]), labels, max_drop=0.01, confidence=0.95, classes=("a", "b", "c", "d"))


def test_samples_of_a_rare_class_are_forecast_by_their_number() -> None:
    """What few samples leave open falls with their number, not with its root: of 300 with 15, four times as many do."""
    labels = np.repeat([0, 1, 2], [200, 85, 15])
    exact = np.eye(3)[labels]
    found = compare(exact, exact.copy(), labels, max_drop=0.016, confidence=0.95, metric=metric("macro-f1"))
    assert found.outcome == "undecided" and found.samples_to_decide is not None
    needed = int(1.1 * found.samples_to_decide) // 300 + 1
    more, many = np.tile(exact, (needed, 1)), np.tile(labels, needed)
    assert compare(more, more.copy(), many, max_drop=0.016, confidence=0.95, metric=metric("macro-f1")).passed
    assert 900 < found.samples_to_decide < 1400


@pytest.mark.parametrize("name", ["macro-f1", "auc"])
def test_no_test_set_tells_a_smaller_drop_than_so_many_equal_samples_rule_out(name: str) -> None:
    """An engine that returned NaN was said to have shown a drop of nothing."""
    random = np.random.default_rng(4)
    reference, labels = random.normal(size=(300, 2)), random.integers(0, 2, 300)
    reference[:, 1] += 9.0 * (labels - 0.5)
    nothing = np.full((300, 2), np.nan)
    for outputs, least in ((nothing, 1.0), (reference, least_bound(300, 0.95))):
        found = compare(reference, outputs, labels, max_drop=0.01, confidence=0.95, metric=metric(name))
        assert found.detectable_drop >= least


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_engine_with_nan_or_infinite_outputs_fails(bad: float) -> None:
    labels = np.zeros(1000, dtype=np.int64)
    reference = logits([0] * 1000)
    outputs = reference.copy()
    outputs[5, 3] = bad  # the right class may still be the largest
    found = compare(reference, outputs, labels, max_drop=1.0, confidence=0.95)
    assert not found.passed
    assert found.worse == 1
    assert found.sqnr_db == -200.0
    assert found.statement == "the engine returned NaN or infinite values"
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_decides_nothing_about_labels_and_pairs_either(bad: float) -> None:
    """Zeros in its place would name every label whose threshold is a half or less, and some of them rightly."""
    reference = np.where(np.arange(40)[:, None] % np.array([2, 3, 5]) == 0, 4.0, -4.0)
    outputs = reference.copy()
    outputs[:10, 1] = bad
    truth = (reference > 0).astype(np.int64)
    several = MultiLabel(thresholds=(0.5, 0.5, 0.5))
    found = compare(reference, outputs, truth, max_drop=0.5, confidence=0.95, metric=metric("map"), decision=several)
    assert (found.worse, found.better, found.agreement) == (30, 0, 0.75)
    people = np.repeat(np.arange(4), 10)
    points = np.eye(4)[people]
    outputs = points.copy()
    outputs[0] = bad
    alike = Similarity(threshold=0.5)
    found = compare(points, outputs, people, max_drop=0.5, confidence=0.95, metric=metric("tar"), decision=alike)
    assert found.worse == 39 and found.agreement == pytest.approx(1 - 39 / 780)


def test_a_reference_with_nan_proves_nothing() -> None:
    labels = np.zeros(500, dtype=np.int64)
    reference = logits([0] * 500)
    reference[7] = np.nan
    with pytest.raises(ParityError, match="the PyTorch model itself returns NaN"):
        compare(reference, logits([0] * 500), labels, max_drop=0.01, confidence=0.95)


@pytest.mark.parametrize(
    ("outputs", "labels", "said"),
    [
        (np.zeros((3, 4)), np.zeros(4, int), r"the engine \[3, 4\]"),
        (np.zeros((4, 5)), np.zeros(4, int), r"the engine \[4, 5\]"),
        (np.zeros((4, 4)), np.zeros(3, int), "for 3 labels"),
    ],
)
def test_what_does_not_fit_together(outputs: NDArray[np.float64], labels: NDArray[np.int64], said: str) -> None:
    with pytest.raises(DataError, match=said):
        compare(np.zeros((4, 4)), outputs, labels, max_drop=0.01, confidence=0.95)


def test_no_sample() -> None:
    with pytest.raises(DataError, match="at least one test sample"):
        compare(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(0, int), max_drop=0.01, confidence=0.95)


def test_float16_outputs_are_compared_in_double() -> None:
    reference = np.full((300, 2), 60_000.0, dtype=np.float16)
    found = compare(reference, -reference, np.zeros(300, int), max_drop=1.0, confidence=0.95)
    assert found.max_abs_error == 120_000.0  # float16 ends at 65,504


# --- samples that belong together -------------------------------------------------------------------------------------


def answers(right: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Outputs of two classes that are right just there, and the labels."""
    labels = np.arange(len(right)) % 2
    return np.eye(2)[np.where(right, labels, 1 - labels)], labels


def in_groups(right: NDArray[np.bool_], groups: list[str | None] | None, **more: object) -> Comparison:
    """Of an engine that is right just there, against a reference that always is."""
    reference, labels = answers(np.ones(len(right), dtype=bool))
    settings: dict[str, object] = {"max_drop": 0.05, "confidence": 0.95, **more}
    return compare(reference, answers(right)[0], labels, groups=groups, **settings)


class TestGroups:
    def test_what_errs_together_is_one_error(self) -> None:
        """Forty frames of four videos are no forty pictures: the bound was that of forty errors each by itself."""
        right = np.ones(2000, dtype=bool)
        right[:40] = False
        groups = [f"video {place // 10}" for place in range(2000)]
        alone, together = in_groups(right, None), in_groups(right, groups)
        assert alone.drop == together.drop == 0.02
        assert alone.outcome == "passed" and alone.groups is None
        assert together.groups == 200 and together.drop_upper > alone.drop_upper + 0.01
        few = in_groups(right[:400], groups[:400], max_drop=0.2)
        assert few.groups == 40 and few.outcome == "undecided"
        assert "on these 400 samples in 40 groups" in few.statement

    def test_errors_that_fall_apart_cost_little(self) -> None:
        right = np.random.default_rng(0).random(3000) > 0.02
        alone = in_groups(right, None)
        together = in_groups(right, [str(place // 3) for place in range(3000)])
        assert alone.drop_upper <= together.drop_upper < alone.drop_upper + 0.003
        assert together.outcome == alone.outcome == "passed"

    @pytest.mark.parametrize("groups", [None, [None] * 400, [""] * 400, [str(place) for place in range(400)]])
    def test_samples_by_themselves_are_as_before(self, groups: list[str | None] | None) -> None:
        right = np.random.default_rng(1).random(400) > 0.03
        assert in_groups(right, groups) == in_groups(right, None)

    def test_so_few_groups_show_nothing(self) -> None:
        right = np.ones(500, dtype=bool)
        one = in_groups(right, ["a"] * 500)
        assert one.outcome == "undecided" and (one.drop_lower, one.drop_upper) == (-1.0, 1.0)
        found = in_groups(right, [str(place % 20) for place in range(500)])
        assert found.outcome == "undecided" and found.drop_upper == pytest.approx(least_bound(20, 0.95))
        assert "500 test samples in 20 groups cannot show a drop below 5.00 points" in found.statement
        assert f"at least {samples_needed(0.05, 0.95)} groups are needed" in found.statement
        assert found.samples_to_decide is not None and found.samples_to_decide >= 25 * samples_needed(0.05, 0.95)

    def test_p_is_that_of_groups(self) -> None:
        right = np.ones(300, dtype=bool)
        right[:30] = False
        assert in_groups(right, None).p_value == pytest.approx(2.0**-29)
        # Three groups lose everything: as likely as three heads, or three tails.
        assert in_groups(right, [str(place // 10) for place in range(300)]).p_value == pytest.approx(0.25)

    def test_a_class_is_no_worse_for_one_group(self) -> None:
        right = np.ones(600, dtype=bool)
        right[:60] = False
        groups = [str(place // 30) for place in range(600)]
        alone = in_groups(right, None, classes=["even", "odd"]).slices
        together = in_groups(right, groups, classes=["even", "odd"]).slices
        assert any(each.regressed for each in alone) and not any(each.regressed for each in together)
        assert {(each.value, each.worse) for each in alone} == {(each.value, each.worse) for each in together}

    @pytest.mark.parametrize("name", ["macro-f1", "auc"])
    def test_other_metrics_draw_groups(self, name: str) -> None:
        random = np.random.default_rng(2)
        labels = np.arange(600) % 2
        reference = random.normal(size=(600, 2)) + 2.0 * np.eye(2)[labels]
        group = np.arange(600) // 20
        outputs = reference + random.normal(size=(30, 2))[group]
        more: dict[str, object] = {"max_drop": 0.05, "confidence": 0.95, "metric": metric(name)}
        alone = compare(reference, outputs, labels, **more)
        together = compare(reference, outputs, labels, groups=group.astype(str).tolist(), **more)
        assert together.groups == 30 and together.drop == alone.drop
        assert together.drop_upper > alone.drop_upper

    def test_what_cannot_be(self) -> None:
        right = np.ones(10, dtype=bool)
        with pytest.raises(DataError, match="there are 3 groups for 10 samples"):
            in_groups(right, ["a", "b", "c"])
        with pytest.raises(DataError, match="these belong together"):
            in_groups(right, ["a"] * 10, sequential=True)
