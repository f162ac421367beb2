"""The scenarios as MLPerf LoadGen drives them: a second opinion on edgetl's own driver.

LoadGen is a C++ library with a process-wide logger and a thread of its own for it. It runs in the calling thread here,
one run at a time. It knows nothing of exceptions: an error of the engine is kept, the queries that are left are
answered without the engine, and it is raised when LoadGen has come back.
"""

from __future__ import annotations

import importlib
import json
import platform
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from edgetl.benchmark.early_stopping import queries_needed
from edgetl.benchmark.scenarios import SHOWN, Issue, ScenarioResult, no_collection
from edgetl.benchmark.schedules import Plan, Scenario
from edgetl.errors import EdgetlError, MissingExtraError, SetupError, TargetError, UsageError

_SCENARIOS: dict[Scenario, str] = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "offline": "Offline",
    "server": "Server",
}
"""LoadGen's names; it has no fixed frame rate."""

_LINE = ":::MLLOG "
_PERCENTILES = {"p50": "50.00", "p90": "90.00", "p95": "95.00", "p99": "99.00", "p999": "99.90"}
_RUNNING = threading.Lock()
_EXHAUST = deque[None](maxlen=0).extend


@dataclass(frozen=True, kw_only=True)
class LoadGenResult:
    """A run of a scenario by MLPerf LoadGen, from its log."""

    plan: Plan
    queries: int
    samples: int
    latency_ns: dict[str, int]
    """mean, min, max, p50, p90, p95, p99, p999; of queries, which in multi-stream are those of several samples."""
    estimate_ns: int | None
    """The early stopping estimate of the plan's percentile, where LoadGen makes one."""
    samples_per_s: float | None
    """Where LoadGen tells it: not in multi-stream."""
    valid: bool
    """LoadGen's verdict by its rules."""
    problems: tuple[str, ...]
    """What LoadGen complains of."""
    version: str

    def to_json(self) -> dict[str, Any]:
        """Plain values; percentiles for which there are too few queries (offline: samples) are left out."""
        count = self.samples if self.plan.scenario == "offline" else self.queries
        told = {
            name: value / 1e6
            for name, value in self.latency_ns.items()
            if name not in SHOWN or count >= queries_needed(SHOWN[name])
        }
        return {
            "driver": f"MLPerf LoadGen {self.version}",
            "plan": self.plan.to_json(),
            "queries": self.queries,
            "samples": self.samples,
            "samples_per_s": self.samples_per_s,
            "latency_ms": told,
            "estimate_ms": None if self.estimate_ns is None else self.estimate_ns / 1e6,
            "valid": self.valid,
            "problems": list(self.problems),
        }


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Whether two drivers found the same latencies."""

    p50_ratio: float
    """edgetl's by LoadGen's."""
    p90_ratio: float
    p50_gap_us: float
    """edgetl's less LoadGen's."""
    p50_agrees: bool
    """Within 1% or 5 µs."""
    p90_agrees: bool
    """Within 2%."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def agreement(own: ScenarioResult, other: LoadGenResult) -> Agreement:
    """Compare a run of edgetl's driver with one of LoadGen's."""
    return agreement_of(
        (own.percentile_ns(0.5), own.percentile_ns(0.9)), (other.latency_ns["p50"], other.latency_ns["p90"])
    )


def agreement_of(own_ns: tuple[float, float], other_ns: tuple[float, float]) -> Agreement:
    """Compare p50 and p90 of two drivers, in nanoseconds."""
    gap_us, p50, p90 = (own_ns[0] - other_ns[0]) / 1e3, own_ns[0] / other_ns[0], own_ns[1] / other_ns[1]
    return Agreement(
        p50_ratio=p50,
        p90_ratio=p90,
        p50_gap_us=gap_us,
        p50_agrees=abs(p50 - 1.0) <= 0.01 or abs(gap_us) <= 5.0,
        p90_agrees=abs(p90 - 1.0) <= 0.02,
    )


