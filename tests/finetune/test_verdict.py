"""The verdict on transfer: outcomes, intervals, their coverage, and what is not enough for one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.errors import DataError, UnknownNameError
from edgetl.finetune.verdict import Verdict, forgetting, forgetting_by, verdict, verdict_by
from edgetl.metrics import metric


def runs(seed: int, tuned: float, scratch: float, probe: float = 0.8, *, seeds: int = 3, n: int = 400) -> dict:
    """Whether answers are right; what is hard is hard for every method."""
    random = np.random.default_rng(seed)
    hard = random.random(n)
    shares = {"fine-tuned": tuned, "linear-probe": probe, "scratch": scratch}
    return {name: np.clip(hard + 0.1 * random.normal(size=(seeds, n)), 0, 1) < share for name, share in shares.items()}


def outcomes(found: Verdict) -> dict[tuple[str, str], str]:
    return {(each.first, each.second): each.outcome for each in found.differences}


class TestVerdict:
    @pytest.mark.parametrize(
        ("tuned", "scratch", "outcome"), [(0.9, 0.6, "helped"), (0.8, 0.8, "neutral"), (0.5, 0.8, "negative")]
    )
    def test_it_is_that_of_fine_tuning_against_scratch(self, tuned: float, scratch: float, outcome: str) -> None:
        scores = runs(0, tuned, scratch)
        found = verdict(scores, 0.95)
        assert found.outcome == found.differences[0].outcome == outcome
        assert (found.seeds, found.samples, found.confidence) == (3, 400, 0.95)
        assert found.means == {name: pytest.approx(each.mean()) for name, each in scores.items()}
        for each in found.differences:
            assert each.lower <= each.value <= each.upper
            assert each.value == pytest.approx(found.means[each.first] - found.means[each.second])

    def test_the_probe_is_compared_with_both(self) -> None:
        found = verdict(runs(0, 0.95, 0.5, 0.75), 0.95)
        assert outcomes(found) == {
            ("fine-tuned", "scratch"): "helped",
            ("fine-tuned", "linear-probe"): "helped",
            ("linear-probe", "scratch"): "helped",
        }

    def test_there_need_be_no_probe(self) -> None:
        scores = runs(0, 0.95, 0.5)
        del scores["linear-probe"]
        assert outcomes(verdict(scores, 0.95)) == {("fine-tuned", "scratch"): "helped"}

    def test_statements_say_what_was_found(self) -> None:
        helped = verdict(runs(0, 0.9, 0.6), 0.95)
        low, high = (100 * each for each in (helped.differences[0].lower, helped.differences[0].upper))
        assert helped.statement == (
            f"helped: with 95% confidence fine-tuning is ahead of training from scratch by {low:.2f} to {high:.2f}"
            " points (3 seeds, 400 test samples)"
        )
        assert "is behind training from scratch by" in verdict(runs(0, 0.5, 0.8), 0.9).statement
        neutral = verdict(runs(0, 0.8, 0.8), 0.9).statement
        assert neutral.startswith("neutral: fine-tuning and training from scratch differ by")
        assert "which may be nothing" in neutral

    def test_swapping_the_methods_turns_the_interval_round(self) -> None:
        scores = runs(3, 0.8, 0.75)
        there = verdict(scores, 0.95).differences[0]
        back = verdict({"fine-tuned": scores["scratch"], "scratch": scores["fine-tuned"]}, 0.95).differences[0]
        assert back.value == pytest.approx(-there.value)
        assert (back.lower, back.upper) == pytest.approx((-there.upper, -there.lower), abs=0.01)

    @settings(deadline=None, max_examples=10)
    @given(st.integers(0, 10**6))
    def test_the_order_of_samples_is_nothing_and_more_confidence_is_wider(self, seed: int) -> None:
        scores = runs(seed, 0.8, 0.7, n=80)
        found = verdict(scores, 0.9).differences[0]
        order = np.random.default_rng(seed).permutation(80)
        moved = verdict({name: each[:, order] for name, each in scores.items()}, 0.9).differences[0]
        assert moved.value == pytest.approx(found.value)
        assert (moved.lower, moved.upper) == pytest.approx((found.lower, found.upper), abs=0.03)
        wider = verdict(scores, 0.99).differences[0]
        assert wider.lower <= found.lower <= found.upper <= wider.upper

    def test_seeds_that_differ_widen_it(self) -> None:
        steady = runs(1, 0.9, 0.8)
        lucky = {**steady, "fine-tuned": np.stack([steady["fine-tuned"][0]] * 3)}
        lucky["fine-tuned"][0] = True
        lucky["fine-tuned"][1, :120] = False
        width = [each.upper - each.lower for each in (verdict(s, 0.95).differences[0] for s in (steady, lucky))]
        assert width[1] > 2 * width[0]

    def test_json(self) -> None:
        found = verdict(runs(0, 0.9, 0.6), 0.95).to_json()
        assert json.loads(json.dumps(found)) == found
        assert found["differences"][0]["first"] == "fine-tuned"

    def test_the_same_scores_give_the_same_verdict(self) -> None:
        assert verdict(runs(0, 0.9, 0.85), 0.95) == verdict(runs(0, 0.9, 0.85), 0.95)


def test_the_interval_holds_as_often_as_it_says() -> None:
    """120 trials of three seeds, whose quality differs as much as that of test splits; the true difference is 0.1."""
    random, held = np.random.default_rng(7), 0
    for trial in range(120):
        quality = 0.5 + np.array([[0.1], [0.0]]) + 0.05 * random.normal(size=(2, 3))
        right = random.random((2, 3, 100)) < quality[:, :, None]
        found = verdict({"fine-tuned": right[0], "scratch": right[1]}, 0.9, seed=trial).differences[0]
        held += found.lower <= 0.1 <= found.upper
    assert held / 120 >= 0.82  # 0.9 less three standard errors


def faces(random: np.random.Generator, people: int, each: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings from before, those of one run, and whose they are."""
    labels = np.repeat(np.arange(people), each)
    before = 1.2 * random.normal(size=(people, 16))[labels] + random.normal(size=(len(labels), 16))
    return before, (before + 0.5 * random.normal(size=before.shape))[None], labels


