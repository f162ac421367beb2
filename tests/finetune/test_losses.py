from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgetl.config import Finetune
from edgetl.finetune.losses import class_weights, classification

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
        for settings in (Finetune(), Finetune(loss="focal")):
            loss = classification(settings)
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
