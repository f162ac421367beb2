"""MLPerf LoadGen: what it asks of an engine, what it leaves behind, and that both drivers find the same."""

from __future__ import annotations

import json
import platform
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.benchmark.early_stopping import estimate, percentile_of, queries_needed
from edgetl.benchmark.loadgen import _Answers, _read, agreement, agreement_of, run_loadgen
from edgetl.benchmark.scenarios import SHOWN, run
from edgetl.benchmark.schedules import Plan
from edgetl.errors import DataError, MissingExtraError, SetupError, TargetError, UsageError

SHORT = {"min_duration_s": 0.1, "min_queries": 70}


def spin(_: Sequence[int]) -> None:
    until = time.perf_counter_ns() + 200_000
    while time.perf_counter_ns() < until:
        pass


def single(**changes: Any) -> Plan:
    return Plan(**{"scenario": "single-stream", **SHORT, **changes})


def server(**changes: Any) -> Plan:
    return Plan(**{"scenario": "server", "rate_per_s": 1000.0, "bound_ms": 100.0, **SHORT, **changes})


@pytest.fixture
def installed() -> None:
    pytest.importorskip("mlperf_loadgen")


# --- without LoadGen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "other", "p50", "p90"),
    [
        ((200e3, 210e3), (204.9e3, 212e3), True, True),  # 5 µs are more than 1% here
        ((200e3, 210e3), (205.1e3, 212e3), False, True),
        ((10e6, 11e6), (10.09e6, 11.3e6), True, False),
        ((10e6, 11e6), (10.2e6, 11.1e6), False, True),
    ],
)
def test_agreement(own: tuple[float, float], other: tuple[float, float], p50: bool, p90: bool) -> None:
    for found in (agreement_of(own, other), agreement_of(other, own)):
        assert (found.p50_agrees, found.p90_agrees) == (p50, p90)
    assert agreement_of(own, other).p50_gap_us == pytest.approx((own[0] - other[0]) / 1e3)
    assert json.loads(json.dumps(found.to_json()))["p50_agrees"] is p50


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(MissingExtraError, match="mlperf_loadgen") as caught:
        run_loadgen(spin, single(), expected_ms=0.2)
    assert caught.value.hint == "pip install 'edgetl[loadgen]'"
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(SetupError, match="no package for aarch64"):
        run_loadgen(spin, single(), expected_ms=0.2)


def test_loadgen_has_no_fixed_rate() -> None:
    with pytest.raises(UsageError, match="no scenario fixed-rate"):
        run_loadgen(spin, Plan(scenario="fixed-rate", rate_per_s=30.0), expected_ms=0.2)


@pytest.mark.parametrize("expected", [0.0, -1.0, float("nan")])
def test_loadgen_needs_to_know_about_how_long_a_query_takes(expected: float) -> None:
    with pytest.raises(UsageError, match="about how long"):
        run_loadgen(spin, single(), expected_ms=expected)


# --- with it ---------------------------------------------------------------------------------------------------------