def run_loadgen(issue: Issue, plan: Plan, *, expected_ms: float) -> LoadGenResult:
    """Let LoadGen drive a scenario.

    Args:
        issue: Answers one query, given the indices of its samples; warm.
        plan: Its scenario, limits, rate, bound and seed are LoadGen's settings.
        expected_ms: About what a query takes, offline a sample: LoadGen makes up its queries beforehand by it, enough
            for twice the duration.

    Returns:
        What LoadGen wrote down.

    Raises:
        UsageError: LoadGen does not have the scenario, another run is going on, or ``expected_ms`` is not above 0.
        MissingExtraError: LoadGen is not installed.
        SetupError: There is no LoadGen for this kind of processor.
        TargetError: The engine failed; its own error is the cause. An error of edgetl passes as it is.
        EdgetlError: LoadGen left no result.
    """
    if plan.scenario not in _SCENARIOS:
        raise UsageError(
            f"MLPerf LoadGen has no scenario {plan.scenario}; it has {', '.join(_SCENARIOS)}",
            hint="edgetl's own driver runs it",
        )
    if not expected_ms > 0:
        raise UsageError(f"LoadGen needs to know about how long a query takes; given was {expected_ms} ms")
    loadgen = _library()
    if not _RUNNING.acquire(blocking=False):
        raise UsageError("MLPerf LoadGen runs one test at a time, and another one is running in this process")
    try:
        with tempfile.TemporaryDirectory(prefix="edgetl-loadgen-") as name:
            answers = _Answers(loadgen, issue, plan)
            _start(loadgen, answers, plan, expected_ms, Path(name))
            answers.raise_failure(plan.scenario)
            return _read(Path(name) / "mlperf_log_detail.txt", answers, plan)
    finally:
        _RUNNING.release()


class _Answers:
    """What LoadGen calls. Nothing may be raised through its C++ frames, so whatever is raised is kept."""

    def __init__(self, loadgen: ModuleType, issue: Issue, plan: Plan) -> None:
        self._issue = issue
        self._per_call = plan.per_query
        self.query = self._batches if plan.scenario == "offline" else self._one
        self._withholds = plan.scenario == "server"
        self._withheld: list[int] = []
        self._response = loadgen.QuerySampleResponse
        self._set_id = loadgen.QuerySampleResponse.id.fset  # mapped, it takes three quarters of an assignment's time
        # Made once, and copied by LoadGen: to make one takes 0.4 µs of its clock.
        self._responses: list[Any] = [self._response(0, 0, 0) for _ in range(plan.per_query)]
        self._complete = loadgen.QuerySamplesComplete
        self.failure: BaseException | None = None
        self.queries = self.samples = 0

    def _one(self, ids: list[int], indices: list[int]) -> None:
        """Answer a query in one call; LoadGen's clock runs, so nothing more than needs be before the answer."""
        if self.failure is None:
            try:
                self._issue(indices)
                _EXHAUST(map(self._set_id, self._responses, ids))
                self._complete(self._responses)
            except BaseException as error:  # noqa: BLE001  kept, and raised when LoadGen has come back
                self.failure = error
            else:
                self.queries += 1
                self.samples += len(ids)
                return
        self._refuse(ids)

    def _batches(self, ids: list[int], indices: list[int]) -> None:
        """Answer offline's one query, in calls of as many samples as the plan says."""
        for at in range(0, len(ids), self._per_call):
            part = slice(at, at + self._per_call)
            try:
                if self.failure is None:
                    self._issue(indices[part])
            except BaseException as error:  # noqa: BLE001  likewise
                self.failure = error
            if self.failure is not None:
                return self._refuse(ids[at:])
            self._done(ids[part])
            self.samples += len(ids[part])
        self.queries += 1
        return None

    def _refuse(self, ids: list[int]) -> None:
        """Answer without the engine, which has failed."""
        if self._withholds:
            self._withheld += ids  # LoadGen ends a run of server in which several queries are open
        else:
            self._done(ids)  # otherwise it waits for each before it sends the next

    def flush(self) -> None:
        """All queries have been sent, and LoadGen waits for those that are still open."""
        if self._withheld:
            self._done(self._withheld)

    def interrupt(self, *_: object) -> None:
        """Ctrl-C: kept as well, so that it cannot come between an answer and LoadGen's knowing of it."""
        self.failure = self.failure or KeyboardInterrupt()

    def raise_failure(self, scenario: str) -> None:
        """Raise what was kept, if anything was."""
        if isinstance(self.failure, Exception) and not isinstance(self.failure, EdgetlError):
            message = f"the engine failed at query {self.queries + 1} of {scenario}: {self.failure}"
            raise TargetError(message) from self.failure
        if self.failure is not None:
            raise self.failure

    def _done(self, ids: list[int]) -> None:
        self._complete([self._response(one, 0, 0) for one in ids])