class TestFaces:
    def test_the_interval_is_as_wide_as_changes_of_test_sets_are_apart(self) -> None:
        """100 test sets of 30 people; with people drawn again it was 1.5 times as wide, and always held."""
        random, tar = np.random.default_rng(30), metric("tar")
        found = [forgetting_by(tar, *faces(random, 30), seed=seed) for seed in range(100)]
        half = np.mean([(each.upper - each.lower) / 2 for each in found])
        assert half / (1.96 * np.std([each.change for each in found])) == pytest.approx(1.05, abs=0.15)
        samples = (faces(np.random.default_rng([7, part]), 200) for part in range(20))
        true = np.mean([tar(after[0], labels) - tar(before, labels) for before, after, labels in samples])
        assert np.mean([each.lower <= true <= each.upper for each in found]) >= 0.9

    def test_a_verdict_is_narrower_than_of_people_drawn_again(self) -> None:
        random, tar = np.random.default_rng(0), metric("tar")
        before, after, labels = faces(random, 30)
        outputs = {"fine-tuned": np.stack([before] * 3), "scratch": np.concatenate([after] * 3)}
        found, plain = (
            verdict_by(each, outputs, labels, 0.95).differences[0] for each in (tar, replace(tar, influences=None))
        )
        assert found.value == plain.value == pytest.approx(tar(before, labels) - tar(after[0], labels))
        assert found.upper - found.lower < 0.85 * (plain.upper - plain.lower)

    @pytest.mark.parametrize(("people", "each", "value"), [(8, 3, 0.0), (30, 6, np.nan)])
    def test_of_few_pairs_and_of_outputs_that_are_no_numbers_people_are_drawn_again(
        self, people: int, each: int, value: float
    ) -> None:
        tar = metric("tar")
        before, after, labels = faces(np.random.default_rng(0), people, each)
        after[0, 0] += value
        assert forgetting_by(tar, before, after, labels) == forgetting_by(
            replace(tar, influences=None), before, after, labels
        )


