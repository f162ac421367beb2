"""Conditions in words: every value with its unit and source, and what is unknown with its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgetl.benchmark.conditions import Conditions, Series
from edgetl.benchmark.sampler import Sampler
from edgetl.benchmark.sensors.reading import Reading, unknown
from edgetl.benchmark.telling import Told, line, told


def series(name: str, values: list[float], unit: str, kind: Any = "level", why: str = "") -> Series:
    times = np.arange(len(values), dtype=np.int64) * 500_000_000
    return Series(
        name=name, unit=unit, source=f"/sys/{name}", kind=kind, times_ns=times, values=np.array(values), why=why
    )


@pytest.fixture
def found() -> dict[str, Any]:
    return Conditions(
        facts=(
            Reading(name="cpu.governor", value="performance", source="/sys/governor"),
            Reading(name="cpu.virtual", value=False, source="/proc/cpuinfo"),
            unknown("jetson.power_mode", "there is no nvpmodel on this machine", source="nvpmodel -q"),
        ),
        series=(
            series("cpu.busy", [0.0, 1.5], "s", "counter"), series("cpu.idle", [0.0, 0.5], "s", "counter"),
            series("cpu.iowait", [0.0, 0.0], "s", "counter"), series("cpu.steal", [0.0, 0.0], "s", "counter"),
            series("cpu.own", [0.0, 1.0], "s", "counter"), series("cpu.frequency", [2400.0, 3100.5], "MHz"),
            series("temperature.package", [46.0, 46.0], "°C"), series("jtop.fan.pwmfan.0", [0.33], "share"),
            series("jtop.fan.pwmfan.1", [0.25, 0.5], "share"),
            series("throttle.core", [np.nan], "count", "counter", "this machine has no such file"),
        ),
        period_s=0.5, reading_ms=1.0, background=False,
    ).to_json(values=False)  # fmt: skip


def test_every_condition_is_told_once_with_its_source(found: dict[str, Any]) -> None:
    rows = {row.name: row for row in told(found)}
    assert len(rows) == len(told(found)) == 4 + 3 + 10
    assert rows["processors used by others"].value == "25.0%"
    assert rows["cpu.virtual"] == Told(name="cpu.virtual", value="no", source="/proc/cpuinfo")
    assert rows["cpu.busy"].value == "1.5 s during the measurement"
    assert (rows["cpu.frequency"].value, rows["cpu.frequency"].rate_hz) == ("2,400 to 3,100 MHz", 2.0)
    assert rows["temperature.package"].value == "46 °C"
    assert rows["jtop.fan.pwmfan.0"].value == "33%"
    assert rows["jtop.fan.pwmfan.1"].value == "25% to 50%"
    for name, why in (("jetson.power_mode", "no nvpmodel"), ("throttle.core", "no such file")):
        assert rows[name].value is None and why in rows[name].why


def test_a_line_for_a_terminal_says_what_is_unknown(found: dict[str, Any]) -> None:
    assert line(found) == (
        "others used 25.0% of the processors; governor performance; clock 2,400 to 3,100 MHz; temperature 46 °C;"
        " throttling unknown; power mode unknown"
    )


def test_a_counter_that_went_back_is_told_as_such() -> None:
    counters = (series("pressure.cpu", [3.0, 1.0], "s", "counter"), series("pressure.io", [3.0], "s", "counter"))
    made = Conditions(facts=(), series=counters, period_s=0.5, reading_ms=1.0, background=False)
    rows = {row.name: row.why for row in told(made.to_json(values=False))}
    assert (rows["pressure.cpu"], rows["pressure.io"]) == ("the counter went back", "there were too few readings")


def test_a_line_tells_what_is_and_not_what_may_be() -> None:
    """Limits of the clock, its driver and trip points stood there as clocks and temperatures; two governors did not."""
    facts = (
        Reading(name="cpu.governor[0-3]", value="schedutil", source="/sys/governor"),
        Reading(name="cpu.governor[4-5]", value="performance", source="/sys/governor"),
        Reading(name="cpu.frequency.driver", value="acpi-cpufreq", source="/sys/driver"),
        Reading(name="cpu.frequency.max", value=3800.0, unit="MHz", source="/sys/max"),
        Reading(name="temperature.cpu-thermal.passive", value=95.0, unit="°C", source="/sys/trip"),
    )
    measured = (
        series("cpu.frequency", [2400.0, 2400.0], "MHz"), series("cpu.frequency.lowest", [800.0, 800.0], "MHz"),
        series("temperature.cpu-thermal", [51.0, 58.0], "°C"),
    )  # fmt: skip
    made = Conditions(facts=facts, series=measured, period_s=0.5, reading_ms=1.0, background=False)
    assert line(made.to_json(values=False)) == (
        "others used an unknown share of the processors; governor schedutil and performance; clock 2,400 MHz;"
        " temperature 51 to 58 °C; throttling unknown; power mode unknown"
    )


def test_this_machine() -> None:
    with Sampler() as sampler:
        sampler.read()
    rows = told(sampler.conditions().to_json(values=False))
    assert all((row.value is None) == bool(row.why) and row.source for row in rows)
    assert line(sampler.conditions().to_json(values=False)).startswith("others used ")