_INTERRUPTED = """
import os, signal, time
from edgetl.benchmark.loadgen import run_loadgen
from edgetl.benchmark.schedules import Plan
signal.signal(signal.SIGINT, signal.default_int_handler)
calls = []
def issue(_):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
try:
    run_loadgen(issue, Plan(scenario="single-stream", min_duration_s=0.1, min_queries=70), expected_ms=0.2)
except KeyboardInterrupt:
    print(len(calls), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.usefixtures("installed")
class TestLoadGen:
    @pytest.mark.parametrize(
        ("plan", "per_query", "expected_ms"),
        [
            (single(samples=5), 1, 0.2),
            (server(samples=5, min_queries=700), 1, 0.2),
            (Plan(scenario="multi-stream", samples=20, per_query=8, min_duration_s=0.1, min_queries=662), 8, 0.2),
            (Plan(scenario="offline", samples=20, per_query=8, min_duration_s=0.1, min_queries=100), None, 0.02),
        ],
    )
    def test_it_asks_for_samples_that_there_are(self, plan: Plan, per_query: int | None, expected_ms: float) -> None:
        asked: list[tuple[int, ...]] = []

        def issue(indices: Sequence[int]) -> None:
            asked.append(tuple(indices))
            time.sleep(0.0002)

        found = run_loadgen(issue, plan, expected_ms=expected_ms)
        assert {index for one in asked for index in one} <= set(range(plan.samples))
        assert found.samples == sum(map(len, asked))
        if per_query is None:
            assert found.queries == 1
            assert max(map(len, asked)) == 8
        else:
            assert found.queries == len(asked)
            assert {len(one) for one in asked} == {per_query}
        assert found.valid, found.problems
        assert found.latency_ns["min"] >= 200_000
        assert found.latency_ns["min"] <= found.latency_ns["p50"] <= found.latency_ns["p90"] <= found.latency_ns["max"]
        assert (found.samples_per_s is None) == (plan.scenario == "multi-stream")
        assert (found.estimate_ns is None) == (plan.scenario in ("server", "offline"))
        document = json.loads(json.dumps(found.to_json()))
        assert document["driver"].startswith("MLPerf LoadGen ")
        count = found.samples if per_query is None else found.queries
        backed = {name for name, share in SHOWN.items() if count >= queries_needed(share)}
        assert set(document["latency_ms"]) == {"mean", "min", "max", *backed}
        assert "p999" not in backed  # hundreds of queries

    @pytest.mark.parametrize(("scenario", "percentile"), [("single-stream", 0.9), ("multi-stream", 0.99)])
    def test_definitions_are_those_of_loadgen(self, tmp_path: Path, scenario: Any, percentile: float) -> None:
        """Percentiles and early stopping estimate, to the nanosecond, of the latencies that LoadGen itself traced."""
        import mlperf_loadgen as lib

        def answer(ids: list[int], _: list[int]) -> None:
            time.sleep(random.expovariate(20_000))
            lib.QuerySamplesComplete([lib.QuerySampleResponse(one, 0, 0) for one in ids])

        settings, logs, output = lib.TestSettings(), lib.LogSettings(), lib.LogOutputSettings()
        name = {"single-stream": "SingleStream", "multi-stream": "MultiStream"}[scenario]
        settings.scenario, settings.mode = getattr(lib.TestScenario, name), lib.TestMode.PerformanceOnly
        settings.min_duration_ms, settings.min_query_count = 0, 1000
        settings.single_stream_target_latency_percentile = settings.multi_stream_target_latency_percentile = percentile
        output.outdir, output.copy_summary_to_stdout, logs.enable_trace = str(tmp_path), False, True
        logs.log_output = output
        sut = lib.ConstructFastSUT(answer, lambda: None)
        library = lib.ConstructQSL(9, 9, lambda _: None, lambda _: None)
        lib.StartTestWithLogSettings(sut, library, settings, logs, str(tmp_path / "none"))
        lib.DestroyFastSUT(sut)
        lib.DestroyQSL(library)
        found = _read(
            tmp_path / "mlperf_log_detail.txt", _Answers(lib, spin, Plan(scenario=scenario)), Plan(scenario=scenario)
        )
        queries: dict[int, int] = {}
        for line in (tmp_path / "mlperf_log_trace.json").read_text().splitlines():
            if '"complete_ns"' in line:
                sample = json.loads(line.rstrip(", "))["args"]
                queries[sample["query_seq"]] = max(queries.get(sample["query_seq"], 0), sample["complete_ns"])
        latencies = np.sort(np.array(list(queries.values()), dtype=np.int64))
        assert len(latencies) == 1000
        assert found.estimate_ns == estimate(latencies, percentile)
        shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
        assert {key: found.latency_ns[key] for key in shares} == {
            key: percentile_of(latencies, share) for key, share in shares.items()
        }

    def test_it_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "audit.config").write_text("*.*.mode = 1\n*.*.min_duration = 5000\n")
        handler, threads, files = signal.getsignal(signal.SIGINT), len(list(Path("/proc/self/task").iterdir())), set()
        for _ in range(2):
            assert run_loadgen(spin, single(), expected_ms=0.2).latency_ns["p50"] >= 200_000
            files |= {path.name for path in tmp_path.iterdir()}
        assert files == {"audit.config"}
        assert signal.getsignal(signal.SIGINT) is handler
        assert len(list(Path("/proc/self/task").iterdir())) <= threads
        assert capfd.readouterr() == ("", "")

    def test_too_few_queries_are_not_valid(self) -> None:
        found = run_loadgen(spin, single(min_queries=20, min_duration_s=0.0), expected_ms=0.2)
        assert found.queries == 20
        assert not found.valid
        assert found.problems
        assert found.estimate_ns is None

    @pytest.mark.parametrize("plan", [single(), server(), Plan(scenario="offline", per_query=4, **SHORT)])
    @pytest.mark.parametrize("error", [RuntimeError("out of memory"), DataError("no image"), KeyboardInterrupt()])
    def test_an_engine_that_fails_ends_the_run(self, plan: Plan, error: BaseException) -> None:
        calls = []

        def issue(_: Sequence[int]) -> None:
            calls.append(1)
            if len(calls) == 5:
                raise error

        began = time.monotonic()
        expected = TargetError if isinstance(error, RuntimeError) else type(error)
        with pytest.raises(expected) as caught:
            run_loadgen(issue, plan, expected_ms=0.2)
        assert len(calls) == 5
        assert caught.value is error or caught.value.__cause__ is error
        assert time.monotonic() - began < 20
        assert run_loadgen(spin, single(), expected_ms=0.2).queries >= 70  # and the next one runs

    def test_a_failure_does_not_wait_for_the_end_of_a_long_run(self) -> None:
        began = time.monotonic()
        with pytest.raises(TargetError, match="failed at query 1 of server"):
            run_loadgen(lambda _: 1 / 0, server(rate_per_s=50.0, min_duration_s=60.0), expected_ms=0.2)
        assert time.monotonic() - began < 20

    def test_an_interruption_ends_the_run_after_the_call(self) -> None:
        """In a process of its own: an interruption may end the one that it is sent in."""
        done = subprocess.run(
            [sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (0, "3 True"), done.stderr

    def test_one_run_at_a_time(self) -> None:
        inside: list[BaseException] = []

        def issue(indices: Sequence[int]) -> None:
            if not inside:
                try:
                    run_loadgen(spin, single(), expected_ms=0.2)
                except UsageError as error:
                    inside.append(error)
            spin(indices)

        run_loadgen(issue, single(), expected_ms=0.2)
        assert "one test at a time" in str(inside[0])

    def test_it_runs_in_another_thread(self) -> None:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(run_loadgen(spin, single(), expected_ms=0.2)))
        thread.start()
        thread.join(60)
        assert found[0].queries >= 70

    def test_a_rate_that_cannot_be_kept_ends_at_the_time_limit(self) -> None:
        plan = server(rate_per_s=2000.0, bound_ms=5.0, min_duration_s=1.0, max_duration_s=1.0)
        found = run_loadgen(lambda _: time.sleep(0.002), plan, expected_ms=2.0)
        assert not found.valid
        assert found.queries < 1000

    def test_both_drivers_find_the_same(self) -> None:
        """By far wider bounds than benchmarks/scenarios.py shows them to agree in: other things run here, too."""
        plan = single(min_duration_s=0.5, min_queries=662)
        own, other = run(spin, plan), run_loadgen(spin, plan, expected_ms=0.2)
        assert agreement(own, other).p50_ratio == pytest.approx(1.0, abs=0.25)
        assert own.valid
        assert other.valid
        assert own.estimate_ns is not None
        assert other.estimate_ns is not None
        assert own.estimate_ns >= own.percentile_ns(0.9)
        assert other.estimate_ns >= other.latency_ns["p90"]
