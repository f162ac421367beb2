"""edgetl bench BUNDLE --scenario and --stages on a tiny bundle with a real engine; in process, for speed."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgetl.benchmark import bundle_runs
from edgetl.benchmark.bundle_runs import Drive
from edgetl.benchmark.sampler import Sampler
from edgetl.benchmark.schedules import SCENARIOS, Plan
from edgetl.benchmark.sensors.reading import Reading, Source
from edgetl.cli.app import run
from edgetl.cli.scenario import Asked, Scenario
from edgetl.pipeline import scenario
from edgetl.pipeline.schemas import schema
from edgetl.runtime.bundle import open_bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FOLDER = "engines/x86-64-cpu/fp32"
SHORT = ("--duration", "0.05", "--queries", "64", "--threads", "1")
OPEN = ("--rate", "500", "--percentile", "90")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """Of the JSON on stdout, which must be alone there."""
        found: dict[str, Any] = json.loads(self.out)
        assert found["schema"] == 1
        jsonschema = pytest.importorskip("jsonschema", reason="extra dev")
        jsonschema.Draft202012Validator(schema(f"output-{found['kind']}")).validate(found)
        return found["result"]  # type: ignore[no-any-return]


Bench = Callable[..., Done]
Machine = Callable[..., None]


def processors(others: float) -> Source:
    """Two processors of which this process takes 0.2 and others a share of both."""

    def read() -> list[Reading]:
        now = time.perf_counter_ns() / 1e9
        shares = {"busy": 0.2 + 2 * others, "idle": 1.8 - 2 * others, "iowait": 0.0, "steal": 0.0, "own": 0.2}
        return [
            Reading(name=f"cpu.{name}", value=share * now, unit="s", source="a test", kind="counter")
            for name, share in shares.items()
        ]

    return read


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A function: what its sensors and its scheduler say. Every test begins with a machine of its own."""

    def be(*sources: Source, waiting_ns: int = 0) -> None:
        told = {"wall_ns": 10**9, "cpu_ns": 10**9, "waiting_ns": waiting_ns, "involuntary": 0}
        monkeypatch.setattr(bundle_runs, "Sampler", partial(Sampler, period_s=0.01, sources=sources))
        monkeypatch.setattr(bundle_runs, "Usage", lambda: SimpleNamespace(told=lambda: told))

    be(processors(0.0))
    return be


def matrix_product(path: Path) -> None:
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        [make.make_node("Flatten", ["image"], ["f"]), make.make_node("MatMul", ["f", "w"], ["logits"])],
        "g",
        [make.make_tensor_value_info("image", float32, ["batch", 3, 8, 8])],
        [make.make_tensor_value_info("logits", float32, ["batch", 2])],
        [onnx.numpy_helper.from_array(np.ones((192, 2), np.float32), "w")],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9), path)


