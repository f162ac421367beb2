"""Conditions: what the sampler keeps of its sensors, who used the processors, energy per inference."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgetl.benchmark.conditions import Conditions, Series, energies
from edgetl.benchmark.sampler import Sampler, facts
from edgetl.benchmark.sensors.reading import Kind, Reading, Source, unknown
from edgetl.errors import UsageError

SECOND = 1_000_000_000


def counting() -> Source:
    """A counter, a level that is missing every second time, a flag, and a sensor that never answers."""
    numbers = itertools.count()

    def read() -> Sequence[Reading]:
        number = next(numbers)
        level = (
            unknown("level", "it is off now", source="a test", unit="MHz", kind="level")
            if number % 2
            else Reading(name="level", value=float(number), unit="MHz", source="a test", kind="level")
        )
        return [
            Reading(name="counter", value=10 + number, unit="s", source="a test", kind="counter"),
            level,
            Reading(name="flag", value=True, source="a test", kind="level"),
            unknown("never", "there is none", source="a test", unit="W", kind="level"),
        ]

    return read


def test_a_series_is_what_was_read_and_when() -> None:
    before = time.perf_counter_ns()
    with Sampler(period_s=1e-9, sources=[counting()]) as sampler:
        assert sampler.poll()
        assert sampler.poll()
    found = sampler.conditions()
    counter, level, flag = (found.get(name) for name in ("counter", "level", "flag"))
    assert counter is not None
    assert level is not None
    assert flag is not None
    assert counter.values.tolist() == [10, 11, 12, 13]  # entered, twice polled, left
    assert counter.increase() == 3.0
    assert np.all(np.diff(counter.times_ns) > 0)
    assert before <= counter.times_ns[0] <= counter.times_ns[-1] <= time.perf_counter_ns()
    assert counter.rate_hz is not None
    assert np.isnan(level.values).tolist() == [False, True, False, True]
    assert level.why == "it is off now"
    assert flag.values.tolist() == [1, 1, 1, 1]
    assert found.get("never") is None
    assert found.unknown() == {"never": "there is none"}
    assert found.reading_ms is not None
    assert found.background is False


def test_polling_reads_only_when_the_period_is_over() -> None:
    with Sampler(period_s=1000, sources=[counting()]) as sampler:
        assert not any(sampler.poll() for _ in range(100))
    found = sampler.conditions().get("counter")
    assert found is not None
    assert len(found.values) == 2


def test_a_thread_reads_where_a_block_lasts_long() -> None:
    with Sampler(period_s=0.01, sources=[counting()]) as sampler, sampler.in_background():
        time.sleep(0.3)
    found = sampler.conditions()
    series = found.get("counter")
    assert series is not None
    assert len(series.values) > 3
    assert np.all(np.diff(series.times_ns) > 0)
    assert found.background


def test_its_json_is_plain_and_unknown_is_null() -> None:
    with Sampler(period_s=1e-9, sources=[counting()]) as sampler:
        sampler.poll()
    text = sampler.conditions().to_json()
    assert json.loads(json.dumps(text, allow_nan=False)) == text
    never = next(one for one in text["series"] if one["name"] == "never")
    assert never["values"] == [None, None, None]
    assert (never["unknown"], never["why"]) == (3, "there is none")
    short = sampler.conditions().to_json(values=False)["series"][1]
    assert "values" not in short
    assert short["max"] == 2.0


@pytest.mark.parametrize("period", [0.0, -1.0, float("nan")])
def test_a_period_that_is_none(period: float) -> None:
    with pytest.raises(UsageError, match="cannot be read every"):
        Sampler(period_s=period)


def test_this_machine(tmp_path: Path) -> None:
    """Everything that this machine has; whatever it is, nothing raises and nothing unknown is a zero."""
    with Sampler(period_s=0.01) as sampler:
        total = sum(range(300_000))
        time.sleep(0.02)
        assert sampler.poll()
    assert total
    found = sampler.conditions()
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["facts"]
    assert all(one.source for one in found.facts)
    assert all(one.source and (one.known or one.why) for one in found.series)
    empty = facts(tmp_path, cpus=[0])
    assert {one.name for one in empty if one.value is not None} <= {
        "cpu.affinity",
        "jetson.power_mode",
        "jetson.clocks_locked",
    }


def test_a_machine_without_a_gpu_says_both_reasons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with Sampler(period_s=1) as sampler:
        pass
    gpu = sampler.conditions().fact("gpu")
    assert gpu is not None
    assert gpu.why == "the package nvidia-ml-py is not installed; there is no nvidia-smi on this machine"


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    with Sampler(period_s=0.01, root=tmp_path, cpus=[0], gpus=[]) as sampler:
        sampler.read()
    found = sampler.conditions()
    assert vars(found.load()) == {"own": None, "others": None, "idle": None, "stolen": None}
    assert not any(one.known for one in found.series if not one.name.startswith(("jetson", "jtop")))


# --- load ------------------------------------------------------------------------------------------------------------


def series(
    name: str, values: list[float], *, kind: Kind = "counter", unit: str = "s", wraps_at: float | None = None
) -> Series:
    times = np.arange(len(values)) * SECOND
    return Series(
        name=name, unit=unit, source="a test", kind=kind, times_ns=times, values=np.array(values), wraps_at=wraps_at
    )


def conditions(*found: Series, idle_ns: tuple[int, int] | None = None) -> Conditions:
    return Conditions(facts=(), series=found, period_s=1.0, reading_ms=1.0, background=False, idle_ns=idle_ns)


def test_who_used_the_processors() -> None:
    parts = {"busy": [5.0, 11.0], "idle": [0.0, 3.0], "iowait": [0.0, 0.5], "steal": [1.0, 1.5], "own": [2.0, 6.0]}
    found = conditions(*(series(f"cpu.{name}", values) for name, values in parts.items())).load()
    assert (found.own, found.others, found.idle, found.stolen) == (0.4, 0.2, 0.35, 0.05)


def test_others_are_unknown_where_only_the_own_time_is() -> None:
    parts = {"busy": [5.0, 11.0], "idle": [0.0, 4.0], "iowait": [0.0, 0.0], "steal": [1.0, 1.0]}
    found = conditions(*(series(f"cpu.{name}", values) for name, values in parts.items())).load()
    assert (found.own, found.others, found.idle) == (None, None, 0.4)


def test_waiting_for_a_disk_may_go_back() -> None:
    """proc(5) says of iowait that it decreases in certain conditions; nobody's load was known then."""
    parts = {
        "busy": [5.0, 7.0, 11.0], "idle": [0.0, 1.0, 4.0], "iowait": [0.05, 0.04, 0.04], "steal": [1.0, 1.0, 1.0],
        "own": [2.0, 4.0, 6.0],
    }  # fmt: skip
    load = conditions(*(series(f"cpu.{name}", parts[name]) for name in parts)).load()
    assert (load.own, load.others, load.idle) == pytest.approx((0.4, 0.2, 0.4))


