"""Is a measurement stable? Error rates on simulated measurements with realistic noise, and each reason by itself.

The noise of a clean measurement: log-normal calls, blocks that resemble their neighbours (AR(1)), a level per process,
and rare long calls. Rates are of 1,000 measurements each; their standard error is below 0.5 points at 2%.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetl.benchmark import timeline
from edgetl.benchmark.conditions import Conditions, Series
from edgetl.benchmark.reasons import Limits
from edgetl.benchmark.sensors.reading import Kind, Reading
from edgetl.benchmark.stability import BlockUse, Stability, judge, judge_machine
from edgetl.errors import UsageError

CASES = 1000
PROCESSES, BLOCKS, CALLS = 5, 14, 10  # 700 calls: what a measurement is by default
TOTAL = PROCESSES * BLOCKS * CALLS
PROCESS = np.repeat(np.arange(PROCESSES), BLOCKS * CALLS)
BLOCK = np.repeat(np.arange(PROCESSES * BLOCKS), CALLS)


@dataclass(frozen=True)
class Noise:
    call: float = 0.03
    """Log-normal spread of a call."""
    block: float = 0.01
    """Spread of the level of a block."""
    resemblance: float = 0.6
    """Correlation of a block with the one before."""
    process: float = 0.01
    """Spread of the level of a process."""
    spikes: float = 0.003
    """Share of calls that take a few times as long."""


REALISTIC = Noise()


def simulate(seed: int, noise: Noise = REALISTIC, cases: int = CASES) -> NDArray[np.float64]:
    """Clean measurements of a call of 200 µs, ns; shape (cases, calls)."""
    random = np.random.default_rng(seed)
    times = 200e3 * np.exp(noise.call * random.standard_normal((cases, TOTAL)))
    level = np.empty((cases, PROCESSES * BLOCKS))
    level[:, 0] = random.standard_normal(cases)
    for index in range(1, level.shape[1]):
        fresh = np.sqrt(1 - noise.resemblance**2) * random.standard_normal(cases)
        level[:, index] = noise.resemblance * level[:, index - 1] + fresh
    times *= np.exp(noise.block * level)[:, BLOCK]
    times *= np.exp(noise.process * random.standard_normal((cases, PROCESSES)))[:, PROCESS]
    spiked = random.random((cases, TOTAL)) < noise.spikes
    times[spiked] *= 1 + random.exponential(4, int(spiked.sum()))
    return times


def begin(times: NDArray[np.float64]) -> NDArray[np.int64]:
    """Starts of calls in a row: blocks 10 ms apart, processes 300 ms."""
    pauses = np.full(TOTAL, 1e3)
    pauses[CALLS::CALLS] = 10e6
    pauses[BLOCKS * CALLS :: BLOCKS * CALLS] = 300e6
    return np.asarray(np.cumsum(pauses) + np.concatenate([[0], np.cumsum(times)[:-1]]), np.int64)


def verdict(times: NDArray[np.float64], use: BlockUse | None = None, limits: Limits | None = None) -> Stability:
    return judge(times.astype(np.int64), begin(times), PROCESS, BLOCK, use=use, limits=limits)


def rate(cases: NDArray[np.float64]) -> float:
    """Share that is called unstable, without a word of the operating system or of a sensor."""
    return float(np.mean([not verdict(case).stable for case in cases]))


def kinds(found: Stability) -> set[str]:
    return {reason.kind for reason in found.reasons}


# --- error rates -----------------------------------------------------------------------------------------------------


def test_at_most_two_in_a_hundred_clean_measurements_are_called_unstable() -> None:
    assert rate(simulate(1)) <= 0.01


@pytest.mark.parametrize(
    "noise",
    [
        Noise(call=0.10),
        Noise(resemblance=0.9),
        Noise(block=0.02),
        Noise(spikes=0.01),
        Noise(call=0.001, block=0.0005, process=0.0005, spikes=0.0),
    ],
    ids=["wide calls", "alike neighbours", "wide blocks", "many spikes", "a quiet machine"],
)
def test_other_clean_machines(noise: Noise) -> None:
    assert rate(simulate(1, noise, cases=200)) <= 0.02


def test_levels_of_processes_are_rarely_taken_for_a_trend() -> None:
    """Levels that spread by 2% make a trend of 5% now and then: five processes cannot tell. It is 5% of 1,000 cases."""
    assert rate(simulate(1, Noise(process=0.02), cases=200)) <= 0.08


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 15, 60])
def test_the_critical_point_of_student(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert timeline._critical_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.025)


def test_a_step_of_a_tenth_is_found() -> None:
    cases, random = simulate(2), np.random.default_rng(3)
    at = random.integers(TOTAL // 5, TOTAL * 4 // 5, CASES)
    factor = np.where(random.random(CASES) < 0.5, 1.1, 1 / 1.1)
    assert rate(np.where(np.arange(TOTAL) >= at[:, None], cases * factor[:, None], cases)) >= 0.95


def test_a_drift_of_a_tenth_is_found() -> None:
    change = np.where(np.arange(CASES) % 2, 0.10, -0.10)
    assert rate(simulate(4) * (1 + change[:, None] * np.linspace(0, 1, TOTAL))) >= 0.95


def hog(cases: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Another process on the same processor, from somewhere in the first half on: turns of about 3 ms each."""
    random = np.random.default_rng(seed)
    found: NDArray[np.float64] = np.array(cases)
    for times in found:
        first = random.integers(0, TOTAL // 2)
        used = np.cumsum(times[first:])
        turns = np.cumsum(random.uniform(2e6, 4e6, int(used[-1] / 2e6) + 2))
        waited = np.diff(np.searchsorted(turns, used), prepend=0)
        times[first:] += waited * random.uniform(2e6, 4e6, len(waited))
    return found


def test_a_hog_on_the_same_processor_is_found_in_the_times_alone() -> None:
    assert rate(hog(simulate(5), 6)) >= 0.95


def test_a_process_stopped_for_a_second_is_found() -> None:
    cases = simulate(7)
    cases[np.arange(CASES), np.random.default_rng(8).integers(0, TOTAL, CASES)] += 1e9
    assert rate(cases) >= 0.95


def test_a_step_of_two_hundredths_does_not_matter() -> None:
    cases = simulate(9, cases=200)
    cases[:, TOTAL // 2 :] *= 1.02
    assert rate(cases) <= 0.05


# --- what it says ----------------------------------------------------------------------------------------------------


CLEAN = simulate(10, cases=1)[0]


def test_a_clean_measurement_is_stable_and_tells_what_was_not_asked() -> None:
    found = verdict(CLEAN)
    assert (found.stable, found.reasons) == (True, ())
    assert any("sensors" in one for one in found.unknown)
    assert json.loads(json.dumps(found.to_json()))["stable"] is True


def test_a_step_is_named_with_its_size_and_its_place() -> None:
    times = CLEAN.copy()
    times[BLOCKS * CALLS * 2 + 5 * CALLS :] *= 1.2
    (reason,) = (one for one in verdict(times).reasons if one.kind == "step")
    assert reason.figures["size"] == pytest.approx(0.2, abs=0.04)
    assert "within process 3" in reason.text
    assert reason.advice


def test_a_step_between_processes_says_so() -> None:
    times = CLEAN.copy()
    times[BLOCKS * CALLS * 3 :] *= 0.8
    (reason,) = (one for one in verdict(times).reasons if one.kind == "step")
    assert "fell" in reason.text
    assert "where another process began" in reason.text


def test_a_drift_is_a_drift_and_no_step() -> None:
    found = verdict(CLEAN * np.linspace(1, 1.3, TOTAL))
    assert "drift" in kinds(found)
    assert "step" not in kinds(found)


def test_a_drift_that_begins_anew_in_every_process() -> None:
    ramp = np.tile(np.linspace(1.15, 1, BLOCKS * CALLS), PROCESSES)
    found = verdict(CLEAN * ramp)
    assert any(one.kind == "drift" and "within each process" in one.text for one in found.reasons)


def test_processes_that_differ_in_no_order() -> None:
    levels = np.array([1.0, 1.2, 1.0, 1.2, 1.0])
    assert "processes" in kinds(verdict(CLEAN * levels[PROCESS]))


def test_a_stall_says_how_long() -> None:
    times = CLEAN.copy()
    times[100] += 1e9
    found = verdict(times)
    assert kinds(found) == {"stall"}
    assert found.reasons[0].figures["longest_ms"] == pytest.approx(1000, abs=1)


def test_a_stop_between_two_blocks_is_a_stall_too() -> None:
    starts = begin(CLEAN)
    starts[CALLS * 3 :] += 1_000_000_000
    found = judge(CLEAN.astype(np.int64), starts, PROCESS, BLOCK)
    assert kinds(found) == {"stall"}
    assert "did nothing for 1010 ms" in found.reasons[0].text


def test_slow_calls_whose_second_is_no_stall() -> None:
    """Calls of two seconds that spread by a tenth: a second more or less is a fifth of nothing."""
    times = simulate(11, Noise(call=0.1, spikes=0), cases=1)[0] * 1e4
    assert "stall" not in kinds(verdict(times))


def test_bursts_are_a_neighbour() -> None:
    times = CLEAN.copy()
    times[np.isin(BLOCK, np.arange(3, 80, 8))] *= 1.3
    assert kinds(verdict(times)) == {"neighbour"}


def test_too_few_calls_are_a_reason() -> None:
    found = judge([200_000] * 20, np.arange(20) * 300_000, [0] * 20, np.repeat([0, 1], 10))
    assert kinds(found) == {"few-samples"}
    assert found.reasons[0].figures == {"calls": 20, "blocks": 2}


def test_order_of_the_calls_does_not_matter() -> None:
    shuffled = np.random.default_rng(12).permutation(TOTAL)
    times = CLEAN * np.linspace(1, 1.3, TOTAL)
    columns = (times.astype(np.int64), begin(times), PROCESS, BLOCK)
    assert judge(*(column[shuffled] for column in columns)) == judge(*columns)


def test_many_blocks_are_merged() -> None:
    blocks = np.repeat(np.arange(TOTAL // 2), 2)
    assert judge(CLEAN.astype(np.int64), begin(CLEAN), PROCESS, blocks).stable


def test_equal_times_are_stable() -> None:
    assert verdict(np.full(TOTAL, 200_000.0)).stable


@given(st.integers(1, 1000), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_the_verdict_does_not_depend_on_how_fast_the_machine_is(factor: int, seed: int) -> None:
    """The same noise on a machine that is slower in everything: the same verdict, but for the length of a stall."""
    times = simulate(seed, Noise(block=0.03), cases=1)[0].astype(np.int64)
    starts, limits = begin(times.astype(np.float64)), Limits(stall_ms=1e15)
    fast = judge(times, starts, PROCESS, BLOCK, limits=limits)
    slow = judge(times * factor, starts * factor, PROCESS, BLOCK, limits=limits)
    assert kinds(slow) == kinds(fast)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_arrays_of_different_lengths() -> None:
    with pytest.raises(UsageError, match="must be of one length"):
        judge([1, 2], [1, 2], [0, 0], [0])


@pytest.mark.parametrize(("times", "message"), [([], "no measured time"), ([5, 0], "cannot take 0 ns")])
def test_times_that_are_none(times: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        judge(times, times, times, times)


def test_block_use_of_another_length() -> None:
    with pytest.raises(UsageError, match="cpu_ns has shape"):
        verdict(CLEAN, BlockUse(wall_ns=[1.0, 2.0], cpu_ns=[1.0]))


# --- the operating system's word -------------------------------------------------------------------------------------


WALL = np.full(PROCESSES * BLOCKS, 5e6)
NOTHING = np.zeros(PROCESSES * BLOCKS)


def test_waiting_for_a_processor_is_a_neighbour() -> None:
    found = verdict(CLEAN, BlockUse(wall_ns=WALL, cpu_ns=WALL * 0.5, waiting_ns=WALL * 0.5))
    assert kinds(found) == {"neighbour"}
    assert "50.0%" in found.reasons[0].text


def test_a_gpu_engine_that_sleeps_has_no_neighbour() -> None:
    use = BlockUse(wall_ns=WALL, cpu_ns=WALL * 0.02, waiting_ns=WALL * 0.004, involuntary=NOTHING)
    assert verdict(CLEAN, use).stable


def test_context_switches_where_waiting_is_unknown() -> None:
    crowded = BlockUse(wall_ns=WALL, cpu_ns=WALL * 0.5, involuntary=NOTHING + 1)
    assert kinds(verdict(CLEAN, crowded)) == {"neighbour"}
    sleeping = BlockUse(wall_ns=WALL, cpu_ns=WALL * 0.5, involuntary=NOTHING)
    assert verdict(CLEAN, sleeping).stable
    busy = BlockUse(wall_ns=WALL, cpu_ns=WALL * 2.0, involuntary=NOTHING + 1)
    assert verdict(CLEAN, busy).stable


def test_use_of_blocks_from_tables() -> None:
    rows: list[dict[str, float | None]] = [
        {"wall_ns": 5e6, "cpu_ns": 5e6, "waiting_ns": None, "involuntary": 0},
        {"wall_ns": 5e6, "cpu_ns": 4e6},
    ]
    use = BlockUse.of(rows)
    assert np.asarray(use.cpu_ns).tolist() == [5e6, 4e6]
    assert np.isnan(np.asarray(use.waiting_ns)).all()
    assert np.isnan(np.asarray(use.involuntary)).tolist() == [False, True]


def test_unknown_words_are_named() -> None:
    nothing = NOTHING + np.nan
    found = verdict(CLEAN, BlockUse(wall_ns=WALL, cpu_ns=nothing, waiting_ns=nothing, involuntary=nothing))
    assert found.stable
    assert any("schedstat" in one for one in found.unknown)
    assert any("context switches" in one for one in found.unknown)


# --- the sensors' word -----------------------------------------------------------------------------------------------


SPAN = (0, int(begin(CLEAN)[-1] + 1_000_000))


def series(name: str, values: Sequence[float], kind: Kind = "level", unit: str = "") -> Series:
    times = np.linspace(*SPAN, len(values)).astype(np.int64)
    return Series(name=name, unit=unit, source="a test", kind=kind, times_ns=times, values=np.array(values))


def conditions(*found: Series, facts: tuple[Reading, ...] = ()) -> Conditions:
    return Conditions(facts=facts, series=found, period_s=0.5, reading_ms=1.0, background=False)


def processor(busy: float, own: float, idle: float, steal: float = 0.0) -> tuple[Series, ...]:
    table = {"busy": busy, "own": own, "idle": idle, "iowait": 0.0, "steal": steal}
    return tuple(series(f"cpu.{name}", [7.0, 7.0 + value], "counter", "s") for name, value in table.items())


@pytest.mark.parametrize(
    ("sensors", "kind", "words"),
    [
        (processor(6, 2, 2), "neighbour", "other processes used 50%"),
        (processor(5, 5, 4, steal=1), "neighbour", "hypervisor gave 10%"),
        ((series("throttle.core", [3, 3, 5], "counter"),), "throttling", "throttled itself 2 times"),
        ((series("cooling.cpufreq-cpu0.1", [0, 2, 0, 0]),), "throttling", "cpufreq-cpu0.1 in 25%"),
        ((series("gpu0.throttle.hw_thermal", [0, 1, 0, 0]),), "throttling", "gpu0 down in 25%"),
        ((series("gpu0.throttle.power_cap", [1, 1, 0, 0]),), "throttling", "power cap"),
        ((series("cgroup.throttled", [0, 1], "counter", "s"),), "throttling", "quota"),
        ((series("cpu.frequency", [3600] * 6 + [2000] * 6, unit="MHz"),), "frequency", "from 3600 to 2000 MHz"),
        ((series("gpu1.clock.sm", [1980] * 6 + [1500] * 6, unit="MHz"),), "frequency", "gpu1.clock.sm"),
    ],
)  # fmt: skip
def test_what_sensors_hold_against_a_measurement(sensors: tuple[Series, ...], kind: str, words: str) -> None:
    found = judge(CLEAN.astype(np.int64), begin(CLEAN), PROCESS, BLOCK, conditions=conditions(*sensors))
    assert kinds(found) == {kind}
    assert words in found.reasons[0].text
    assert found.reasons[0].advice


def test_things_that_were_timed_in_turn_say_the_same_of_a_clock() -> None:
    """The second took its turns a little later, and has readings of its own in its thirds; it is one machine."""
    found = conditions(series("cpu.frequency", np.linspace(3600, 2000, 40).tolist(), unit="MHz"))
    times, starts = CLEAN.astype(np.int64), begin(CLEAN)
    later = starts + (SPAN[1] - SPAN[0]) // 8
    apart = [judge(times, each, PROCESS, BLOCK, conditions=found) for each in (starts, later)]
    together = [judge(times, each, PROCESS, BLOCK, conditions=found, during=SPAN) for each in (starts, later)]
    assert all(kinds(each) == {"frequency"} for each in (*apart, *together))
    assert apart[0].reasons != apart[1].reasons
    assert together[0].reasons == together[1].reasons


def test_a_clock_that_follows_a_load_on_purpose_is_held_against_nothing() -> None:
    found = conditions(series("cpu.frequency", [2000] * 6 + [3600] * 6, unit="MHz"))
    ends = {"began_ns": 0, "ended_ns": 10**12}
    assert kinds(judge_machine(found, **ends)) == {"frequency"}
    assert judge_machine(found, **ends, limits=Limits(clocks=math.inf)).stable


def test_threads_that_wait_for_each_other_are_no_neighbour_of_a_scenario() -> None:
    """A camera's engine of two threads: after each pause the kernel wakes both on one processor, for a tick of 3 ms."""
    ends = {"began_ns": 0, "ended_ns": 3 * 10**9}
    use = BlockUse(wall_ns=[3e9], cpu_ns=[0.8e9], waiting_ns=[0.29e9])
    alone, beside = (conditions(*processor(0.9 + others, 0.9, 6 - others)) for others in (0.02, 1.5))
    assert judge_machine(alone, **ends, use=use).stable
    assert kinds(judge_machine(beside, **ends, use=use)) == {"neighbour"}
    assert kinds(judge_machine(conditions(), **ends, use=use)) == {"neighbour"}  # it is not known who had it


def test_more_threads_than_processors_are_named_as_such() -> None:
    use = BlockUse(wall_ns=WALL, cpu_ns=WALL * 0.5, waiting_ns=WALL * 0.5)
    found = judge(
        CLEAN.astype(np.int64), begin(CLEAN), PROCESS, BLOCK, use=use, conditions=conditions(*processor(0.9, 0.9, 6)),
    )  # fmt: skip
    (reason,) = found.reasons
    assert reason.kind == "neighbour" and "its own threads waited for each other" in reason.text
    assert reason.advice.startswith("use fewer threads")


def test_a_zone_that_reached_its_trip_point() -> None:
    limit = Reading(name="temperature.cpu.passive", value=80.0, unit="°C", source="a test")
    warm, cool = (conditions(series("temperature.cpu", [60.0, top]), facts=(limit,)) for top in (81.0, 79.0))
    times, starts = CLEAN.astype(np.int64), begin(CLEAN)
    assert kinds(judge(times, starts, PROCESS, BLOCK, conditions=warm)) == {"throttling"}
    assert judge(times, starts, PROCESS, BLOCK, conditions=cool).stable


@pytest.mark.parametrize(
    "sensors",
    [
        processor(5, 4.9, 5),
        (series("throttle.core", [3, 3, 3], "counter"),),
        (series("gpu0.throttle.power_cap", [1] + [0] * 9),),
        (series("gpu0.throttle.sync_boost", [1, 1, 1]),),
        (series("cpu.frequency", [3600, 3500, 3550] * 4, unit="MHz"),),
        (series("cpu.frequency", [3600, 2000], unit="MHz"),),
        (series("throttle.package", [float("nan")] * 3, "counter"),),
    ],
)
def test_what_they_do_not_hold_against_it(sensors: tuple[Series, ...]) -> None:
    assert judge(CLEAN.astype(np.int64), begin(CLEAN), PROCESS, BLOCK, conditions=conditions(*sensors)).stable


def test_sensors_that_say_nothing_are_named() -> None:
    found = judge(CLEAN.astype(np.int64), begin(CLEAN), PROCESS, BLOCK, conditions=conditions())
    assert found.stable
    for word in ("load of other processes", "hypervisor", "throttling", "clock frequencies"):
        assert any(word in one for one in found.unknown), word


def test_too_few_calls_are_no_word_against_a_measurement() -> None:
    few = judge(CLEAN[:20].astype(np.int64), begin(CLEAN)[:20], PROCESS[:20], BLOCK[:20])
    assert (few.stable, few.outcome, few.against) == (False, "unknown", ())
    times = CLEAN[:20].astype(np.int64)
    times[7] += 10**9
    stalled = judge(times, np.cumsum(times) - times, PROCESS[:20], BLOCK[:20])
    assert stalled.outcome == "unstable" and {reason.kind for reason in stalled.against} == {"stall"}
    for found in (few, stalled, judge(CLEAN.astype(np.int64), begin(CLEAN), PROCESS, BLOCK)):
        document = json.loads(json.dumps(found.to_json()))
        assert Stability.from_json(document) == found
        assert document["outcome"] == found.outcome
