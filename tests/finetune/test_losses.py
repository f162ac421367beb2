from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.config import Finetune
from edgetl.errors import DataError, ModelError
from edgetl.finetune.losses import Loss, class_weights, classification, margin, multi_label, positive_weights

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [1.0, 1.0, 1.0]])
LABELS = torch.tensor([0, 2, 1])


class TestClassification:
    def test_it_is_torchs_cross_entropy(self) -> None:
        mine = classification(Finetune(label_smoothing=0.1))(LOGITS, LABELS)
        assert torch.equal(
            mine, torch.nn.functional.cross_entropy(LOGITS, LABELS, reduction="none", label_smoothing=0.1)
        )

    def test_soft_targets_of_one_class_are_hard_ones(self) -> None:
        soft = torch.nn.functional.one_hot(LABELS, 3).float()
        for finetune in (Finetune(), Finetune(loss="focal")):
            loss = classification(finetune)
            torch.testing.assert_close(loss(LOGITS, soft), loss(LOGITS, LABELS))

    def test_focal_loss_is_its_formula(self) -> None:
        right = LOGITS.softmax(1)[torch.arange(3), LABELS]
        expected = -((1 - right) ** 2) * right.log()
        torch.testing.assert_close(classification(Finetune(loss="focal"))(LOGITS, LABELS), expected)

    def test_focal_loss_without_gamma_is_cross_entropy(self) -> None:
        loss = classification(Finetune(loss="focal", focal_gamma=0.0))
        torch.testing.assert_close(loss(LOGITS, LABELS), classification(Finetune())(LOGITS, LABELS))

    def test_weights_count_a_class_more(self) -> None:
        plain = classification(Finetune())(LOGITS, LABELS)
        weighted = classification(Finetune(), torch.tensor([2.0, 1.0, 0.5]))(LOGITS, LABELS)
        torch.testing.assert_close(weighted, plain * torch.tensor([2.0, 0.5, 1.0]))

    def test_half_precision_logits_do_not_overflow(self) -> None:
        loss = classification(Finetune())(torch.tensor([[60000.0, -60000.0]], dtype=torch.float16), torch.tensor([1]))
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss).all()


class TestClassWeights:
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=200))
    def test_their_mean_over_the_samples_is_one_and_classes_weigh_alike(self, labels: list[int]) -> None:
        weights = class_weights(labels, 5)
        counts = np.bincount(labels, minlength=5)
        assert float((weights * counts).sum() / len(labels)) == pytest.approx(1.0, rel=1e-5)
        totals = (weights * counts)[counts > 0]
        assert totals == pytest.approx(totals[0], rel=1e-5)

    def test_a_class_without_samples_weighs_nothing(self) -> None:
        assert class_weights([0, 0, 2], 3).tolist() == [0.75, 0.0, 1.5]


FLAGS = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]])


class TestMultiLabel:
    def test_it_is_torchs_binary_cross_entropy(self) -> None:
        mine = multi_label(Finetune())(LOGITS, FLAGS)
        expected = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, FLAGS.float(), reduction="none").mean(1)
        torch.testing.assert_close(mine, expected)
        assert mine.shape == (3,)

    def test_focal_loss_is_its_formula(self) -> None:
        mine = multi_label(Finetune(loss="focal", focal_gamma=1.5))(LOGITS, FLAGS)
        right = torch.where(FLAGS == 1, LOGITS.sigmoid(), 1 - LOGITS.sigmoid())
        torch.testing.assert_close(mine, (-((1 - right) ** 1.5) * right.log()).mean(1))

    def test_focal_loss_without_gamma_is_cross_entropy(self) -> None:
        loss = multi_label(Finetune(loss="focal", focal_gamma=0.0))
        torch.testing.assert_close(loss(LOGITS, FLAGS), multi_label(Finetune())(LOGITS, FLAGS))

    def test_positives_may_count_more(self) -> None:
        plain = multi_label(Finetune())(LOGITS, FLAGS)
        weighted = multi_label(Finetune(), torch.tensor([3.0, 1.0, 1.0]))(LOGITS, FLAGS)
        extra = -2 * torch.nn.functional.logsigmoid(LOGITS[0, 0]) / 3
        torch.testing.assert_close(weighted - plain, torch.stack([extra, torch.zeros(()), torch.zeros(())]))

    def test_smoothing_moves_both_ends_by_half(self) -> None:
        soft = FLAGS * 0.8 + 0.1
        expected = multi_label(Finetune())(LOGITS, soft)
        torch.testing.assert_close(multi_label(Finetune(label_smoothing=0.2))(LOGITS, FLAGS), expected)

    @pytest.mark.parametrize("kind", ["cross-entropy", "focal"])
    def test_half_precision_and_sure_mistakes_stay_finite(self, kind: str) -> None:
        logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16, requires_grad=True)
        loss = multi_label(Finetune(loss=kind))(logits, torch.tensor([[0, 1]]))  # type: ignore[arg-type]
        loss.sum().backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss).all()
        assert logits.grad is not None and torch.isfinite(logits.grad).all()

    def test_one_label_per_sample_is_refused(self) -> None:
        with pytest.raises(ModelError, match="a target each"):
            multi_label(Finetune())(LOGITS, LABELS)


def cosines(seed: int, n: int = 6, classes: int = 4) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(n, classes, generator=random, dtype=torch.float64) * 1.98 - 0.99


