"""edgetl's medians against OpenVINO's benchmark_app and the loop that ONNX Runtime documents, in turn.

    python benchmarks/other_timers.py [--rounds 25] [--threads 2] [--only "openvino int8"]

The same engines (EfficientNet-Lite0 at 224 px, float and int8) are timed by each tool in fresh processes, one tool
after the other, round by round; printed are medians over the rounds, and the median of the ratios of each round, with
the interval between the two of them that hold the median of all rounds there could be with 95% confidence (by their
ranks alone: David and Nagaraja 2003, Order statistics, section 7.1). One process is up to a tenth faster than the next
of the same tool: few rounds say little.
benchmark_app comes with OpenVINO's wheel, and tells what OpenVINO's own clock says of each call, without the call from
Python. The lines "own clock" are what it says of edgetl's calls, in the same processes: the last call of each block, as
`edgetl bench` tells it.
onnxruntime_perf_test comes with no wheel: its loop, which binds inputs and outputs once and then calls Run, is made
with IOBinding here, as ONNX Runtime's documentation of its Python interface describes it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import imagenet

from edgetl.benchmark import environment
from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.sampling import Plan, measure
from edgetl.benchmark.things import Thing, onnx_thing
from edgetl.pipeline.own_model import quantize_model
from edgetl.pipeline.timing import latency_of

ORT_LOOP = textwrap.dedent(
    """
    import json, statistics, sys, time
    import numpy as np, onnxruntime as ort

    model, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for each in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in each.shape]
        array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        binding.bind_cpu_input(each.name, array)
    for each in session.get_outputs():
        binding.bind_output(each.name)
    for _ in range(20):
        session.run_with_iobinding(binding)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        session.run_with_iobinding(binding)
        times.append(time.perf_counter() - began)
    print(json.dumps(1e3 * statistics.median(times)))
    """
)
SECONDS = 2.0
TARGETS = {"onnxruntime": "x86-64-vnni", "openvino": "intel-cpu-vnni"}
NAMES = [f"{engine} {precision}" for precision in ("fp32", "int8") for engine in TARGETS]
"""Of what is timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", choices=NAMES, help='one engine and precision, as "openvino int8"')
    parser.add_argument("--threads", type=int, default=environment.usable_cores())
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, model = imagenet.export_lite0(folder)
        graphs = {"fp32": {"onnxruntime": model, "openvino": model}, "int8": {}}
        for engine, target in TARGETS.items():
            graphs["int8"][engine] = folder / f"{target}.onnx"
            quantize_model(model, imagenet.photographs(folder), graphs["int8"][engine], target=target, samples=64)
        facts = {"environment": environment.environment(), "threads": given.threads, "load": environment.load_average()}
        found: dict[str, tuple[list[float], list[float]]] = {}
        for precision, files in graphs.items():
            for engine, path in files.items():
                name = f"{engine} {precision}"
                if given.only in (None, name):
                    found |= compared(name, engine, path, given.rounds, given.threads)
                if given.output:  # after each: what fails costs its own figures alone
                    medians = {name: {"edgetl_ms": ours, "other_ms": theirs} for name, (ours, theirs) in found.items()}
                    text = json.dumps({**facts, "medians": medians}, indent=1)
                    given.output.write_text(text + "\n", encoding="utf-8")
    print(f"\n{facts['environment']['cpu']}, {given.threads} threads, {given.rounds} rounds, load {facts['load']}")
    print(f"{'':24} {'edgetl ms':>10} {'other ms':>10}  edgetl / other, median of rounds (95% interval)")
    for name, (ours, theirs) in found.items():
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        print(
            f"{name:24} {statistics.median(ours):10.3f} {statistics.median(theirs):10.3f}"
            f"  {statistics.median(ratios):.3f} ({interval(ratios)})"
        )


def interval(ratios: list[float]) -> str:
    """The ranks between which the median of all lies with 95% confidence, as "1.010 to 1.030"; of few values none."""
    ordered, below, chance = sorted(ratios), 0, 0.0
    while (chance := chance + 2.0 * math.comb(len(ordered), below) / 2.0 ** len(ordered)) <= 0.05:
        below += 1
    if not below:
        return f"{len(ordered)} rounds are too few for an interval"
    return f"{ordered[below - 1]:.3f} to {ordered[-below]:.3f}"


def compared(
    name: str, engine: str, model: Path, rounds: int, threads: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Medians in ms of edgetl and of the other tool, round by round; who begins changes."""
    other = {"onnxruntime": ort_loop, "openvino": benchmark_app}[engine]
    ours: list[float] = []
    own: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        if number % 2:
            theirs.append(other(model, threads))
        p50, engine_clock = edgetl(engine, model, threads)
        ours.append(p50)
        own += [engine_clock] if engine_clock is not None else []
        if not number % 2:
            theirs.append(other(model, threads))
        print(f"{name}: {ours[-1]:.3f}, the other {theirs[-1]:.3f} ms; own clock {engine_clock}", flush=True)
    return {name: (ours, theirs), **({f"{name}, own clock": (own, theirs)} if own else {})}


def edgetl(engine: str, model: Path, threads: int) -> tuple[float, float | None]:
    """Median in ms, of one fresh process, and that of the engine's own clock in it, where it has one."""
    thing = onnx_thing(model, name=engine)
    if engine == "openvino":
        imports = ("numpy", "openvino", "edgetl.runtime.openvino")
        thing = Thing(name=engine, opener="openvino", path=model.resolve(), imports=imports)
    (sampled,) = measure([thing], Feeds(), Plan(samples=int(SECONDS * 300), processes=1, threads=threads))
    return latency_of(sampled).p50_ms, sampled.engine_clock_p50_ms


def benchmark_app(model: Path, threads: int) -> float:
    """Median in ms that OpenVINO's own tool prints: one synchronous stream.

    What looks like an image it would feed as bytes, to another engine than the one that edgetl times: hence -ip f32.
    """
    program = Path(sys.executable).with_name("benchmark_app")
    done = subprocess.run(
        [program, "-m", model, "-d", "CPU", "-hint", "none", "-api", "sync", "-nstreams", "1",
         "-nthreads", str(threads), "-infer_precision", "f32", "-ip", "f32", "-t", str(int(SECONDS)),
         "-shape", "[1,3,224,224]"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return median_ms(done.stdout)


def median_ms(told: str) -> float:
    """The median that benchmark_app tells, in ms: below one millisecond it tells microseconds."""
    ((value, unit),) = re.findall(r"Median:\s+([\d.]+) (ms|us)", told)
    return float(value) / {"ms": 1.0, "us": 1e3}[unit]


def ort_loop(model: Path, threads: int) -> float:
    """Median in ms of ONNX Runtime's loop with everything bound."""
    done = subprocess.run(
        [sys.executable, "-c", ORT_LOOP, model, str(threads), str(SECONDS)], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout))


if __name__ == "__main__":
    main()
