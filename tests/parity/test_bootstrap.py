"""The bound of a drop: against resampling by hand, its laws, its coverage, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.errors import DataError, ParityError
from edgetl.metrics import metric, verification
from edgetl.parity import resampling
from edgetl.parity.bootstrap import grouped_drop, paired_drop
from edgetl.parity.bounds import least_bound, upper_bound
from edgetl.parity.resampling import rarest_class

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


def case(seed: int, n: int = 60, noise: float = 0.5, name: str = "auc") -> Case:
    """Reference, outputs, labels."""
    random = np.random.default_rng(seed)
    if name == "tar":
        labels = np.repeat(np.arange(n // 5), 5)
        reference = random.normal(size=(n // 5, 8))[labels] + 0.5 * random.normal(size=(n, 8))
    elif name == "map":
        labels = (random.random((n, 3)) < 0.3).astype(np.int64)
        labels[:3] = np.eye(3)
        reference = random.normal(size=(n, 3)) + 2 * labels
    else:
        labels = np.arange(n) % 2
        reference = random.normal(size=(n, 2)) + 1.5 * np.eye(2)[labels]
    return reference, reference + noise * random.normal(size=reference.shape), labels


def bounds(*arguments, **settings) -> tuple[float, float]:
    """The drop and its upper bound."""
    found = paired_drop(*arguments, **settings)
    return found.value, found.upper


@pytest.mark.parametrize("name", ["top1", "macro-f1", "auc", "map", "tar"])
@given(seed=st.integers(0, 10**6), noise=st.floats(0, 3), confidence=st.sampled_from([0.5, 0.9, 0.99]))
@settings(max_examples=15, deadline=None)
def test_the_bound_is_not_below_the_drop(name: str, seed: int, noise: float, confidence: float) -> None:
    reference, outputs, labels = case(seed, noise=noise, name=name)
    drop, upper = bounds(metric(name), reference, outputs, labels, confidence=confidence, resamples=100)
    assert drop == metric(name)(reference, labels) - metric(name)(outputs, labels)
    assert drop <= upper <= 1.0
    surer = paired_drop(metric(name), reference, outputs, labels, confidence=0.995, resamples=100).upper
    assert upper <= surer + 0.1  # a tail of a hundred resamples is a rough estimate, each confidence for itself


def test_at_the_bound_what_was_seen_comes_up_as_seldom_as_stated() -> None:
    """Resampled one by one, with the weights at which the drop is the bound: top-1, whose weights are known."""
    random = np.random.default_rng(2)
    labels = np.arange(400) % 2
    right = random.random((400, 2)) < (0.9, 0.85)
    reference, outputs = (np.where(np.eye(2)[labels] == right[:, [which]], 1.0, 0.0) for which in (0, 1))
    drop, upper = bounds(metric("top1"), reference, outputs, labels, confidence=0.95, resamples=4000)
    differences = right[:, 0].astype(int) - right[:, 1]
    tilts = np.linspace(0, 2, 2001)
    weights = np.exp(tilts[:, None] * differences)
    means = (weights * differences).sum(1) / weights.sum(1)
    place = int(np.argmin(np.abs(means - upper)))
    shares = weights[place] / weights[place].sum()
    found = random.choice(differences, (4000, 400), p=shares).mean(1)
    seldom = (found < drop - 1e-12).mean() + (np.abs(found - drop) < 1e-12).mean() / 2
    assert seldom == pytest.approx(0.05, abs=0.02)  # a sample in each direction is added besides
    assert upper == pytest.approx(upper_bound(*(int((differences == s).sum()) for s in (1, -1)), 400, 0.95), abs=0.004)


def test_the_order_of_classes_and_the_seed_are_all_that_is_random() -> None:
    reference, outputs, labels = case(1)
    first = paired_drop(metric("auc"), reference, outputs, labels, confidence=0.95, seed=3)
    assert paired_drop(metric("auc"), reference, outputs, labels, confidence=0.95, seed=3) == first
    other = paired_drop(metric("auc"), reference, outputs, labels, confidence=0.95, seed=4)
    assert other.value == first.value
    assert other.upper == pytest.approx(first.upper, abs=0.01)


class TestTheLeastBound:
    @pytest.mark.parametrize("name", ["top1", "macro-f1", "auc", "map", "tar"])
    def test_few_samples_that_agree_show_little(self, name: str) -> None:
        reference, _, labels = case(2, n=20, name=name)
        drop, upper = bounds(metric(name), reference, reference.copy(), labels, confidence=0.95)
        assert drop == 0.0
        assert upper == least_bound(20, 0.95) > 0.1


class TestRareClasses:
    """A class counts as much as the others, however few samples it has."""

    def test_no_bound_is_below_what_the_rarest_class_leaves_open(self) -> None:
        labels = np.repeat([0, 1, 2], [200, 85, 15])
        exact = np.eye(3)[labels]
        found = paired_drop(metric("macro-f1"), exact, exact.copy(), labels, confidence=0.95)
        assert (found.value, found.upper) == (0.0, least_bound(15, 0.95) / 3)
        assert paired_drop(metric("top1"), exact, exact.copy(), labels, confidence=0.95).upper == least_bound(300, 0.95)
        together = paired_drop(
            metric("macro-f1"), exact, exact.copy(), labels, confidence=0.95, groups=np.arange(300) // 5
        )
        assert together.upper == least_bound(3, 0.95) / 3  # three groups with samples of it
        several = np.eye(4, dtype=int)[labels]  # nobody has the fourth label
        logits = 20.0 * several - 10.0
        assert paired_drop(metric("macro-f1"), logits, logits.copy(), several, confidence=0.95).upper == found.upper

    @pytest.mark.timeout(10)
    def test_it_is_found_at_once_among_thousands(self) -> None:
        """A look at each class by itself took 16 s, and a byte for each sample and class."""
        labels = np.append(np.repeat(np.arange(5000), 40), [5000] * 7)
        assert rarest_class(labels, np.arange(len(labels))) == (7, 5001)

    def test_an_engine_that_fails_on_it_seldom_passes(self) -> None:
        """It loses 9.5% of a class with a twentieth of the samples: 1.05 points; 29 of 100 such engines passed."""
        random, passed = np.random.default_rng(12), 0
        for seed in range(60):
            labels = random.choice(5, 300, p=[0.4, 0.3, 0.2, 0.05, 0.05])
            answers = np.where(random.random(300) < 0.92, labels, (labels + 1) % 5)
            lost = (random.random(300) < 0.095) & (labels == 4) & (answers == 4)
            reference, outputs = np.eye(5)[answers], np.eye(5)[np.where(lost, 0, answers)]
            found = paired_drop(
                metric("macro-f1"), reference, outputs, labels, confidence=0.95, resamples=200, seed=seed
            )
            passed += found.upper <= 0.01
        assert passed <= 7


@pytest.mark.slow
@pytest.mark.parametrize(("name", "noise", "n"), [("macro-f1", 1.0, 500), ("auc", 0.5, 300)])
def test_coverage_of_the_interval_and_of_the_bound(name: str, noise: float, n: int) -> None:
    """1,000 test sets; the standard error of a coverage of 95% is 0.7 points. More of it: benchmarks/coverage.py."""
    true = case(10**6, n=400_000, noise=noise)
    wanted = metric(name)(true[0], true[2]) - metric(name)(true[1], true[2])
    assert wanted > least_bound(n, 0.975)  # below it everything is covered
    covered, held = 0, 0
    for seed in range(1000):
        found = paired_drop(metric(name), *case(seed, n=n, noise=noise), confidence=0.95, resamples=400, seed=seed)
        covered += found.interval[0] <= wanted <= found.interval[1]
        held += found.upper >= wanted
    assert 930 <= covered <= 970
    assert held >= 950 - 21  # three standard errors


@pytest.mark.parametrize("name", ["macro-f1", "auc"])
def test_the_bound_holds_as_often_as_it_says(name: str) -> None:
    """200 test sets of 120 samples; the true drop is that of 200,000 samples."""
    true = case(10**6, n=200_000, noise=1.0)
    wanted = metric(name)(true[0], true[2]) - metric(name)(true[1], true[2])
    held = 0
    for seed in range(200):
        upper = paired_drop(metric(name), *case(seed, n=120, noise=1.0), confidence=0.9, resamples=300).upper
        held += wanted <= upper
    assert 0.84 <= held / 200 <= 0.96  # 0.9 within three standard errors


@pytest.mark.parametrize("name", ["macro-f1", "auc"])
def test_units_that_are_looked_at_together_change_little(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = paired_drop(metric(name), *case(6, n=600), confidence=0.95)
    monkeypatch.setattr(resampling, "_MOST_UNITS", 200)
    other = paired_drop(metric(name), *case(6, n=600), confidence=0.95)
    assert other.value == one.value
    assert other.upper == pytest.approx(one.upper, abs=0.1 * (one.interval[1] - one.interval[0]))


class TestGroups:
    def test_copies_in_groups_are_not_more_evidence(self) -> None:
        reference, outputs, labels = case(4, n=60, noise=1.0)
        upper = paired_drop(metric("auc"), reference, outputs, labels, confidence=0.95).upper
        four = [np.repeat(each, 4, axis=0) for each in (reference, outputs, labels)]
        groups = np.repeat(np.arange(60), 4)
        together = paired_drop(metric("auc"), *four, confidence=0.95, groups=groups).upper
        assert together == pytest.approx(upper, abs=1e-9)
        assert paired_drop(metric("auc"), *four, confidence=0.95).upper < upper - 0.01

    def test_groups_may_have_names(self) -> None:
        reference, outputs, labels = case(4)
        names = np.array(["one", "two", "three"])[np.arange(60) % 3]
        codes = np.unique(names, return_inverse=True)[1]
        first, second = (
            paired_drop(metric("auc"), reference, outputs, labels, confidence=0.9, groups=each)
            for each in (names, codes)
        )
        assert first == second

    def test_faces_are_drawn_by_identity(self) -> None:
        reference, outputs, labels = case(5, name="tar")
        first = paired_drop(metric("tar"), reference, outputs, labels, confidence=0.9)
        assert paired_drop(metric("tar"), reference, outputs, labels, confidence=0.9, groups=labels * 3 + 1) == first
        drop = verification(reference, labels, 1e-2).tar - verification(outputs, labels, 1e-2).tar
        assert first.value == pytest.approx(drop)
        for wrong in (np.arange(60), labels // 2, np.roll(labels, 1)):
            with pytest.raises(DataError, match="by identity"):
                paired_drop(metric("tar"), reference, outputs, labels, confidence=0.9, groups=wrong)

    def test_a_person_who_was_drawn_twice_is_no_impostor_of_himself(self) -> None:
        """Identities far apart, each with samples that are alike: whatever is drawn, every genuine pair is accepted."""
        labels = np.repeat(np.arange(6), 4)
        reference = np.eye(6)[labels] + 0.01 * np.random.default_rng(0).normal(size=(24, 6))
        drop, upper = bounds(metric("tar"), reference, reference[::-1][::-1].copy(), labels, confidence=0.95)
        assert (drop, upper) == (0.0, least_bound(24, 0.95))

    @pytest.mark.parametrize("groups", [np.zeros(60), np.arange(59)])
    def test_groups_that_cannot_be_drawn(self, groups: np.ndarray) -> None:
        with pytest.raises(DataError, match="group"):
            paired_drop(metric("auc"), *case(0), confidence=0.9, groups=groups)


class TestBadInput:
    def test_an_engine_that_returns_nan_has_lost_everything(self) -> None:
        reference, outputs, labels = case(0)
        outputs[7, 0] = np.nan
        drop, upper = bounds(metric("auc"), reference, outputs, labels, confidence=0.9)
        assert (drop, upper) == (metric("auc")(reference, labels), 1.0)

    def test_a_reference_that_returns_nan_compares_with_nothing(self) -> None:
        reference, outputs, labels = case(0)
        reference[7, 0] = np.inf
        with pytest.raises(ParityError, match="reference"):
            paired_drop(metric("auc"), reference, outputs, labels, confidence=0.9)

    def test_one_class_has_no_auc(self) -> None:
        reference, outputs, labels = case(0)
        with pytest.raises(DataError, match="two classes"):
            paired_drop(metric("auc"), reference, outputs, np.zeros_like(labels), confidence=0.9)

    def test_resamples_of_one_class_are_drawn_again(self) -> None:
        reference, outputs, _ = case(0)
        labels = np.zeros(60, dtype=np.int64)
        labels[0] = 1  # a third of all resamples have no other
        drop, upper = bounds(metric("auc"), reference, outputs, labels, confidence=0.9)
        assert np.isfinite([drop, upper]).all()

    @pytest.mark.parametrize("confidence", [0.0, 0.3, 1.0, 95.0, float("nan")])
    def test_a_confidence_is_a_share(self, confidence: float) -> None:
        with pytest.raises(DataError, match="confidence"):
            paired_drop(metric("auc"), *case(0), confidence=confidence)

    def test_shapes_must_fit(self) -> None:
        reference, outputs, labels = case(0)
        with pytest.raises(DataError, match="outputs"):
            paired_drop(metric("auc"), reference, outputs[:-1], labels, confidence=0.9)
        with pytest.raises(DataError, match="label"):
            paired_drop(metric("auc"), reference, outputs, labels[:-1], confidence=0.9)
        with pytest.raises(DataError, match="resample"):
            paired_drop(metric("auc"), reference, outputs, labels, confidence=0.9, resamples=0)


# --- samples that belong together -------------------------------------------------------------------------------------


def losses(random: np.random.Generator, groups: int, drop: float, together: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses of 1 to 9 samples a group: of a group that errs, such a share of them is lost."""
    sizes = random.integers(1, 10, groups)
    units = np.repeat(np.arange(groups), sizes)
    errs = random.random(groups) < drop / together
    return (errs[units] & (random.random(len(units)) < together)).astype(np.int64), units