class TestByMetric:
    def test_top1_is_the_mean_of_what_is_right(self) -> None:
        random = np.random.default_rng(0)
        labels = random.integers(0, 3, 150)
        outputs = {
            name: random.normal(size=(3, 150, 3)) + strength * np.eye(3)[labels]
            for name, strength in (("fine-tuned", 2.0), ("scratch", 1.0))
        }
        one = verdict_by(metric("top1"), outputs, labels, 0.95)
        other = verdict({name: each.argmax(2) == labels for name, each in outputs.items()}, 0.95)
        assert one.means == pytest.approx(other.means)
        assert one.differences[0].lower == pytest.approx(other.differences[0].lower)
        assert one.outcome == other.outcome == "helped"

    def test_auc_and_faces(self) -> None:
        random = np.random.default_rng(0)
        labels = random.integers(0, 2, 200)
        outputs = {
            name: random.normal(size=(3, 200, 2)) + strength * np.eye(2)[labels]
            for name, strength in (("fine-tuned", 2.0), ("scratch", 0.3))
        }
        assert verdict_by(metric("auc"), outputs, labels, 0.95).outcome == "helped"
        people = np.repeat(np.arange(20), 5)
        faces = {
            name: random.normal(size=(3, 20, 16))[:, people] + noise * random.normal(size=(3, 100, 16))
            for name, noise in (("fine-tuned", 0.3), ("scratch", 3.0))
        }
        assert verdict_by(metric("tar"), faces, people, 0.95).outcome == "helped"

    def test_bad_input(self) -> None:
        good = {"fine-tuned": np.zeros((3, 4, 2)), "scratch": np.zeros((3, 4, 2))}
        with pytest.raises(DataError, match="two classes"):
            verdict_by(metric("auc"), good, np.zeros(4, dtype=int), 0.95)
        with pytest.raises(DataError, match="5 labels for 4"):
            verdict_by(metric("top1"), good, np.zeros(5, dtype=int), 0.95)
        with pytest.raises(DataError, match="shape"):
            verdict_by(metric("top1"), {"fine-tuned": np.zeros((3, 4))}, np.zeros(4, dtype=int), 0.95)


class TestGroups:
    """Samples that belong together are drawn together."""

    def test_what_changes_together_says_less(self) -> None:
        random, labels = np.random.default_rng(5), np.arange(600) % 2
        group = np.arange(600) // 20
        before = np.eye(2)[labels] * 1.0
        lost = random.random(30) < 0.2
        after = np.where(lost[group][:, None], 1.0 - before, before)
        names: list[str | None] = [f"video {each}" for each in group]
        alone = forgetting_by(metric("top1"), before, after[None], labels)
        together = forgetting_by(metric("top1"), before, after[None], labels, groups=names)
        assert together.change == alone.change < 0
        assert together.lower < alone.lower and together.upper > alone.upper
        scores = {"fine-tuned": np.stack([before] * 3), "scratch": np.stack([after] * 3)}
        first, second = (
            verdict_by(metric("top1"), scores, labels, 0.95, groups=each).differences[0] for each in (None, names)
        )
        assert second.value == first.value > 0 and second.lower < first.lower

    def test_samples_of_no_group_are_as_before(self) -> None:
        labels = np.arange(40) % 2
        before, after = np.eye(2)[labels], np.random.default_rng(6).normal(size=(3, 40, 2))
        wanted = forgetting_by(metric("top1"), before, after, labels)
        for groups in ([None] * 40, [""] * 40, [str(place) for place in range(40)]):
            assert forgetting_by(metric("top1"), before, after, labels, groups=groups) == wanted
        with pytest.raises(DataError, match="there are 3 groups for 40 test samples"):
            forgetting_by(metric("top1"), before, after, labels, groups=["a", "b", "c"])


