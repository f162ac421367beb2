from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgetl.finetune.samplers import Batches

counts = st.integers(2, 60)


def batches(count: int, size: int, **more: object) -> Batches:
    return Batches(labels=np.arange(count) % 3, batch_size=size, epochs=3, seed=5, **more)  # type: ignore[arg-type]


class TestOrder:
    @given(counts, st.integers(2, 20))
    def test_every_epoch_has_every_sample_once_but_a_rest_of_one(self, count: int, size: int) -> None:
        plan = batches(count, size)
        for epoch in range(3):
            keys = [key for batch in plan for key in batch if key[0] == epoch]
            assert len(keys) == len(set(keys))
            assert len(keys) == count - (count % size == 1 and count > size)

    def test_epochs_differ_and_seeds_too(self) -> None:
        plan = batches(50, 10)
        assert plan.order(0).tolist() != plan.order(1).tolist()
        assert plan.order(0).tolist() != replace(plan, seed=6).order(0).tolist()
        assert plan.order(1).tolist() == batches(50, 7).order(1).tolist()

    @given(counts, st.integers(2, 20), st.integers(0, 10_000))
    def test_going_on_gives_the_batches_that_were_left(self, count: int, size: int, where: int) -> None:
        plan = batches(count, size)
        step = where % plan.steps
        assert list(plan)[step:] == list(replace(plan, first_step=step))

    @given(counts, st.integers(2, 20), st.integers(1, 4))
    def test_processes_share_every_batch(self, count: int, size: int, world: int) -> None:
        shares = [list(batches(count, size, rank=rank, world=world)) for rank in range(world)]
        together = batches(count, size, world=world)
        assert len({len(share) for share in shares}) == 1
        for step, parts in enumerate(zip(*shares, strict=True)):
            assert sum(map(len, parts)) == together.size(step)
        if together.per_epoch == batches(count, size).per_epoch:
            whole = [sorted(key for part in parts for key in part) for parts in zip(*shares, strict=True)]
            assert whole == [sorted(batch) for batch in batches(count, size)]


class TestBalanced:
    def test_every_class_is_drawn_alike(self) -> None:
        labels = np.asarray([0] * 900 + [1] * 90 + [2] * 10)
        plan = Batches(labels=labels, batch_size=100, epochs=5, seed=0, balanced=True)
        drawn = np.bincount(labels[[index for batch in plan for _, index in batch]])
        assert drawn.sum() == 5000
        assert (abs(drawn / drawn.sum() - 1 / 3) < 0.03).all()

    def test_a_class_that_is_not_there_is_not_drawn(self) -> None:
        plan = Batches(labels=np.asarray([0, 0, 4, 4]), batch_size=4, epochs=2, seed=0, balanced=True)
        assert {index for batch in plan for _, index in batch} <= {0, 1, 2, 3}
