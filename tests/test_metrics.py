"""Metrics against scikit-learn on random data with ties, their laws, and what they refuse."""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from edgetl import metrics
from edgetl.config.sections import MetricName, Task
from edgetl.errors import DataError, UnknownNameError
from edgetl.metrics import metric, verification
from edgetl.metrics.figures import calibration_error, strict_true_accepts
from edgetl.runtime.decision import sigmoid, softmax

NAMES = ("top1", "macro-f1", "auc", "map", "tar")
Case = tuple[np.ndarray, np.ndarray]


def single(seed: int, n: int = 40, k: int = 3, step: float = 0.5) -> Case:
    """Outputs with many ties, labels that they know something of."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, k, n)
    outputs = random.normal(size=(n, k)) + np.eye(k)[labels]
    return np.round(outputs / step) * step, labels


def several(seed: int, n: int = 40, k: int = 3, step: float = 0.5) -> Case:
    random = np.random.default_rng(seed)
    labels = (random.random((n, k)) < 0.3).astype(np.int64)
    return np.round((random.normal(size=(n, k)) + labels) / step) * step, labels


def faces(seed: int, people: int = 8, each: int = 5) -> Case:
    random = np.random.default_rng(seed)
    identities = np.repeat(np.arange(people) * 7 + 3, each)
    centres = random.normal(size=(people, 16))
    return centres[np.repeat(np.arange(people), each)] + random.normal(size=(people * each, 16)), identities


CASES: dict[str, Callable[[int], Case]] = {
    "top1": single,
    "macro-f1": single,
    "auc": single,
    "map": several,
    "tar": faces,
}
seeds = st.integers(0, 2**32 - 1)
calm = settings(max_examples=30, deadline=None)


class TestAgainstScikitLearn:
    @calm
    @given(seeds, st.integers(2, 6))
    def test_top1(self, seed: int, k: int) -> None:
        outputs, labels = single(seed, k=k)
        assert metric("top1")(outputs, labels) == pytest.approx(sk.accuracy_score(labels, outputs.argmax(1)))

    @calm
    @given(seeds, st.integers(2, 12))
    def test_macro_f1_over_the_classes_that_occur(self, seed: int, k: int) -> None:
        outputs, labels = single(seed, n=15, k=k)
        expected = sk.f1_score(labels, outputs.argmax(1), average="macro", zero_division=0.0)
        assert metric("macro-f1")(outputs, labels) == pytest.approx(expected, abs=1e-12)

    @calm
    @given(seeds)
    def test_macro_f1_of_several_labels(self, seed: int) -> None:
        outputs, labels = several(seed, n=12)
        thresholds = np.random.default_rng(seed).random(3)
        named = (sigmoid(outputs) >= thresholds).astype(int)
        assume((labels.any(0) | named.any(0)).any())
        expected = sk.f1_score(labels, named, average="macro", zero_division=np.nan)
        found = metric("macro-f1", thresholds=thresholds.tolist())(outputs, labels)
        assert found == pytest.approx(expected, abs=1e-12)

    @calm
    @given(seeds)
    def test_auc_of_two_classes(self, seed: int) -> None:
        outputs, labels = single(seed, k=2)
        assume(len(set(labels.tolist())) == 2)
        expected = sk.roc_auc_score(labels, outputs[:, 1] - outputs[:, 0])
        assert metric("auc")(outputs, labels) == pytest.approx(expected, abs=1e-12)

    @calm
    @given(seeds, st.integers(3, 5))
    def test_auc_of_more(self, seed: int, k: int) -> None:
        outputs, labels = single(seed, k=k)
        assume(len(set(labels.tolist())) == k)
        expected = sk.roc_auc_score(labels, softmax(outputs), multi_class="ovr", average="macro")
        assert metric("auc")(outputs, labels) == pytest.approx(expected, abs=1e-12)

    @calm
    @given(seeds)
    def test_average_precision(self, seed: int) -> None:
        outputs, labels = several(seed)
        assume(labels.any(0).all())
        expected = sk.average_precision_score(labels, outputs, average="macro")
        assert metric("map")(outputs, labels) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("name", ["top1", "macro-f1", "auc", "map"])
    @calm
    @given(seeds)
    def test_weights_are_samples_that_occur_so_many_times(self, name: str, seed: int) -> None:
        outputs, labels = CASES[name](seed)
        units = np.arange(len(labels))
        weights = metrics.resample_weights(np.random.default_rng(seed), units, 3)
        found = metric(name).weighted(outputs, labels)(weights)
        for column, value in zip(weights.T.astype(int), found, strict=True):
            copies = np.repeat(units, column)
            try:
                assert value == pytest.approx(metric(name)(outputs[copies], labels[copies]), abs=1e-12)
            except DataError:
                assert np.isnan(value)

    @calm
    @given(seeds, st.integers(2, 4))
    def test_brier(self, seed: int, k: int) -> None:
        outputs, labels = single(seed, k=k)
        probabilities = softmax(outputs)
        given_ = probabilities[:, 1] if k == 2 else probabilities
        expected = sk.brier_score_loss(labels, given_, labels=range(k))
        assert metrics.brier(probabilities, labels) == pytest.approx(expected)


@calm
@given(seeds, st.integers(2, 5), st.integers(1, 20))
def test_calibration_error_is_its_formula(seed: int, k: int, bins: int) -> None:
    outputs, labels = single(seed, k=k, step=1e-3)
    probabilities = softmax(outputs)
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for number in range(bins):
        inside = (sure > number / bins) & (sure <= (number + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert metrics.expected_calibration_error(probabilities, labels, bins) == pytest.approx(expected)


def test_a_sure_model_that_is_always_right_is_calibrated() -> None:
    assert metrics.expected_calibration_error(np.eye(3), np.arange(3)) == 0.0
    assert metrics.brier(np.eye(3), np.arange(3)) == 0.0
    assert metrics.expected_calibration_error(np.eye(2), np.array([1, 0])) == 1.0


class TestLaws:
    @pytest.mark.parametrize("name", NAMES)
    @calm
    @given(seed=seeds)
    def test_between_0_and_1_and_whatever_the_order(self, name: str, seed: int) -> None:
        outputs, labels = CASES[name](seed)
        order = np.random.default_rng(seed).permutation(len(labels))
        try:
            value = metric(name)(outputs, labels)
        except DataError:
            assume(False)
        assert 0.0 <= value <= 1.0
        assert metric(name)(outputs[order], labels[order]) == pytest.approx(value, abs=1e-12)

    @pytest.mark.parametrize("name", ["auc", "map"])
    @calm
    @given(seed=seeds, scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
    def test_ranks_are_all_that_count(self, name: str, seed: int, scale: float, shift: float) -> None:
        outputs, labels = single(seed, k=2) if name == "auc" else several(seed)
        assume(0 < labels.sum() < labels.size and labels.any(0).all())
        moved = outputs * np.float64(2.0 ** round(np.log2(scale))) + round(shift)  # exactly, so that ties stay ties
        assert metric(name)(moved, labels) == pytest.approx(metric(name)(outputs, labels), abs=1e-12)

    def test_perfect_outputs_are_1(self) -> None:
        labels = np.arange(12) % 3
        for name in ("top1", "macro-f1", "auc"):
            assert metric(name)(10.0 * np.eye(3)[labels], labels) == 1.0
        flags = np.eye(3, dtype=np.int64)[labels]
        assert metric("map")(flags - 0.5, flags) == metric("macro-f1")(flags - 0.5, flags) == 1.0
        assert metric("tar")(np.eye(3)[labels], labels) == 1.0

    def test_outputs_that_say_nothing(self) -> None:
        labels = np.arange(12) % 2
        assert metric("auc")(np.zeros((12, 2)), labels) == 0.5
        assert metric("tar")(np.ones((12, 4)), labels) == 0.0


class TestVerification:
    @staticmethod
    def by_hand(embeddings: np.ndarray, identities: np.ndarray, far: float) -> tuple[float, int, int]:
        units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        genuine, impostors = [], []
        for i in range(len(units)):
            for j in range(i):
                (genuine if identities[i] == identities[j] else impostors).append(float(units[i] @ units[j]))
        thresholds = [t for t in [*genuine, *impostors, 2.0] if np.mean(np.array(impostors) >= t) <= far]
        return float(np.mean(np.array(genuine) >= min(thresholds))), len(genuine), len(impostors)

    @calm
    @given(seeds, st.sampled_from([1e-3, 1e-2, 0.1, 0.5]))
    def test_pair_by_pair(self, seed: int, far: float) -> None:
        embeddings, identities = faces(seed)
        found = verification(embeddings, identities, far)
        assert (found.tar, found.genuine, found.impostors) == pytest.approx(self.by_hand(embeddings, identities, far))

    @calm
    @given(seeds)
    def test_the_metric_is_that_at_one_percent_and_length_does_not_matter(self, seed: int) -> None:
        embeddings, identities = faces(seed)
        scaled = embeddings * np.random.default_rng(seed).uniform(0.1, 10, (len(embeddings), 1))
        expected = verification(embeddings, identities, 1e-2).tar
        assert metric("tar")(embeddings, identities) == pytest.approx(expected)
        assert metric("tar")(scaled, identities) == pytest.approx(expected)

    def test_the_threshold_keeps_its_false_accept_rate(self) -> None:
        embeddings, identities = faces(3, people=20, each=6)
        units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        impostors = (units @ units.T)[identities[:, None] != identities]
        for far in (1e-3, 1e-2, 0.1):
            found = verification(embeddings, identities, far)
            share = float((impostors >= found.threshold).mean())
            assert far - 2 / found.impostors <= share <= far

    def test_far_of_whole_pairs_is_not_lost_to_rounding(self) -> None:
        """0.29 · 100 is 28.999…, and 29 impostors may be accepted."""
        identities = np.array([0] * 10 + [1] * 10)
        angles = np.concatenate([np.linspace(0, 0.1, 10), np.linspace(1, 2, 10)])
        embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        found = verification(embeddings, identities, 0.29)
        assert found.impostors == 100
        units = embeddings
        assert int(((units[:10] @ units[10:].T) >= found.threshold).sum()) == 29

    def test_an_embedding_of_zero_is_like_nothing(self) -> None:
        embeddings, identities = faces(0)
        embeddings[0] = 0.0
        assert 0.0 <= verification(embeddings, identities, 0.1).tar < 1.0

    @calm
    @given(seeds)
    def test_weights_of_identities(self, seed: int) -> None:
        """Pairs listed one by one, each with its weight."""
        embeddings, identities = faces(seed, people=5, each=4)
        units = np.unique(identities, return_inverse=True)[1]
        weights = metrics.resample_weights(np.random.default_rng(seed), units, 4)
        found = metric("tar").weighted(embeddings, identities)(weights)
        vectors = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        cosines = vectors @ vectors.T
        for column, value in zip(weights.T, found, strict=True):
            genuine, impostors = [], []
            for i in range(len(units)):
                for j in range(i):
                    if units[i] == units[j]:
                        genuine += [cosines[i, j]] * int(column[i])
                    else:
                        impostors += [cosines[i, j]] * int(column[i] * column[j])
            if not genuine or not impostors:
                assert np.isnan(value)
                continue
            allowed = int(0.01 * len(impostors))
            assert value == pytest.approx(np.mean(np.array(genuine) > sorted(impostors)[::-1][allowed]))

    def test_two_thousand_embeddings_take_a_moment(self) -> None:
        embeddings, identities = faces(0, people=200, each=10)
        began = time.process_time()
        value = metric("tar")(embeddings, identities)
        assert time.process_time() - began < 1.5
        assert value == pytest.approx(verification(embeddings, identities, 1e-2).tar)

    @pytest.mark.parametrize("far", [0.0, 1.0, -1.0, float("nan")])
    def test_a_false_accept_rate_is_a_share(self, far: float) -> None:
        with pytest.raises(DataError, match="between 0 and 1"):
            verification(*faces(0), far)


class TestFigures:
    def test_the_strict_rate_is_pair_by_pair_and_tells_what_it_rests_on(self) -> None:
        embeddings, identities = faces(1, people=20, each=6)
        found = strict_true_accepts(embeddings, identities)
        assert found.value == pytest.approx(TestVerification.by_hand(embeddings, identities, 1e-3)[0])
        assert found.value <= metric("tar")(embeddings, identities)
        assert found.note == (
            "300 pairs of one person and 6,840 of two: at most 6 of these may be accepted, in steps of 0.015%"
        )

    def test_too_few_pairs_for_the_strict_rate_are_called_so(self) -> None:
        embeddings, identities = faces(2, people=8, each=5)
        found = strict_true_accepts(embeddings, identities)
        assert "80 pairs of one person and 700 of two, too few for this rate, which takes 1,000" in found.note
        # What it is then: the share of genuine pairs above every impostor.
        units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        cosines, same = units @ units.T, identities[:, None] == identities
        genuine = cosines[np.triu(same, 1)]
        assert found.value == pytest.approx(float((genuine > cosines[~same].max()).mean()))

    def test_1000_pairs_are_enough_and_999_are_not(self) -> None:
        random = np.random.default_rng(0)

        def note(first: int, second: int) -> str:
            marks = np.repeat([0, 1], [first, second])
            return strict_true_accepts(random.normal(size=(first + second, 4)), marks).note

        assert "and 1,000 of two: at most 1 of these" in note(20, 50)
        assert "and 999 of two, too few" in note(27, 37)

    @calm
    @given(seeds)
    def test_the_calibration_error_is_that_of_the_softmax(self, seed: int) -> None:
        outputs, labels = single(seed)
        found = calibration_error(outputs, labels)
        assert found.value == metrics.expected_calibration_error(softmax(outputs), labels)
        assert found.note == "0 is best; 15 bins of the larger probability over 40 samples"


class TestLeftOut:
    def test_a_class_without_a_positive_is_left_out_of_map(self) -> None:
        outputs, labels = several(1)
        more = np.concatenate([labels, np.zeros((len(labels), 1), dtype=np.int64)], axis=1)
        wider = np.concatenate([outputs, outputs[:, :1]], axis=1)
        assert metric("map")(wider, more) == pytest.approx(metric("map")(outputs, labels))

    def test_a_class_that_no_sample_has_is_left_out_of_auc(self) -> None:
        outputs, labels = single(1, k=3)
        wider = np.concatenate([outputs, np.full((len(labels), 1), -50.0)], axis=1)
        assert metric("auc")(wider, labels) == pytest.approx(metric("auc")(outputs, labels))

    def test_a_class_that_nobody_names_is_left_out_of_macro_f1(self) -> None:
        outputs, labels = single(1, k=3)
        wider = np.concatenate([outputs, np.full((len(labels), 1), -50.0)], axis=1)
        assert metric("macro-f1")(wider, labels) == pytest.approx(metric("macro-f1")(outputs, labels))


class TestBadInput:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_outputs_that_are_not_finite_are_the_worst(self, name: str, bad: float) -> None:
        outputs, labels = CASES[name](0)
        outputs[3, 1] = bad
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert metric(name)(outputs, labels) == 0.0

    def test_an_embedding_that_is_not_finite_has_no_threshold(self) -> None:
        embeddings, identities = faces(0)
        embeddings[0, 0] = np.nan
        with pytest.raises(DataError, match="NaN"):
            verification(embeddings, identities, 0.01)

    @pytest.mark.parametrize(
        ("name", "outputs", "labels", "message"),
        [
            ("auc", np.zeros((4, 2)), [1, 1, 1, 1], "AUC has no value for these 4 samples: it needs samples of two"),
            ("auc", np.zeros((4, 3)), [1, 1, 1, 1], "AUC has no value"),
            ("auc", np.zeros((4, 1)), [0, 0, 0, 0], "two outputs or more"),
            ("map", np.zeros((2, 2)), [[0, 0], [0, 0]], "mAP has no value .* a class that a sample has"),
            ("map", np.zeros((2, 2)), [[0, 2], [0, 0]], "labels of 0 and 1"),
            ("map", np.zeros((2, 2)), [0, 1], "labels of 0 and 1"),
            ("tar", np.ones((3, 2)), [0, 1, 2], "TAR at FAR 1% has no value .* two samples of one identity"),
            ("tar", np.ones((3, 2)), [1, 1, 1], "TAR at FAR 1% has no value"),
            ("tar", np.ones((3, 2)), [[1], [1], [1]], "one number per sample"),
            ("tar", np.ones((1, 2)), [1], "TAR at FAR 1% has no value"),
            ("top1", np.zeros((0, 2)), [], "a label for each"),
            ("top1", np.zeros((2, 2)), [0], "a label for each"),
            ("top1", np.zeros(2), [0, 1], "a label for each"),
            ("top1", np.zeros((2, 2)), [0, 2], "a label 2, and the outputs are of the classes 0 to 1"),
            ("top1", np.zeros((2, 2)), [-1, 0], "a label -1"),
            ("top1", np.zeros((2, 2)), [0.5, 1.0], "whole numbers"),
            ("top1", np.zeros((2, 2)), ["a", "b"], "whole numbers"),
            ("top1", np.zeros((2, 2)), [[0, 1], [1, 0]], "one label per sample"),
        ],
    )
    def test_it_says_what_does_not_fit(self, name: str, outputs: np.ndarray, labels: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            metric(name)(outputs, np.asarray(labels))

    def test_thresholds_belong_to_macro_f1(self) -> None:
        with pytest.raises(DataError, match="takes no thresholds"):
            metric("auc", thresholds=[0.5])
        with pytest.raises(DataError, match="2 thresholds for 3 classes"):
            metric("macro-f1", thresholds=[0.5, 0.5])(*several(0))

    @pytest.mark.parametrize("measure", [metrics.brier, metrics.expected_calibration_error])
    @pytest.mark.parametrize("value", [1.5, -0.1, np.nan])
    def test_probabilities_are_probabilities(self, measure: Callable[..., float], value: float) -> None:
        with pytest.raises(DataError, match="between 0 and 1"):
            measure(np.array([[value, 0.5]]), np.array([0]))


class TestNames:
    def test_names_are_those_of_the_configuration(self) -> None:
        assert set(NAMES) == set(MetricName.__args__)  # type: ignore[attr-defined]
        titles = [metric(name).title for name in NAMES]
        assert titles == ["top-1", "macro-F1", "AUC", "mAP", "TAR at FAR 1%"]
        assert [metric(name).name for name in NAMES] == list(NAMES)

    def test_every_task_has_a_default_among_what_it_allows(self) -> None:
        tasks = Task.__args__  # type: ignore[attr-defined]
        defaults = {task: metrics.default_metric(task) for task in tasks}
        assert defaults == {
            "image-classification": "top1",
            "multi-label-images": "map",
            "text-classification": "top1",
            "table-classification": "auc",
            "face-verification": "tar",
        }
        for task in tasks:
            assert defaults[task] in metrics.allowed_metrics(task)
            assert set(metrics.allowed_metrics(task)) <= set(NAMES)

    def test_an_unknown_name_is_answered_with_the_nearest(self) -> None:
        with pytest.raises(UnknownNameError, match="there is no metric 'marco-f1'; did you mean 'macro-f1'"):
            metric("marco-f1")
        with pytest.raises(UnknownNameError, match="did you mean 'text-classification'"):
            metrics.default_metric("text-clasification")

    def test_metrics_travel_to_other_processes(self) -> None:
        outputs, labels = single(0)
        for each in (metric("macro-f1"), metric("macro-f1", thresholds=[0.5] * 3)):
            assert pickle.loads(pickle.dumps(each))(outputs, labels) == each(outputs, labels)