class TestForgetting:
    def test_what_was_forgotten(self) -> None:
        random = np.random.default_rng(0)
        hard = random.random(500)
        before, after = hard < 0.9, np.stack([hard + 0.05 * random.normal(size=500) < 0.7 for _ in range(3)])
        found = forgetting(before, after)
        assert found.change == pytest.approx(after.mean() - before.mean()) == pytest.approx(found.after - found.before)
        assert found.lower < found.change < found.upper < 0
        assert found.statement.startswith("something was forgotten: with 95% confidence the score on the source task")
        assert found.statement.endswith("(3 seeds, 500 test samples)")
        assert json.loads(json.dumps(found.to_json())) == found.to_json()

    def test_nothing_and_gain(self) -> None:
        before = np.arange(200) % 2 == 0
        same = forgetting(before, np.stack([before] * 3), 0.9)
        assert (same.change, same.lower, same.upper) == (0.0, 0.0, 0.0)
        assert "changes by +0.00 points" in same.statement
        assert forgetting(before, np.ones((3, 200))).statement.startswith("nothing was forgotten")

    def test_one_run_has_an_interval_over_samples(self) -> None:
        random = np.random.default_rng(1)
        before, after = random.random(300) < 0.9, random.random(300) < 0.6
        found = forgetting(before, after)
        assert found.seeds == 1
        assert found.upper < 0
        assert found.statement.endswith("(1 seed, 300 test samples)")

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (np.ones(4), np.ones(5)),
            (np.ones((2, 4)), np.ones((2, 4))),
            (np.ones(0), np.ones(0)),
            (np.full(4, np.nan), np.ones(4)),
            (np.ones(4), np.full((3, 4), np.inf)),
        ],
    )
    def test_bad_input(self, before: np.ndarray, after: np.ndarray) -> None:
        with pytest.raises(DataError, match="scores"):
            forgetting(before, after)


class TestForgettingByAMetric:
    def test_top1_is_the_mean_over_answers(self) -> None:
        random = np.random.default_rng(0)
        labels = random.integers(3, size=150)
        before, after = random.normal(size=(150, 3)), random.normal(size=(3, 150, 3))
        before[np.arange(150), labels] += 2.0
        after[:, np.arange(150), labels] += 1.0
        found = forgetting_by(metric("top1"), before, after, labels)
        right = before.argmax(1) == labels, after.argmax(2) == labels
        assert found == forgetting(*right)
        assert found.upper < 0

    def test_auc_of_a_rare_class_sees_what_accuracy_does_not(self) -> None:
        random = np.random.default_rng(1)
        labels = (np.arange(400) % 20 == 0).astype(int)
        before = np.stack([np.zeros(400), 6.0 * labels - 8 + random.normal(size=400)], axis=1)
        after = np.stack([before * [1, 0] + [[0, -8]] + random.normal(size=(400, 2)) for _ in range(3)])
        assert forgetting_by(metric("top1"), before, after, labels).change > -0.06
        found = forgetting_by(metric("auc"), before, after, labels)
        assert found.before > 0.95 and found.upper < -0.2 and found.samples == 400

    def test_people_are_drawn_and_not_their_pictures(self) -> None:
        random = np.random.default_rng(2)
        people = np.repeat(np.arange(12), 6)
        before = random.normal(size=(12, 8))[people] + 0.3 * random.normal(size=(72, 8))
        after = before + 0.8 * random.normal(size=(3, 72, 8))
        found = forgetting_by(metric("tar"), before, after, people)
        assert found.before > found.after and found.lower < found.change < found.upper

    @pytest.mark.parametrize(
        ("before", "after", "labels"),
        [
            (np.ones((4, 2)), np.ones((3, 5, 2)), np.zeros(4, int)),
            (np.ones((4, 2)), np.ones((4, 2)), np.zeros(4, int)),
            (np.ones(4), np.ones((3, 4, 2)), np.zeros(4, int)),
            (np.ones((4, 2)), np.ones((3, 4, 2)), np.zeros(5, int)),
        ],
    )
    def test_outputs_that_do_not_belong_together(self, before, after, labels) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(DataError, match="outputs before"):
            forgetting_by(metric("top1"), before, after, labels)

    def test_a_metric_without_a_value(self) -> None:
        with pytest.raises(DataError, match="AUC has no value"):
            forgetting_by(metric("auc"), np.ones((9, 2)), np.ones((3, 9, 2)), np.zeros(9, int))


