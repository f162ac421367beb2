"""Time and memory of one calibration for all estimators, against onnxruntime.quantization's, interleaved.

    python benchmarks/speed.py --cache DIR [--rounds 3]

EfficientNet-Lite0 at 224 px, the same samples for all, each run in a process of its own (benchmarks/peers.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import peers
import zoo

from edgetl.benchmark import environment

TOOLS = ("ort-minmax", "edgetl-estimators", "ort-entropy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=zoo.CACHE)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--many", type=int, default=1000, help="samples of edgetl's second run for memory; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    given = parser.parse_args()
    item = zoo.load("lite0-imagenet", given.cache)
    found: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(given.rounds):
            for tool in TOOLS:
                found[tool].append(run(tool, item, given.samples, Path(name)))
        many = run("edgetl-estimators", item, given.many, Path(name)) if given.many else None
    base = statistics.median(run["seconds"] for run in found["ort-minmax"])
    print(f"{environment.cpu_name()}, load {environment.load_average()}; {given.samples} samples")
    for tool, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        peak = statistics.median(run["extra_peak_mb"] for run in runs)
        print(f"{tool:20} {seconds:7.2f} s {seconds / base:6.2f} × ort-minmax {peak:7.0f} MB extra")
    if many:
        print(f"edgetl-estimators, {given.many} samples: {many['seconds']:.2f} s, {many['extra_peak_mb']:.0f} MB extra")
    if given.output:
        given.output.write_text(json.dumps({"environment": environment.environment(), "runs": found, "many": many}))


def run(tool: str, item: zoo.Item, count: int, folder: Path) -> dict[str, float]:
    """One run; samples beyond those that there are repeat them."""
    samples = folder / f"{count}.npz"
    if not samples.exists():
        indices = np.arange(count) % len(next(iter(item.calibration.values())))
        np.savez(samples, **{name: array[indices] for name, array in item.calibration.items()})
    output = folder / f"{tool}.onnx"
    python = Path(sys.executable)
    return peers.run_peer(tool, item.model, samples, count, output, python=python, transformer=False, timeout_s=900)


if __name__ == "__main__":
    main()