@pytest.mark.slow
@pytest.mark.parametrize("together", [0.1, 0.5, 1.0])
def test_the_bound_of_groups_holds_as_often_as_stated(together: float) -> None:
    random = np.random.default_rng(3)
    held = [
        grouped_drop(*losses(random, 400, 0.02, together), confidence=0.95, resamples=400, seed=seed).upper >= 0.02
        for seed in range(400)
    ]
    assert 0.92 <= np.mean(held) <= 0.99


def test_groups_of_one_sample_are_top_1() -> None:
    random = np.random.default_rng(4)
    right = random.random(300) > 0.05
    labels = np.arange(300) % 2
    outputs = np.eye(2)[np.where(right, labels, 1 - labels)]
    whole = paired_drop(metric("top1"), np.eye(2)[labels], outputs, labels, confidence=0.95)
    found = grouped_drop(1 - right.astype(np.int64), np.arange(300), confidence=0.95)
    assert (found.value, found.upper, found.lower) == pytest.approx((whole.value, whole.upper, whole.lower))


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="there are 3 groups for 5 samples"):
        grouped_drop(np.zeros(5, np.int64), np.arange(3), confidence=0.95)
    with pytest.raises(DataError, match="needs two groups"):
        grouped_drop(np.zeros(5, np.int64), np.zeros(5, np.int64), confidence=0.95)