class TestGate:
    @given(st.integers(1, 5000), st.floats(0.5, 0.99))
    @settings(max_examples=15, deadline=None)
    def test_samples_that_never_change_leave_open_what_wilson_leaves_open(self, n: int, confidence: float) -> None:
        found = forgetting(np.ones(n), np.ones((3, n)), confidence)
        assert found.lower == 0.0 and 0.0 < found.largest_drop < 1.0
        assert found.refusal(found.largest_drop) is not None
        assert found.refusal(found.largest_drop * 1.001) is None

    def test_it_is_the_lower_end_of_the_interval(self) -> None:
        random = np.random.default_rng(3)
        before = random.random(600) < 0.9
        after = np.stack([before & (random.random(600) > 0.05) for _ in range(3)])
        found = forgetting(before, after)
        assert found.largest_drop == -found.lower > -found.change
        assert found.refusal(-found.lower + 1e-9) is None
        reason = found.refusal(-found.change)
        assert reason is not None and "is not excluded" in reason and "few" not in reason

    def test_a_true_drop_of_the_limit_is_let_through_rarely(self) -> None:
        """At most in half of 1 - confidence of all cases, since the interval is two-sided; twice that is allowed."""
        random = np.random.default_rng(4)
        passed = 0
        for _ in range(80):
            before = random.random(300) < 0.9
            lost = np.clip(0.05 + 0.01 * random.normal(size=(3, 1)), 0, 1) / 0.9
            after = before & (random.random((3, 300)) >= lost)
            passed += forgetting(before, after).refusal(0.05) is None
        assert passed <= 4


class TestNotEnough:
    def test_two_seeds_may_be_lucky(self) -> None:
        with pytest.raises(DataError, match="needs 3 seeds of each method or more, and has 2"):
            verdict(runs(0, 0.9, 0.6, seeds=2), 0.95)

    def test_a_method_is_missing(self) -> None:
        scores = runs(0, 0.9, 0.6)
        del scores["scratch"]
        with pytest.raises(DataError, match="none of 'scratch'"):
            verdict(scores, 0.95)
        with pytest.raises(DataError, match="none of 'fine-tuned'"):
            verdict({}, 0.95)

    def test_a_method_of_another_name(self) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'linear-probe'"):
            verdict({**runs(0, 0.9, 0.6), "linear-prob": np.ones((3, 400))}, 0.95)

    def test_methods_of_other_samples_or_seeds(self) -> None:
        for shape in ((3, 399), (4, 400)):
            with pytest.raises(DataError, match="the same seeds and test samples"):
                verdict({**runs(0, 0.9, 0.6), "scratch": np.ones(shape)}, 0.95)

    @pytest.mark.parametrize("scores", [np.ones(400), np.ones((3, 0)), np.full((3, 400), np.nan)])
    def test_scores_that_are_none(self, scores: np.ndarray) -> None:
        with pytest.raises(DataError, match="scores of 'scratch'"):
            verdict({**runs(0, 0.9, 0.6), "scratch": scores}, 0.95)

    @pytest.mark.parametrize("confidence", [0.1, 1.0, 95.0, float("nan")])
    def test_a_confidence_is_a_share(self, confidence: float) -> None:
        with pytest.raises(DataError, match="confidence"):
            verdict(runs(0, 0.9, 0.6), confidence)