def _start(loadgen: ModuleType, answers: _Answers, plan: Plan, expected_ms: float, folder: Path) -> None:
    logs, output = loadgen.LogSettings(), loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs.log_output = output
    logs.enable_trace = False
    with ExitStack() as stack:
        sut = loadgen.ConstructFastSUT(answers.query, answers.flush)
        stack.callback(loadgen.DestroyFastSUT, sut)
        library = loadgen.ConstructQSL(plan.samples, plan.samples, _nothing, _nothing)
        stack.callback(loadgen.DestroyQSL, library)
        stack.enter_context(no_collection())
        if threading.current_thread() is threading.main_thread():
            handler = signal.signal(signal.SIGINT, answers.interrupt) or signal.SIG_DFL
            stack.callback(signal.signal, signal.SIGINT, handler)
        # Without a name of its own it would obey an audit.config that happens to lie in the working directory.
        audit = str(folder / "audit.config")
        loadgen.StartTestWithLogSettings(sut, library, _settings(loadgen, plan, expected_ms), logs, audit)


def _settings(loadgen: ModuleType, plan: Plan, expected_ms: float) -> Any:
    """The plan in LoadGen's words (``loadgen/test_settings.h``)."""
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, _SCENARIOS[plan.scenario])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(plan.min_duration_s * 1e3)
    settings.max_duration_ms = round(plan.max_duration_s * 1e3)
    settings.min_query_count = plan.min_queries
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = plan.seed
    expected_ns = max(1, round(expected_ms * 1e6))
    settings.single_stream_expected_latency_ns = settings.multi_stream_expected_latency_ns = expected_ns
    settings.single_stream_target_latency_percentile = plan.percentile
    settings.multi_stream_target_latency_percentile = plan.percentile
    settings.server_target_latency_percentile = plan.percentile
    settings.multi_stream_samples_per_query = plan.per_query
    settings.offline_expected_qps = 1e3 / expected_ms
    if plan.scenario == "server":
        settings.server_target_qps = plan.rate_per_s
        settings.server_target_latency_ns = plan.bound_ns
        settings.server_max_async_queries = 1  # each has been answered before the next is sent
    return settings


def _read(log: Path, answers: _Answers, plan: Plan) -> LoadGenResult:
    values: dict[str, Any] = {}
    problems: list[str] = []
    try:
        for line in log.read_text(encoding="utf-8").splitlines():
            if line.startswith(_LINE):
                entry = json.loads(line.removeprefix(_LINE))
                values[entry["key"]] = entry["value"]
                if entry["metadata"].get("is_error"):
                    problems.append(str(entry["value"]))
        kind = "per_query_latency_ns" if plan.scenario == "multi-stream" else "latency_ns"
        short = "query_latency_ns" if plan.scenario == "multi-stream" else "latency_ns"
        latency = {name: int(values[f"result_{name}_{short}"]) for name in ("mean", "min", "max")}
        latency |= {name: int(values[f"result_{text}_percentile_{kind}"]) for name, text in _PERCENTILES.items()}
        valid, version = values["result_validity"] == "VALID", str(values["loadgen_version"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = "; ".join(problems)
        raise EdgetlError(f"MLPerf LoadGen left no result that can be read: {error!r} {told}".rstrip()) from error
    if not valid:
        problems.append(str(values.get("result_invalid_reason", "")).strip() or "early stopping: too few queries")
    estimate = values.get(
        {"single-stream": "early_stopping_latency_ss"}.get(plan.scenario, "early_stopping_latency_ms")
    )
    return LoadGenResult(
        plan=plan,
        queries=answers.queries,
        samples=answers.samples,
        latency_ns=latency,
        estimate_ns=int(estimate) if estimate else None,
        samples_per_s=_rate(values),
        valid=valid,
        problems=tuple(problems),
        version=version,
    )


def _rate(values: dict[str, Any]) -> float | None:
    for name in ("samples_per_second", "completed_samples_per_sec", "qps_with_loadgen_overhead"):
        if f"result_{name}" in values:
            return float(values[f"result_{name}"])
    return None


def _library() -> ModuleType:
    try:
        return importlib.import_module("mlperf_loadgen")
    except ModuleNotFoundError:
        if platform.machine() not in ("x86_64", "AMD64"):
            raise SetupError(
                f"MLPerf LoadGen has no package for {platform.machine()}",
                hint="edgetl's own driver keeps LoadGen's rules",
            ) from None
        raise MissingExtraError(
            "mlperf_loadgen", extra="loadgen", needed_for="driving a scenario with LoadGen"
        ) from None
    except ImportError as error:
        raise SetupError(f"MLPerf LoadGen is installed, but cannot be loaded: {error}") from error


def _nothing(_: Sequence[int]) -> None:
    """Samples are in memory already."""