def test_ticks_never_make_a_negative_load() -> None:
    parts = {"busy": [5.0, 6.0], "idle": [0.0, 9.0], "iowait": [0.0, 0.0], "steal": [0.0, 0.0], "own": [2.0, 3.01]}
    assert conditions(*(series(f"cpu.{name}", values) for name, values in parts.items())).load().others == 0.0


# --- energy ----------------------------------------------------------------------------------------------------------


def test_energy_of_a_counter_and_its_idle_part() -> None:
    # Two seconds at rest with 5 W, four with 15 W; the counter's range ends in between.
    joules = [90.0, 95.0, 0.0, 15.0, 30.0, 45.0, 60.0]
    found = conditions(series("energy.rapl.package-0", joules, unit="J", wraps_at=100.0), idle_ns=(0, 2 * SECOND))
    (one,) = energies(found, began_ns=2 * SECOND, ended_ns=6 * SECOND, inferences=100)
    assert one.joules == pytest.approx(60.0)
    assert one.idle_w == pytest.approx(5.0)
    assert one.per_inference_j == pytest.approx(0.6)
    assert one.above_idle_per_inference_j == pytest.approx(0.4)


def test_a_counter_is_believed_before_a_power_and_a_rail_is_counted_once() -> None:
    found = conditions(
        series("gpu0.energy", [0.0, 10.0], unit="J"),
        series("gpu0.power", [9.0, 9.0], unit="W", kind="level"),
        series("gpu1.power", [9.0, 9.0], unit="W", kind="level"),
        series("power.VDD_IN", [4.0, 6.0], unit="W", kind="level"),
        series("jetson.power.VDD_IN", [4.0, 6.0], unit="W", kind="level"),
        series("energy.rapl", [float("nan")] * 2, unit="J"),
    )
    table = {one.sensor: one for one in energies(found, began_ns=0, ended_ns=SECOND, inferences=10)}
    assert set(table) == {"gpu0.energy", "gpu1.power", "power.VDD_IN", "energy.rapl"}
    assert table["power.VDD_IN"].joules == pytest.approx(5.0)
    assert table["energy.rapl"].joules is None
    assert table["gpu0.energy"].above_idle_per_inference_j is None


def test_powers_read_around_a_run_are_those_of_a_machine_at_rest() -> None:
    watts = [2.0, 12.0, 12.0, 12.0, 2.0]
    found = conditions(series("power.VDD_IN", watts, unit="W", kind="level"))
    (one,) = energies(found, began_ns=SECOND // 2, ended_ns=7 * SECOND // 2, inferences=10)
    assert one.joules == pytest.approx(36.0)


def test_a_sensor_that_stops_during_a_run_does_not_know_its_energy() -> None:
    watts = [2.0, 12.0, 12.0, *[float("nan")] * 7]
    found = conditions(series("power.VDD_IN", watts, unit="W", kind="level"))
    (one,) = energies(found, began_ns=SECOND // 2, ended_ns=17 * SECOND // 2, inferences=10)
    assert one.joules is None and "do not cover" in one.why


def test_energy_outside_of_the_readings_is_unknown() -> None:
    found = conditions(series("gpu0.energy", [0.0, 10.0], unit="J"))
    (one,) = energies(found, began_ns=0, ended_ns=60 * SECOND, inferences=10)
    assert one.joules is None
    assert "do not cover" in one.why


def test_rest_is_measured() -> None:
    with Sampler(period_s=0.02, sources=[counting()]) as sampler:
        sampler.idle(0.05)
        with pytest.raises(UsageError, match="cannot rest"):
            sampler.idle(0)
    idle = sampler.conditions().idle_ns
    assert idle is not None
    assert idle[1] - idle[0] >= 50_000_000
