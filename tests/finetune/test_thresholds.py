"""Thresholds: the best there is by search over all of them, halfway between values, and what cannot be chosen."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgetl.errors import DataError
from edgetl.finetune import thresholds
from edgetl.metrics import metric, verification
from edgetl.runtime.decision import MultiLabel, Similarity, Threshold, second_probability, sigmoid

calm = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 10**6)


def two(seed: int, n: int = 30, share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random(n) < share).astype(np.int64)
    return np.round(random.normal(size=(n, 2)) + np.eye(2)[labels], 1).astype(np.float32), labels


def several(seed: int, n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random((n, 3)) < 0.3).astype(np.int64)
    return np.round(random.normal(size=(n, 3)) + 1.5 * labels - 1, 1).astype(np.float32), labels


def f1(labels: np.ndarray, named: np.ndarray) -> float:
    return 2.0 * float((labels * named).sum()) / max(float((labels + named).sum()), 1.0)


def balanced(labels: np.ndarray, named: np.ndarray) -> float:
    return float(np.mean([(named[labels == label] == label).mean() for label in (0, 1)]))


class TestChoice:
    @calm
    @given(seeds, st.sampled_from(["top1", "macro-f1"]))
    def test_it_is_the_best_of_the_three_on_val(self, seed: int, by: str) -> None:
        outputs, labels = two(seed)
        assume(min(labels.sum(), (1 - labels).sum()) >= 2)
        train, _ = two(seed + 1)
        found = thresholds.choose(outputs, labels, train, by=by)
        assert found.rule == max(found.scores, key=lambda rule: found.scores[rule])
        one_hot = np.eye(2)[outputs.argmax(1)]
        assert found.scores["largest"] == metric(by)(one_hot, labels)
        mean = thresholds.mean_probability(train)
        by_mean = np.eye(2)[Threshold(threshold=mean).decide(outputs)]
        assert found.scores["mean-threshold"] == metric(by)(by_mean, labels)
        expected = {"largest": 0.5, "mean-threshold": mean, "best-threshold": thresholds.best(outputs, labels)}
        assert found.threshold == expected[found.rule]

    def test_the_best_threshold_is_judged_on_samples_that_it_was_not_found_on(self) -> None:
        """Of noise, the threshold that is best on all of val looks better there than it is."""
        ahead = 0
        for seed in range(40):
            random = np.random.default_rng(seed)
            outputs, labels = random.normal(size=(40, 2)), np.arange(40) % 2
            judged = thresholds.choose(outputs, labels, outputs, by="top1").scores["best-threshold"]
            on_itself = np.mean(Threshold(threshold=thresholds.best(outputs, labels)).decide(outputs) == labels)
            assert on_itself >= 0.5
            ahead += judged < on_itself
        assert ahead >= 35

    def test_each_rule_wins_where_it_should(self) -> None:
        random = np.random.default_rng(0)
        labels = (random.random(4000) < 0.1).astype(np.int64)
        # A network trained on balanced classes calls too many a rare class: the larger output is the wrong rule.
        shifted = np.stack([np.zeros(4000), random.normal(size=4000) + 3.0 * labels + 1.0], axis=1)
        assert thresholds.choose(shifted, labels, shifted, by="top1").rule != "largest"
        honest = np.stack([np.zeros(4000), 3.0 * random.normal(size=4000) + 12.0 * labels - 8.0], axis=1)
        found = thresholds.choose(honest, labels, honest, by="top1")
        assert found.rule == "largest" and found.threshold == 0.5
        assert found.statement.startswith("decision: largest, the best on val by top-1 of the answers (largest 0.9")

    def test_of_equals_the_simplest_is_taken(self) -> None:
        outputs, labels = np.array([[1.0, -1.0], [-1.0, 1.0]] * 4), np.array([0, 1] * 4)
        found = thresholds.choose(outputs, labels, outputs, by="top1")
        assert found.rule == "largest" and set(found.scores.values()) == {1.0}

    def test_what_cannot_be_chosen(self) -> None:
        outputs, labels = two(0)
        with pytest.raises(DataError, match="of one class it has 1 of 30 samples, and needs two"):
            thresholds.choose(outputs, (np.arange(30) == 3).astype(int), outputs, by="top1")
        with pytest.raises(DataError, match="labels of 0 and 1"):
            thresholds.choose(outputs, labels * 2, outputs, by="top1")


class TestPerClass:
    @calm
    @given(seeds)
    def test_no_other_threshold_has_a_better_f1(self, seed: int) -> None:
        outputs, labels = several(seed)
        assume(labels.any(0).all())
        chosen = thresholds.per_class(outputs, labels)
        assert chosen.shape == (3,)
        named = MultiLabel(thresholds=tuple(chosen.tolist())).decide(outputs)
        probabilities = sigmoid(outputs)
        for index in range(3):
            found = f1(labels[:, index], named[:, index].astype(int))
            for other in [*probabilities[:, index], 0.0, 1.0]:
                there = (probabilities[:, index] >= other).astype(int)
                assert found >= f1(labels[:, index], there) - 1e-12
        assert metric("macro-f1", thresholds=chosen.tolist())(outputs, labels) >= metric("macro-f1")(outputs, labels)

    @calm
    @given(seeds)
    def test_the_order_of_samples_does_not_matter(self, seed: int) -> None:
        outputs, labels = several(seed)
        order = np.random.default_rng(seed).permutation(len(labels))
        assert np.array_equal(
            thresholds.per_class(outputs, labels), thresholds.per_class(outputs[order], labels[order])
        )

    def test_between_two_values_it_lies_halfway(self) -> None:
        outputs = np.log(np.array([[0.1], [0.2], [0.6], [0.9]]) / (1 - np.array([[0.1], [0.2], [0.6], [0.9]])))
        assert thresholds.per_class(outputs, np.array([[0], [0], [1], [1]])) == pytest.approx([0.4])
        assert thresholds.per_class(outputs, np.array([[0], [0], [0], [1]])) == pytest.approx([0.75])

    def test_of_equally_good_ones_the_nearest_to_a_half(self) -> None:
        """Below 0.2 (three of four accepted rightly) and from 0.8 on (two of three, none wrong) F1 is the same."""
        values = np.array([[0.95], [0.9], [0.4], [0.35], [0.1]])
        outputs = np.log(values / (1 - values))
        labels = np.array([[1], [1], [0], [0], [1]])
        # F1 of the first two: 4/5; of all five: 6/8
        assert thresholds.per_class(outputs, labels) == pytest.approx([0.65])
        labels = np.array([[1], [0], [0], [1], [0]])
        # of the first: 2/3; of the first four: 4/6; the latter's threshold 0.225 is nearer to 0.5 than 0.925
        assert thresholds.per_class(outputs, labels) == pytest.approx([0.225])

    def test_a_class_without_a_positive_has_a_half(self) -> None:
        outputs, labels = several(0)
        labels[:, 1] = 0
        assert thresholds.per_class(outputs, labels)[1] == 0.5

    def test_a_class_that_all_have_is_always_accepted(self) -> None:
        outputs, labels = several(0)
        labels[:, 1] = 1
        assert 0.0 < thresholds.per_class(outputs, labels)[1] < sigmoid(outputs[:, 1]).min()

    @pytest.mark.parametrize("value", [-800.0, 800.0])
    def test_probabilities_of_0_and_1_have_one_too(self, value: float) -> None:
        """Nothing lies between 0 and the next value: the threshold is a number that a decision accepts."""
        chosen = thresholds.per_class(np.full((4, 1), value), np.array([[1], [1], [1], [0]]))
        assert MultiLabel(thresholds=tuple(chosen.tolist())).decide(np.full((4, 1), value)).all()

    @pytest.mark.parametrize(
        "labels", [np.zeros(30, dtype=int), np.zeros((30, 2), dtype=int), np.full((30, 3), 2), np.zeros((29, 3))]
    )
    def test_labels_must_fit(self, labels: np.ndarray) -> None:
        with pytest.raises(DataError, match="labels of 0 and 1"):
            thresholds.per_class(several(0)[0], labels)


class TestBest:
    @calm
    @given(seeds)
    def test_no_other_threshold_has_a_better_balanced_accuracy(self, seed: int) -> None:
        outputs, labels = two(seed)
        assume(0 < labels.sum() < len(labels))
        chosen = thresholds.best(outputs, labels)
        found = balanced(labels, Threshold(threshold=chosen).decide(outputs))
        for other in [*second_probability(outputs), 0.0, 1.0]:
            assert found >= balanced(labels, Threshold(threshold=other).decide(outputs)) - 1e-12

    @calm
    @given(seeds, st.integers(2, 6))
    def test_more_of_one_class_does_not_change_it(self, seed: int, times: int) -> None:
        outputs, labels = two(seed)
        assume(0 < labels.sum() < len(labels))
        copies = np.repeat(np.arange(len(labels)), np.where(labels == 0, times, 1))
        assert thresholds.best(outputs[copies], labels[copies]) == thresholds.best(outputs, labels)

    @pytest.mark.parametrize("label", [0, 1])
    def test_one_class_alone_has_none(self, label: int) -> None:
        with pytest.raises(DataError, match="all validation samples are of one class"):
            thresholds.best(two(0)[0], np.full(30, label))

    @pytest.mark.parametrize("labels", [np.full(30, 2), np.zeros(29, dtype=int), np.zeros((30, 2), dtype=int)])
    def test_labels_must_fit(self, labels: np.ndarray) -> None:
        with pytest.raises(DataError, match="labels of 0 and 1"):
            thresholds.best(two(0)[0], labels)


class TestMeanProbability:
    @calm
    @given(seeds)
    def test_it_is_the_mean_and_never_outside(self, seed: int) -> None:
        outputs, _ = two(seed)
        chosen = thresholds.mean_probability(outputs)
        assert chosen == pytest.approx(second_probability(outputs).mean())
        assert Threshold(threshold=chosen).decide(outputs).any()

    def test_it_reads_no_labels(self) -> None:
        assert list(inspect.signature(thresholds.mean_probability).parameters) == ["outputs"]


class TestSimilarity:
    def test_the_decision_accepts_as_many_as_verification_says(self) -> None:
        random = np.random.default_rng(0)
        identities = np.repeat(np.arange(12), 6)
        embeddings = random.normal(size=(12, 8))[identities] + 0.8 * random.normal(size=(72, 8))
        for far in (1e-3, 1e-2, 0.1):
            decision = Similarity(threshold=thresholds.similarity(embeddings, identities, far))
            first, second = np.triu_indices(72, 1)
            accepted = decision.same(embeddings[first], embeddings[second])
            genuine = identities[first] == identities[second]
            assert accepted[genuine].mean() == pytest.approx(verification(embeddings, identities, far).tar)
            assert accepted[~genuine].mean() <= far

    def test_where_nothing_can_be_accepted_the_decision_says_so(self) -> None:
        decision = Similarity(threshold=thresholds.similarity(np.ones((6, 2)), np.arange(6) // 2, 0.01))
        assert not decision.same(np.ones((1, 2)), np.ones((1, 2))).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_have_no_threshold(bad: float) -> None:
    outputs = np.zeros((4, 2))
    outputs[0, 0] = bad
    with pytest.raises(DataError, match="NaN"):
        thresholds.per_class(outputs, np.zeros((4, 2), dtype=int))
    with pytest.raises(DataError, match="NaN"):
        thresholds.best(outputs, np.array([0, 1, 0, 1]))
    with pytest.raises(DataError, match="NaN"):
        thresholds.mean_probability(outputs)
    with pytest.raises(DataError, match="NaN"):
        thresholds.similarity(outputs, np.array([0, 0, 1, 1]), 0.1)


@pytest.mark.parametrize("outputs", [np.zeros(4), np.zeros((0, 2)), np.zeros((4, 3))])
def test_two_classes_have_two_outputs(outputs: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"outputs \(n, 2\)"):
        thresholds.mean_probability(outputs)
    with pytest.raises(DataError, match=r"outputs \(n, 2\)"):
        thresholds.best(outputs, np.zeros(len(outputs), dtype=int))
