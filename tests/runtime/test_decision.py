"""Decisions: what they answer, that they travel as JSON, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgetl.errors import ModelError
from edgetl.runtime.decision import (
    Decision,
    Largest,
    MultiLabel,
    Prediction,
    Similarity,
    Threshold,
    cosines,
    from_json,
    second_probability,
    sigmoid,
    softmax,
)

LOGITS = np.array([[2.0, 1.0, -1.0], [0.0, 0.5, 0.25]], dtype=np.float32)
LABELS = ("ant", "bee", "cat")
DECISIONS: list[Decision] = [
    Largest(),
    Threshold(threshold=0.25),
    MultiLabel(thresholds=(0.5, 0.25, 0.75)),
    Similarity(threshold=0.4),
]
calm = settings(max_examples=50, deadline=None)
floats = st.floats(-1e4, 1e4, width=32)
pairs = arrays(np.float32, st.tuples(st.integers(1, 8), st.just(2)), elements=floats)


class TestLargest:
    def test_it_names_the_largest(self) -> None:
        found = Largest().answers(LOGITS, LABELS)
        assert [each.label for each in found] == ["ant", "bee"]
        assert Largest().decide(LOGITS).tolist() == [0, 1]
        assert found[0].probability == pytest.approx(np.exp(2) / np.exp([2, 1, -1]).sum())
        assert found[0].top[0] == ("ant", found[0].probability)
        assert sum(share for _, share in found[0].top) == pytest.approx(1.0)
        assert found[0].present == ()

    def test_of_equal_outputs_the_first(self) -> None:
        assert Largest().decide(np.zeros((2, 4))).tolist() == [0, 0]

    def test_at_most_five_are_listed(self) -> None:
        found = Largest().answers(np.arange(8.0)[None], [str(number) for number in range(8)])[0]
        assert [label for label, _ in found.top] == ["7", "6", "5", "4", "3"]

    def test_no_sample_has_no_answer(self) -> None:
        assert Largest().answers(np.zeros((0, 3)), LABELS) == []


class TestThreshold:
    @calm
    @given(pairs, st.floats(0, 1))
    def test_it_is_the_second_class_from_the_threshold_on(self, outputs: np.ndarray, threshold: float) -> None:
        expected = second_probability(outputs) >= threshold
        assert Threshold(threshold=threshold).decide(outputs).tolist() == expected.astype(int).tolist()

    @calm
    @given(pairs)
    def test_the_probability_is_the_softmax(self, outputs: np.ndarray) -> None:
        assert second_probability(outputs) == pytest.approx(softmax(outputs)[:, 1], abs=1e-12)

    def test_the_answer_need_not_be_the_more_probable(self) -> None:
        found = Threshold(threshold=0.25).answers(np.array([[1.0, 0.0]]), ("good", "bad"))[0]
        assert found.label == "bad"
        assert found.probability == pytest.approx(sigmoid(np.array(-1.0)))
        assert found.top[0][0] == "good"

    def test_three_classes_have_no_threshold(self) -> None:
        with pytest.raises(ModelError, match="between two classes, and the model has 3 outputs"):
            Threshold(threshold=0.5).decide(LOGITS)


class TestMultiLabel:
    DECISION = MultiLabel(thresholds=(0.5, 0.9, 0.2))

    def test_each_class_has_its_threshold(self) -> None:
        flags = self.DECISION.decide(LOGITS)
        assert flags.dtype == np.uint8
        assert flags.tolist() == [[1, 0, 1], [1, 0, 1]]

    def test_those_that_are_present_are_named(self) -> None:
        found = self.DECISION.answers(LOGITS, LABELS)[0]
        assert found.label == "ant;cat"
        assert [name for name, _ in found.present] == ["ant", "cat"]
        assert found.probability == found.present[-1][1] == pytest.approx(sigmoid(np.array(-1.0)))
        assert [name for name, _ in found.top] == ["ant", "bee", "cat"]

    def test_none_may_be_present(self) -> None:
        found = self.DECISION.answers(np.full((1, 3), -9.0), LABELS)[0]
        assert (found.label, found.probability, found.present) == ("", 0.0, ())
        assert len(found.top) == 3

    def test_there_is_a_threshold_for_each_output(self) -> None:
        with pytest.raises(ModelError, match="3 thresholds for 2 outputs"):
            self.DECISION.decide(LOGITS[:, :2])


class TestSimilarity:
    def test_two_of_one_identity_point_the_same_way(self) -> None:
        decision = Similarity(threshold=0.5)
        first = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        second = np.array([[3.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
        assert decision.same(first, second).tolist() == [True, False, False]
        assert decision.same(first[:1], second).tolist() == [True, False, False]
        assert cosines(first, second) == pytest.approx([3 / np.hypot(3, 0.1), 0.0, -1.0])

    def test_the_threshold_itself_is_accepted(self) -> None:
        assert Similarity(threshold=1.0).same(np.eye(2), np.eye(2)).all()
        assert not Similarity(threshold=1.0 + 1e-12).same(np.eye(2), np.eye(2)).any()

    @calm
    @given(arrays(np.float32, (3, 4), elements=floats), arrays(np.float32, (3, 4), elements=floats))
    def test_cosines_are_symmetric_and_bounded(self, first: np.ndarray, second: np.ndarray) -> None:
        found = cosines(first, second)
        assert (np.abs(found) <= 1.0).all()
        assert found == pytest.approx(cosines(second, first))

    def test_an_embedding_alone_has_no_answer(self) -> None:
        for ask in (lambda: Similarity(threshold=0.5).decide(LOGITS), lambda: DECISIONS[3].answers(LOGITS, LABELS)):
            with pytest.raises(ModelError, match="two by two"):
                ask()

    @pytest.mark.parametrize("second", [np.zeros((3, 2)), np.zeros((2, 3)), np.zeros(3)])
    def test_shapes_must_fit(self, second: np.ndarray) -> None:
        with pytest.raises(ModelError):
            cosines(np.ones((2, 2)), second)


class TestNumbers:
    @calm
    @given(arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-1e300, 1e300)))
    def test_probabilities_do_not_overflow(self, logits: np.ndarray) -> None:
        with np.errstate(over="raise", invalid="raise"):
            single, several = softmax(logits), sigmoid(logits)
        assert single.sum(1) == pytest.approx(1.0)
        assert ((several >= 0) & (several <= 1)).all()

    @calm
    @given(st.floats(-30, 30))
    def test_sigmoid_is_its_formula(self, value: float) -> None:
        assert sigmoid(np.array([value]))[0] == pytest.approx(1 / (1 + np.exp(-value)))

    @pytest.mark.parametrize("decision", DECISIONS[:3])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_outputs_that_are_not_finite_are_no_answer(self, decision: Decision, bad: float) -> None:
        outputs = np.zeros((2, 2 if decision.kind == "threshold" else 3))
        outputs[1, 1] = bad
        with pytest.raises(ModelError, match="NaN or infinite"):
            decision.decide(outputs)
        with pytest.raises(ModelError, match="NaN or infinite"):
            decision.answers(outputs, LABELS[: outputs.shape[1]])

    @pytest.mark.parametrize("outputs", [np.zeros(3), np.zeros((1, 3, 1)), np.zeros((2, 0))])
    def test_outputs_are_one_row_per_sample(self, outputs: np.ndarray) -> None:
        with pytest.raises(ModelError, match="of the shape"):
            Largest().decide(outputs)

    def test_there_is_a_label_for_each_output(self) -> None:
        for decision in (Largest(), MultiLabel(thresholds=(0.5,) * 3)):
            with pytest.raises(ModelError, match="2 labels for 3 outputs"):
                decision.answers(LOGITS, LABELS[:2])


class TestJson:
    @pytest.mark.parametrize("decision", DECISIONS, ids=lambda each: str(each.kind))
    def test_it_comes_back_as_it_was(self, decision: Decision) -> None:
        assert from_json(json.loads(json.dumps(decision.to_json()))) == decision

    @calm
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
    def test_every_threshold_comes_back_to_the_bit(self, thresholds: list[float]) -> None:
        decision = MultiLabel(thresholds=tuple(thresholds))
        assert from_json(json.loads(json.dumps(decision.to_json()))) == decision

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"kind": "biggest"},
            {"kind": 3},
            {"kind": ["largest"]},
            {"kind": "largest", "threshold": 0.5},
            {"kind": "threshold"},
            {"kind": "threshold", "threshold": 1.5},
            {"kind": "threshold", "threshold": float("nan")},
            {"kind": "threshold", "threshold": "0.5"},
            {"kind": "threshold", "threshold": True},
            {"kind": "threshold", "threshold": [0.5]},
            {"kind": "threshold", "threshold": 0.5, "more": 1},
            {"kind": "multi-label", "thresholds": 0.5},
            {"kind": "multi-label", "thresholds": [0.5, None]},
            {"kind": "multi-label", "thresholds": [0.5, -0.1]},
            {"kind": "multi-label", "thresholds": []},
            {"kind": "similarity", "threshold": -1.5},
            {"kind": "similarity", "threshold": float("nan")},
        ],
    )
    def test_what_is_no_decision_is_refused(self, values: dict[str, Any]) -> None:
        with pytest.raises(ModelError, match="decision"):
            from_json(values)

    def test_a_decision_does_not_change(self) -> None:
        with pytest.raises(FrozenInstanceError):
            DECISIONS[1].threshold = 0.1  # type: ignore[misc,attr-defined]

    def test_a_prediction_is_plain_values(self) -> None:
        found = Largest().answers(LOGITS, LABELS)[0]
        assert isinstance(found, Prediction)
        assert json.loads(json.dumps(asdict(found)))["label"] == "ant"


ANY_LOGITS = arrays(np.float32, array_shapes(min_dims=1, max_dims=2), elements=st.floats(-1e4, 1e4, width=32))


@given(ANY_LOGITS, st.floats(-1e4, 1e4, width=16))
def test_softmax_sums_to_one_keeps_the_order_and_sees_no_shift(logits: np.ndarray, shift: float) -> None:
    found = softmax(logits)
    assert found.shape == logits.shape and np.all((found >= 0) & (found <= 1))
    np.testing.assert_allclose(found.sum(-1), 1.0)
    assert np.all(np.diff(np.take_along_axis(found, np.argsort(logits, axis=-1), axis=-1), axis=-1) >= 0)
    np.testing.assert_allclose(softmax(logits.astype(np.float64) + shift), found, atol=1e-9)


def test_softmax_of_known_values_and_of_very_large_ones() -> None:
    np.testing.assert_allclose(softmax(np.log(np.array([1.0, 2.0, 5.0]))), [0.125, 0.25, 0.625])
    np.testing.assert_allclose(softmax(np.array([3e38, 3e38, -3e38], np.float32)), [0.5, 0.5, 0.0])
