"""Waiting: never early. How late depends on the machine, so bounds are generous."""

from __future__ import annotations

import time

import pytest

from edgetl.benchmark.sampler import Sampler
from edgetl.benchmark.sensors.reading import Reading
from edgetl.benchmark.waiting import MachineClock, SensingClock


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


def test_sensors_are_read_where_there_is_plenty_of_time_for_it() -> None:
    readings = []

    def read() -> list[Reading]:
        readings.append(time.perf_counter_ns())
        time.sleep(0.005)
        return [Reading(name="x", value=1.0, source="a test", kind="level")]

    with Sampler(period_s=1e-9, sources=[read]) as sampler:
        clock = SensingClock(sampler=sampler)
        clock.wait_until(clock.now() + 10_000_000)  # a reading takes half of that
        assert len(readings) == 1
        due = clock.now() + 400_000_000
        slept, spun = clock.wait_until(due)
        assert len(readings) == 2 and clock.now() >= due
        assert slept + spun < 396_000_000
    assert len(readings) == 3
