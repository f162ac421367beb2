"""edgetl's own driver against MLPerf LoadGen, interleaved; what timer and driver cost; the stages of a bundle's answer.

    python benchmarks/scenarios.py                     a 200 µs spin, and EfficientNet-Lite0 at 224 px in int8
    python benchmarks/scenarios.py --engine FILE.onnx  instead of Lite0, which takes minutes to quantize
    python benchmarks/scenarios.py --bundle FOLDER     its first engine that runs here, and its stages

Prints ratios of medians over rounds. A round counts where other processes used less than a tenth of a core meanwhile,
whatever its figures are; where fewer than five do, all count, and "busy" stands beside them. It needs
`pip install 'edgetl[loadgen]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edgetl.benchmark import environment
from edgetl.benchmark.issuing import issue_of
from edgetl.benchmark.loadgen import Agreement, agreement_of, run_loadgen
from edgetl.benchmark.overhead import overhead
from edgetl.benchmark.scenarios import Issue, run
from edgetl.benchmark.schedules import Plan
from edgetl.benchmark.stages import measure_stages
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.runtime.opening import open_engine
from edgetl.runtime.runner import Runner

SPIN_NS = 200_000
INPUTS = 16
QUIET = 0.1
"""Cores that other processes may use in a round that counts."""


def spin(_: Sequence[int]) -> None:
    until = time.perf_counter_ns() + SPIN_NS
    while time.perf_counter_ns() < until:
        pass


def quantized_lite0(folder: Path) -> Path:
    import imagenet

    from edgetl.pipeline.own_model import quantize_model

    _, model = imagenet.export_lite0(folder)
    found = folder / "lite0-int8.onnx"
    quantize_model(model, imagenet.photographs(folder), found, target="x86-64-cpu", samples=64)
    return found


def others_s() -> float:
    """Seconds of processor time that everything but this process has used since the machine started (Linux)."""
    user, nice, system, _, _, *interrupts = (
        int(one) for one in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return busy - time.process_time()


def issue_for(runner: Runner) -> Issue:
    shape = [size if isinstance(size, int) else 1 for size in runner.inputs[0].shape]
    inputs = np.random.default_rng(0).normal(size=(INPUTS, *shape[1:])).astype(runner.inputs[0].dtype)
    issue = issue_of(runner, inputs)
    for _ in range(20):
        issue((0,))
    return issue


def plans(service_ms: float, seconds: float) -> dict[str, Plan]:
    """The scenarios that both drivers have; server at half of what the engine could do."""
    limits: dict[str, Any] = {"samples": INPUTS, "min_duration_s": seconds, "min_queries": 100}
    return {
        "single-stream": Plan(scenario="single-stream", **limits),
        "multi-stream": Plan(scenario="multi-stream", per_query=8, **limits),
        "offline": Plan(scenario="offline", per_query=8, **limits),
        "server": Plan(scenario="server", rate_per_s=500.0 / service_ms, bound_ms=20 * service_ms, **limits),
    }


def compare(
    issue: Issue, plan: Plan, service_ms: float, rounds: int, order: random.Random
) -> tuple[Agreement, dict[str, list[dict[str, Any]]]]:
    """Both drivers in every round, in random order; medians over the rounds are compared."""
    found: dict[str, list[dict[str, Any]]] = {"edgetl": [], "LoadGen": []}
    per_query = plan.per_query if plan.scenario == "multi-stream" else 1

    def own() -> dict[str, Any]:
        result = run(issue, plan)
        return {"p50_ns": result.percentile_ns(0.5), "p90_ns": result.percentile_ns(0.9), "per_s": result.samples_per_s,
                "queries": result.queries}  # fmt: skip

    def other() -> dict[str, Any]:
        result = run_loadgen(issue, plan, expected_ms=service_ms * per_query)
        return {"p50_ns": result.latency_ns["p50"], "p90_ns": result.latency_ns["p90"], "per_s": result.samples_per_s,
                "queries": result.samples // per_query}  # fmt: skip

    drivers: list[tuple[str, Callable[[], dict[str, Any]]]] = [("edgetl", own), ("LoadGen", other)]
    for _ in range(rounds):
        order.shuffle(drivers)
        for name, drive in drivers:
            before, began = others_s(), time.monotonic()
            found[name].append(drive())
            found[name][-1]["others"] = (others_s() - before) / (time.monotonic() - began)
    pairs = list(zip(*found.values(), strict=True))
    quiet = [pair for pair in pairs if all(one["others"] < QUIET for one in pair)]
    counted = quiet if len(quiet) >= 5 else pairs
    found = {name: [pair[at] for pair in counted] for at, name in enumerate(found)}
    middle = {
        name: tuple(statistics.median(one[key] for one in runs) for key in ("p50_ns", "p90_ns"))
        for name, runs in found.items()
    }
    return agreement_of((middle["edgetl"][0], middle["edgetl"][1]), (middle["LoadGen"][0], middle["LoadGen"][1])), found


def show(name: str, scenario: str, agreed: Agreement, runs: dict[str, list[dict[str, Any]]]) -> None:
    own, other = (statistics.median(one["p50_ns"] for one in runs[driver]) / 1e3 for driver in ("edgetl", "LoadGen"))
    rates = [[one["per_s"] for one in runs[driver] if one["per_s"]] for driver in ("edgetl", "LoadGen")]
    rate = f"{statistics.median(rates[0]) / statistics.median(rates[1]):8.4f}" if all(rates) else "       –"
    busy = "" if all(one["others"] < QUIET for driver in runs.values() for one in driver) else "busy"
    verdict = "agree" if agreed.p50_agrees and agreed.p90_agrees else "DIFFER"
    verdict = verdict if scenario in ("single-stream", "multi-stream") else ""  # the others draw their own arrivals
    print(
        f"{name:12} {scenario:14} {own:10.1f} {other:10.1f} {agreed.p50_ratio:8.4f} {agreed.p50_gap_us:+8.1f}"
        f" {agreed.p90_ratio:8.4f} {rate} {len(runs['edgetl']):6d} {busy:5} {verdict}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, help="an ONNX file with one input")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scenario", action="append", help="only these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    arguments = parser.parse_args()
    document: dict[str, Any] = {"environment": environment.environment(), "overhead": {}, "agreement": [], "stages": []}
    print(f"{environment.cpu_name()}, {arguments.threads} threads, load {environment.load_average()}")
    for driver, cost in overhead().items():
        document["overhead"][driver] = cost.to_json()
        print(f"overhead of the {driver}: {cost.in_latency_ns} ns in a latency, {cost.per_query_ns} ns per query")
    order = random.Random(0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        issues: dict[str, Issue] = {"spin 200 µs": spin}
        if arguments.bundle:
            bundle = open_bundle(arguments.bundle)
            entry = bundle.choose()
            opened = stack.enter_context(open_engine(bundle.folder / entry.folder, threads=arguments.threads))
            issues[f"{entry.target} {entry.precision}"[:12]] = issue_for(opened)
        else:
            model = arguments.engine or quantized_lite0(folder)
            runner = stack.enter_context(OnnxRuntimeRunner(model, threads=arguments.threads))
            issues["Lite0 int8" if arguments.engine is None else model.stem[:12]] = issue_for(runner)
        columns = ("edgetl µs", "LoadGen µs", "p50", "gap µs", "p90", "rate", "rounds")
        print(
            f"{'':27}" + "".join(f"{one:>{width}}" for one, width in zip(columns, (11, 11, 9, 9, 9, 9, 7), strict=True))
        )
        for name, issue in issues.items():
            pilot = Plan(scenario="single-stream", min_duration_s=0.2, samples=INPUTS)
            service_ms = run(issue, pilot).percentile_ns(0.5) / 1e6
            for scenario, plan in plans(service_ms, arguments.seconds).items():
                if arguments.scenario and scenario not in arguments.scenario:
                    continue
                agreed, runs = compare(issue, plan, service_ms, arguments.rounds, order)
                document["agreement"].append({"engine": name, "scenario": scenario, **agreed.to_json(), "runs": runs})
                show(name, scenario, agreed, runs)
        if arguments.bundle:
            with bundle.open(threads=arguments.threads) as predictor:
                stages = measure_stages(predictor, bundle.golden().sources[0], samples=500, warmup=50)
            document["stages"].append(stages.to_json())
            for stage, took in stages.stages_ns.items():
                print(f"{stage:16} {took / 1e3:9.1f} µs {took / stages.sum_ns:7.1%}")
            print(f"{'sum':16} {stages.sum_ns / 1e3:9.1f} µs; whole {stages.whole_ns / 1e3:.1f} µs, {stages.gap:+.2%}")
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
