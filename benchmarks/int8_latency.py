"""Are edgetl's int8 graphs as fast as those of NNCF and ONNX Runtime? Ratios of medians, with their intervals.

    python benchmarks/int8_latency.py MODEL… --results DIR

Takes the graphs that benchmarks/calibration.py left there. Of each model and engine, edgetl's default recipe for that
engine and the peers' graphs are timed in turn in fresh processes; the peer with the lowest median is the one to beat.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peers
import zoo

from edgetl.benchmark import environment
from edgetl.benchmark.comparison import compare
from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.sampling import Plan, measure
from edgetl.benchmark.things import Thing
from edgetl.pipeline.timing import latency_of

OURS = {"onnxruntime": "edgetl-int8-mse", "openvino": "edgetl-openvino-int8-mse"}
THEIRS = ("nncf-performance", "nncf-mixed", "ort-minmax", "ort-percentile", "modelopt-max")
SLOW = 2.0
"""A peer that takes so many times as long in a first look is not the one to beat, and is not timed at length."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", choices=zoo.NAMES, help=", ".join(zoo.NAMES))
    parser.add_argument("--results", type=Path, required=True, help="of benchmarks/calibration.py")
    parser.add_argument("--engines", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--samples", type=int, default=600, help="calls per graph, over all processes")
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in given.models:
        for engine in given.engines:
            found = row(model, engine, given)
            rows.append(found)
            print(json.dumps(found), flush=True)
    print(f"\n{environment.cpu_name()}, {environment.usable_cores()} threads, load {environment.load_average()}")
    print(
        "| model | engine | edgetl ms | best peer | ms | edgetl / peer | 95% interval |\n|---|---|---|---|---|---|---|"
    )
    for each in rows:
        print(
            f"| {each['model']} | {each['engine']} | {each['edgetl_ms']:.3f} | {each['peer']} | {each['peer_ms']:.3f}"
            f" | {each['ratio']:.3f} | {each['lower']:.3f} to {each['upper']:.3f} |"
        )
    if given.output:
        document = {"environment": environment.environment(), "processes": given.processes, "rows": rows}
        given.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def row(model: str, engine: str, given: argparse.Namespace) -> dict[str, Any]:
    """One line of the table."""
    imports = ("numpy", engine, f"edgetl.runtime.{engine}")
    things = [
        Thing(name=tool, opener=engine, path=path, imports=imports, provider="CPUExecutionProvider")
        for tool in (OURS[engine], *THEIRS)
        if (path := (given.results / f"{model}.{tool}{peers.TOOLS[tool].suffix}").resolve()).exists()
    ]
    threads = environment.usable_cores()
    with np.load(given.results / f"{model}.samples.npz") as samples, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "feeds.npz"
        np.savez(file, **{name: samples[name][:1] for name in samples.files})
        feeds = Feeds(file=file)
        first = {
            each.thing.name: latency_of(each).p50_ms
            for each in measure(things, feeds, Plan(samples=20, processes=1, threads=threads))
        }
        kept = [thing for thing in things if first[thing.name] < SLOW * min(first.values())]
        sampled = measure(kept, feeds, Plan(samples=given.samples, processes=given.processes, threads=threads))
    series = {each.thing.name: each.series() for each in sampled}
    medians = {each.thing.name: latency_of(each).p50_ms for each in sampled}
    peer = min((name for name in medians if name != OURS[engine]), key=medians.__getitem__)
    found = compare(series[OURS[engine]], series[peer])
    return {
        "model": model, "engine": engine, "edgetl_ms": medians[OURS[engine]], "peer": peer, "peer_ms": medians[peer],
        "ratio": found.ratio, "lower": found.lower, "upper": found.upper, "medians_ms": medians,
    }  # fmt: skip


if __name__ == "__main__":
    main()
