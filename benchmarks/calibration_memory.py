"""Extra peak memory and temporary files of a calibration, in a process of its own per number of samples.

    python benchmarks/calibration_memory.py [--samples 100 1000]
    python benchmarks/calibration_memory.py --zoo minilm-reviews --cache DIR --memory-mb 16 512 --samples 8

Extra is what the process had at its peak beyond what it had after loading its libraries and the model. Without `--zoo`
it is EfficientNet-Lite0 at 224 px on photographs, which are read and decoded meanwhile; a model of `zoo.py` has its
samples in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import imagenet
import zoo

SCRIPT = """
import json, sys, tempfile, threading, time
from pathlib import Path
import numpy as np
given = json.loads(sys.argv[1])
sys.path.insert(0, given["benchmarks"])
import imagenet
from edgetl.data.load import load_samples
from edgetl.data.loader import Samples, batches
from edgetl.pipeline.engines import open_graph
from edgetl.quantize import calibrate, graph, placement
from edgetl.quantize.schemes import SCHEMES

def memory_mb(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1000

def files_mb(folder):
    total = 0
    for path in Path(folder).rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            pass
    return total / 1e6

def watch():
    while not over.wait(0.02):
        held.append(files_mb(tempfile.tempdir))

model = graph.prepare(graph.load(Path(given["model"])))
names = placement.points(model, list(SCHEMES.values()))
if given["arrays"]:
    with np.load(given["arrays"]) as file:
        arrays = {name: file[name][: given["samples"]] for name in file.files}
    first, feeds = {name: array[:1] for name, array in arrays.items()}, [arrays]
else:
    samples = load_samples(Path(given["pictures"]))[: given["samples"]]
    first = {"input": np.zeros((1, 3, 224, 224), dtype=np.float32)}
    feeds = ({"input": found} for found, _ in batches(Samples(samples, imagenet.PREPROCESSING), 16))
with open_graph(Path(given["model"])) as runner:
    runner.run(first)
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
held, over = [0.0], threading.Event()
with tempfile.TemporaryDirectory() as tempfile.tempdir:
    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    statistics = calibrate.calibrate(model, names, feeds, open_runner=open_graph, memory_mb=given["memory_mb"])
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
print(json.dumps({"samples": statistics.samples, "tensors": len(names), "seconds": seconds,
                  "extra_peak_mb": memory_mb("VmHWM") - before, "files_mb": max(held)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--memory-mb", type=int, nargs="+", default=[512])
    parser.add_argument("--zoo", help="a model of zoo.py")
    parser.add_argument("--cache", type=Path, default=zoo.CACHE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        given: dict[str, str | int | None] = {"benchmarks": str(Path(__file__).parent), "arrays": None}
        if arguments.zoo:
            given["model"] = str(zoo.load(arguments.zoo, arguments.cache).model)
            given["arrays"] = str(arguments.cache / arguments.zoo / "calibration.npz")
        else:
            given["model"] = str(imagenet.export_lite0(Path(name))[1])
            given["pictures"] = str(imagenet.photographs(Path(name), max(arguments.samples)))
        for memory_mb in arguments.memory_mb:
            for count in arguments.samples:
                print(
                    f"{memory_mb:5} MB allowed, {run(given | {'memory_mb': memory_mb, 'samples': count})}", flush=True
                )


def run(given: dict[str, str | int | None]) -> str:
    """One calibration in a process of its own, in a line."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(given)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return (
        f"{found['samples']:5} samples, {found['tensors']} tensors: extra peak {found['extra_peak_mb']:.0f} MB, "
        f"files {found['files_mb']:.0f} MB, {found['seconds']:.1f} s"
    )


if __name__ == "__main__":
    main()