@pytest.fixture(scope="module")
def bundle(sealed: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flatten and a matrix product behind the preprocessing of images, with three golden images; sealed."""
    return sealed(tmp_path_factory.mktemp("bundle") / "tiny-1.0.0", matrix_product)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sensors of a test are; test_hanging.py has the processes that runs have elsewhere."""

    def scenario_here(folder: Path, plan: Plan, drive: Drive, *, name: str, key: Path | None) -> Any:
        return bundle_runs.observe_scenario(open_bundle(folder, key=key), plan, drive)

    def stages_here(folder: Path, engine: Drive, *, name: str, samples: int, key: Path | None) -> Any:
        return bundle_runs.bench_stages(open_bundle(folder, key=key), engine, samples=samples)

    monkeypatch.setattr(scenario, "scenario_apart", scenario_here)
    monkeypatch.setattr(scenario, "stages_apart", stages_here)


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    def call(*arguments: str | Path) -> Done:
        code = run(["bench", *(str(argument) for argument in arguments)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err, said.err
        return Done(code, said.out, said.err)

    return call


def test_the_scenarios_are_those_that_there_are() -> None:
    assert tuple(name.value for name in Scenario) == SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario(bench: Bench, bundle: Path, scenario: str) -> None:
    rate = (*OPEN, "--bound-ms", "1000") if scenario in ("server", "fixed-rate") else ()
    done = bench(bundle, "--scenario", scenario, *rate, *SHORT, "--json")
    assert done.code == 0, done.err
    found = done.result
    assert (found["engine"], found["environment"]["threads"]) == ("x86-64-cpu fp32", 1)
    assert found["gate"] == ("passed" if rate else None)
    result = found["scenario"]
    assert result["driver"] == "edgetl"
    plan = result["plan"]
    assert (plan["scenario"], plan["min_duration_s"], plan["min_queries"], plan["samples"]) == (scenario, 0.05, 64, 3)
    assert plan["per_query"] == (8 if scenario == "multi-stream" else 1)
    assert plan["percentile"] == (0.9 if rate or scenario == "single-stream" else 0.99)
    assert result["samples"] >= 64
    spans = set(result["intervals_ms"])  # of as many percentiles as there are queries enough for
    # Where queries in a row are much alike, the higher ones have none.
    assert spans == set() if scenario == "offline" else {"p50"} <= spans <= set(result["latency_ms"])
    assert all(low <= result["latency_ms"][name] <= high for name, (low, high) in result["intervals_ms"].items())
    assert f"{scenario} of tiny-1.0.0" in done.err


def test_the_numbers_of_a_plan(bench: Bench, bundle: Path) -> None:
    asked = ("--scenario", "multi-stream", "--per-query", "2", "--percentile", "99.9", "--seed", "7")
    plan = bench(bundle, *asked, *SHORT, "--json").result["scenario"]["plan"]
    assert (plan["per_query"], plan["percentile"], plan["seed"]) == (2, 0.999, 7)


def test_a_slow_rate_gets_the_time_that_its_queries_take() -> None:
    options: dict[str, Any] = dict.fromkeys(("percentile", "per_query", "duration", "queries", "driver"))
    asked = Asked(scenario=Scenario.server, stages=False, rate=0.5, bound_ms=3.0, find_rate=False, **options)
    plan = asked.plan(seed=0)
    assert (plan.min_queries, plan.least_s, plan.max_duration_s) == (662, 1322.0, 2644.0)
    assert replace(plan, rate_per_s=1e3).least_s == 10.0


def test_a_table_for_people(bench: Bench, bundle: Path) -> None:
    done = bench(bundle, "--scenario", "fixed-rate", *OPEN, "--bound-ms", "1000", *SHORT)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["fixed-rate", "x86-64-cpu", "fp32"]
    assert any(line.startswith("bound of 1000 ms") and "kept, 0 queries over it" in line for line in lines)
    assert any(re.fullmatch(r"p50 +[0-9.]+ ms \(95% [0-9.]+ to [0-9.]+\)", line) for line in lines)
    assert ", 1 thread, load " in done.out and "note:" not in done.out
    assert lines[-1] == "the bound of 1000 ms is kept"


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_bound_that_is_not_kept_fails(bench: Bench, bundle: Path, as_json: tuple[str, ...]) -> None:
    done = bench(bundle, "--scenario", "server", *OPEN, "--bound-ms", "0.000001", *SHORT, *as_json)
    assert done.code == 5
    assert "the bound of 1e-06 ms was not shown to be kept" in done.err
    assert "and the bound is 1e-06 ms" in done.err
    if as_json:
        assert (done.result["gate"], done.result["scenario"]["keeps_bound"]) == ("failed", False)
    else:
        assert "not kept" in done.out and "note: p90 was" in done.out


BOUND = ("--scenario", "fixed-rate", *OPEN, "--bound-ms", "1000", *SHORT)


@pytest.mark.parametrize(
    ("others", "waiting_ns", "said"),
    [
        (0.5, 0, "other processes used 50% of the processors that the measurement may use"),
        (None, 10**9, "the timed process waited for a processor during 50.0% of the time"),
    ],
)
def test_a_noisy_neighbour_makes_a_kept_bound_worth_nothing(
    bench: Bench, bundle: Path, machine: Machine, others: float | None, waiting_ns: int, said: str
) -> None:
    machine(*([] if others is None else [processors(others)]), waiting_ns=waiting_ns)
    failed = bench(bundle, *BOUND)
    assert failed.code == 5
    assert "UNSTABLE, so nothing is shown about the bound" in failed.err and said in failed.err
    assert "--unstable allow" in failed.err and "stop" in failed.err.partition("try")[2]
    assert f"note: UNSTABLE: {said}" in failed.out and "is kept" not in failed.out
    document = bench(bundle, *BOUND, "--json").result
    assert (document["gate"], document["scenario"]["keeps_bound"]) == ("failed", True)
    assert document["stability"]["outcome"] == "unstable"
    allowed = bench(bundle, *BOUND, "--unstable", "allow")
    assert allowed.code == 0, allowed.err
    assert f"note: UNSTABLE: {said}" in allowed.out and allowed.out.endswith("the bound of 1000 ms is kept\n")


def test_threads_that_wait_for_each_other_keep_a_bound_as_they_do(bench: Bench, bundle: Path, machine: Machine) -> None:
    machine(processors(0.0), waiting_ns=10**9)
    done = bench(bundle, *BOUND)
    assert done.code == 0, done.err
    assert "UNSTABLE" not in done.out


def test_without_a_bound_it_is_told_and_that_is_all(bench: Bench, bundle: Path, machine: Machine) -> None:
    machine(processors(0.5))
    done = bench(bundle, "--scenario", "single-stream", *SHORT)
    assert done.code == 0, done.err
    assert "note: UNSTABLE: other processes used 50%" in done.out


def test_a_bound_that_is_not_kept_comes_before_unstable_and_says_both(
    bench: Bench, bundle: Path, machine: Machine
) -> None:
    machine(processors(0.5))
    done = bench(bundle, "--scenario", "server", *OPEN, "--bound-ms", "0.000001", *SHORT)
    assert done.code == 5
    assert "was not shown to be kept" in done.err and "UNSTABLE: other processes" in done.err


def test_sensors_are_read_in_the_gaps_between_queries(bench: Bench, bundle: Path, machine: Machine) -> None:
    """The fourth reading alone, the second after the warm-up, tells that the processor was held back."""
    times = itertools.count()
    machine(lambda: [Reading(name="cooling.cpu", value=float(next(times) == 3), source="a test", kind="level")])
    slow = ("--scenario", "fixed-rate", "--rate", "20", "--percentile", "50", "--queries", "8", "--duration", "0")
    done = bench(bundle, *slow, "--threads", "1", "--bound-ms", "1000", "--json")
    assert done.code == 5
    assert "the kernel held back cpu in" in done.err
    (series,) = done.result["conditions"]["series"]
    assert series["readings"] > 5 and done.result["stability"]["unknown"]


def test_too_few_queries_fail_a_gate_and_are_told_without_one(bench: Bench, bundle: Path) -> None:
    few = ("--scenario", "fixed-rate", "--rate", "500", "--queries", "10", "--duration", "0", "--threads", "1")
    told = bench(bundle, *few, "--json")
    assert told.code == 0, told.err
    assert told.result["gate"] is None and told.result["scenario"]["valid"] is False
    assert told.result["scenario"]["plan"]["bound_ms"] == 2.0  # the period
    failed = bench(bundle, *few, "--bound-ms", "1000")
    assert failed.code == 5
    assert "p99 needs" in failed.err and "--queries" in failed.err
    assert "note: p99 needs" in failed.out


def test_the_highest_rate(bench: Bench, bundle: Path) -> None:
    search = ("--scenario", "server", "--find-rate", "--percentile", "50", "--queries", "20", "--duration", "0")
    done = bench(bundle, *search, "--rate", "2000", "--bound-ms", "200", "--threads", "1", "--json")
    assert done.code == 0, done.err
    found = done.result["peak_rate"]
    assert found["rate_per_s"] > 0 and found["runs"][0]["plan"]["rate_per_s"] == 2000
    assert done.result["gate"] == "passed"
    none = bench(bundle, *search, "--rate", "2000", "--bound-ms", "0.000001")
    assert none.code == 5
    assert "no rate keeps 1e-06 ms" in none.err and "a larger --bound-ms" in none.err and "--rate" not in none.err
    assert none.out.splitlines()[1].split()[-1] == "none"


def test_loadgen(bench: Bench, bundle: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    done = bench(bundle, "--scenario", "single-stream", "--driver", "loadgen", *SHORT, "--json")
    assert done.code == 0, done.err
    assert done.result["scenario"]["driver"].startswith("MLPerf LoadGen")
    gated = ("--scenario", "server", "--driver", "loadgen", *OPEN, *SHORT)
    assert bench(bundle, *gated, "--bound-ms", "0.001").code == 5
    done = bench(bundle, "--scenario", "fixed-rate", "--driver", "loadgen", *OPEN, *SHORT)
    assert done.code == 2
    assert "MLPerf LoadGen has no scenario fixed-rate" in done.err


def test_without_loadgen(bench: Bench, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    done = bench(bundle, "--scenario", "single-stream", "--driver", "loadgen", *SHORT)
    assert done.code == 8
    assert "edgetl[loadgen]" in done.err


def test_stages(bench: Bench, bundle: Path) -> None:
    done = bench(bundle, "--stages", "--threads", "1", "--json")
    assert done.code == 0, done.err
    found = done.result["stages"]
    assert list(found["stages_ms"]) == ["decode", "preprocess", "compute", "postprocess"]
    assert found["samples"] == 200
    done = bench(bundle, "--stages", "--samples", "20", "--target", "x86-64-cpu", "--precision", "fp32")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["stages", "x86-64-cpu", "fp32"]
    assert [line.split()[0] for line in lines[1:6]] == ["decode", "preprocess", "compute", "postprocess", "whole"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--rate 30", "--rate belongs to a scenario"),
        ("--find-rate", "--find-rate belongs to a scenario"),
        ("--driver loadgen", "--driver belongs to a scenario"),
        ("--scenario offline --stages", "one at a time"),
        ("--stages --rate 3", "--rate does not go with --stages"),
        ("--stages --seed 3", "--seed does not go with --stages"),
        ("--stages --samples 1", "--samples"),
        ("--stages --target mars", "no engine for mars"),
        ("--stages --unstable allow", "--unstable does not go with --stages"),
        ("--scenario single-stream --unstable allow", "--unstable is about a gate"),
        ("--scenario offline --samples 100", "--samples does not go with --scenario"),
        ("--scenario offline --baseline BUNDLE", "--baseline does not go with --scenario"),
        ("--scenario offline --against BUNDLE", "--against does not go with --scenario"),
        ("--scenario offline --output calls.json", "--output does not go with --scenario"),
        ("--scenario offline BUNDLE", "of one bundle; given were 2"),
        ("--scenario offline --percentile 90", "offline is about samples per second"),
        ("--scenario offline --find-rate", "in the scenario server"),
        ("--scenario offline --rate 30", "offline has no rate"),
        ("--scenario offline --target mars", "no engine for mars"),
        ("--scenario single-stream --bound-ms 3", "single-stream has no latency bound"),
        ("--scenario single-stream --per-query 3", "one sample"),
        ("--scenario single-stream --per-query 0", "--per-query"),
        ("--scenario single-stream --duration -1", "--duration"),
        ("--scenario single-stream --duration nan", "duration"),
        ("--scenario single-stream --duration inf", "--duration"),
        ("--scenario single-stream --queries 0", "--queries"),
        ("--scenario single-stream --percentile 0.99", "--percentile 0.99: from 1 to below 100"),
        ("--scenario single-stream --percentile 100", "--percentile 100: from 1 to below 100"),
        ("--scenario single-stream --percentile nan", "--percentile nan: from 1 to below 100"),
        ("--scenario single-stream --seed -1", "a seed is a whole number from 0"),
        ("--scenario single-stream --driver mlperf", "--driver"),
        ("--scenario serve", "--scenario"),
        ("--scenario server --bound-ms 3", "server needs a rate"),
        ("--scenario server --rate 30", "server needs a latency bound"),
        ("--scenario server --rate nan --bound-ms 3", "server needs a rate"),
        ("--scenario server --rate -1 --bound-ms 3", "server needs a rate"),
        ("--scenario server --rate 1e12 --bound-ms 3", "queries"),
        ("--scenario server --rate 1e-3 --bound-ms 3", "662 queries at --rate 0.001 take more than a week"),
        ("--scenario server --rate 1e-300 --bound-ms 3 --queries 2", "take more than a week"),
        ("--scenario fixed-rate --rate 1e-300", "take more than a week"),
        ("--scenario multi-stream --percentile 99.99999", "p99.99999 takes 66,383,518 queries to speak of"),
        ("--scenario server --rate 30 --bound-ms 0", "above 0 ms"),
        ("--scenario server --rate 30 --bound-ms 3 --find-rate --driver loadgen", "by edgetl's own driver"),
    ],
)
def test_what_does_not_go_together(bench: Bench, bundle: Path, arguments: str, words: str) -> None:
    done = bench(bundle, *arguments.replace("BUNDLE", str(bundle)).split())
    assert done.code == 2, done.err
    assert words in " ".join(done.err.split())
    assert done.out == ""


@pytest.mark.parametrize("asked", [("--scenario", "offline"), ("--stages",)])
def test_what_is_no_bundle(bench: Bench, bundle: Path, tmp_path: Path, asked: tuple[str, ...]) -> None:
    for thing in (bundle / FOLDER / "model.onnx", bundle / FOLDER, tmp_path / "nowhere"):
        done = bench(thing, *asked, "--json")
        assert done.code == 2
        assert "is not a bundle" in done.err
        assert json.loads(done.out)["kind"] == "error"
    changed = Path(shutil.copytree(bundle, tmp_path / "changed"))
    matrix_product(changed / "engines" / "more.onnx")
    assert bench(changed, *asked).code == 7