class TestMargin:
    @settings(deadline=None, max_examples=30)
    @given(st.integers(0, 10**6), st.floats(0.0, 1.5))
    def test_it_adds_to_the_angle(self, seed: int, angle: float) -> None:
        values, labels = cosines(seed), torch.arange(6) % 4
        further = values.clone()
        for row, label in enumerate(labels.tolist()):
            old = math.acos(values[row, label])
            new = math.cos(old + angle) if old + angle < math.pi else values[row, label] - angle * math.sin(angle)
            further[row, label] = new
        expected = torch.nn.functional.cross_entropy(20.0 * further, labels, reduction="none").float()
        mine = margin(Finetune(), 4, scale=20.0, margin=angle)(values, labels)
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4)

    def test_on_cosines_it_is_taken_from_the_right_one(self) -> None:
        values, labels = cosines(0), torch.tensor([0, 1, 2, 3, 0, 1])
        shifted = values.clone()
        shifted[torch.arange(6), labels] -= 0.3
        expected = torch.nn.functional.cross_entropy(16.0 * shifted.float(), labels, reduction="none")
        found = margin(Finetune(), 4, scale=16.0, margin=0.3, on="cosine")(values, labels)
        torch.testing.assert_close(found, expected)

    def test_without_a_margin_it_is_cross_entropy_of_scaled_cosines(self) -> None:
        values, labels = cosines(0).float(), torch.arange(6) % 4
        expected = classification(Finetune(label_smoothing=0.1))(30.0 * values, labels)
        torch.testing.assert_close(margin(Finetune(label_smoothing=0.1), 4, margin=0.0)(values, labels), expected)

    def test_a_margin_makes_it_harder_and_a_larger_cosine_easier(self) -> None:
        values = torch.linspace(-1, 1, 201)
        both = torch.stack([values, torch.zeros_like(values)], dim=1)
        labels = torch.zeros(201, dtype=torch.int64)
        with_it, without = (margin(Finetune(), 2, margin=angle)(both, labels) for angle in (0.5, 0.0))
        assert (with_it >= without).all()
        assert (with_it.diff() <= 1e-6).all()

    @pytest.mark.parametrize("end", [-1.0, 1.0, -1.0000001, 1.0000001])
    @pytest.mark.parametrize("angle", [0.0, 0.5, 3.0])
    def test_gradients_are_finite_at_the_ends(self, end: float, angle: float) -> None:
        values = torch.tensor([[end, 0.5], [0.5, end]], requires_grad=True)
        loss = margin(Finetune(), 2, scale=64.0, margin=angle)(values, torch.tensor([0, 0]))
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert values.grad is not None and torch.isfinite(values.grad).all()

    def test_classes_may_have_weights(self) -> None:
        values, labels = cosines(1).float(), torch.arange(6) % 4
        weights = torch.tensor([2.0, 1.0, 0.0, 0.5])
        plain = margin(Finetune(), 4)(values, labels)
        torch.testing.assert_close(margin(Finetune(), 4, weights)(values, labels), plain * weights[labels])

    @pytest.mark.parametrize(("scale", "angle"), [(0.0, 0.5), (-1.0, 0.5), (math.inf, 0.5), (30, -0.1), (30, 3.2)])
    def test_what_cannot_be_trained_with(self, scale: float, angle: float) -> None:
        with pytest.raises(ModelError, match="cannot be trained with"):
            margin(Finetune(), 4, scale=scale, margin=angle)

    @pytest.mark.parametrize("targets", [torch.zeros(6, 4), torch.zeros(5, dtype=torch.int64)])
    def test_what_does_not_fit_is_refused(self, targets: torch.Tensor) -> None:
        with pytest.raises(ModelError, match="one label each"):
            margin(Finetune(), 4)(cosines(0), targets)
        with pytest.raises(ModelError, match=r"cosines \(n, 5\)"):
            margin(Finetune(), 5)(cosines(0), torch.zeros(6, dtype=torch.int64))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from(["cross-entropy", "focal"]), st.booleans())
def test_any_split_of_a_batch_adds_up_to_the_same(seed: int, cut: int, kind: str, smooth: bool) -> None:
    values, labels = cosines(seed).float(), torch.arange(6) % 4
    flags = torch.randint(0, 2, (6, 4), generator=torch.Generator().manual_seed(seed))
    finetune = Finetune(loss=kind, label_smoothing=0.1 if smooth else 0.0)  # type: ignore[arg-type]
    weights = torch.tensor([2.0, 1.0, 0.5, 3.0])
    losses: list[tuple[Loss, torch.Tensor]] = [
        (classification(finetune, weights), labels),
        (multi_label(finetune, weights), flags),
        (margin(finetune, 4, weights), labels),
    ]
    for loss, targets in losses:
        whole = loss(values, targets)
        assert whole.shape == (6,)
        parts = torch.cat([loss(values[:cut], targets[:cut]), loss(values[cut:], targets[cut:])])
        torch.testing.assert_close(parts, whole)


class TestPositiveWeights:
    @given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
    def test_positives_and_negatives_weigh_alike(self, rows: list[tuple[int, int]]) -> None:
        labels = np.array(rows)
        weights = positive_weights(labels)
        assert weights.dtype == np.float32
        for column, weight in zip(labels.T, weights, strict=True):
            positives, negatives = int(column.sum()), int((1 - column).sum())
            if positives and negatives:
                assert weight * positives == pytest.approx(negatives, rel=1e-5)
            else:
                assert weight == 1.0

    @pytest.mark.parametrize("labels", [np.array([0, 1]), np.array([[0, 2]])])
    def test_labels_are_flags(self, labels: np.ndarray) -> None:
        with pytest.raises(DataError, match="0 and 1 for each class"):
            positive_weights(labels)
