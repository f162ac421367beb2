"""Waiting: never early. How late depends on the machine, so bounds are generous."""

from __future__ import annotations

import time

import pytest

from edgetl.benchmark.waiting import MachineClock


@pytest.mark.parametrize("spin_ns", [0, 200_000, 10**9])
@pytest.mark.parametrize("ahead_ns", [-1_000_000, 0, 50_000, 3_000_000])
def test_returns_at_the_moment_or_after_it(ahead_ns: int, spin_ns: int) -> None:
    clock = MachineClock(spin_ns=spin_ns)
    began = clock.now()
    slept, spun = clock.wait_until(began + ahead_ns)
    waited = clock.now() - began
    assert waited >= ahead_ns
    assert 0 <= slept + spun <= waited
    assert waited < ahead_ns + 2e9


def test_the_share_that_is_spun_is_told() -> None:
    clock = MachineClock(spin_ns=10**9)
    slept, spun = clock.wait_until(clock.now() + 2_000_000)
    assert spun > 1_900_000
    assert slept < 10_000_000  # the time between two readings of the clock


def test_sleeping_leaves_the_processor_alone() -> None:
    clock, began = MachineClock(), time.process_time()
    slept, _ = clock.wait_until(clock.now() + 200_000_000)
    assert slept > 100_000_000
    assert time.process_time() - began < 0.15
