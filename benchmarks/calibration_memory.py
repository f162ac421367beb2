"""Extra peak memory of calibrating Lite0 at 224 px, in a process of its own per number of samples.

Extra is what the process had at its peak beyond what it had after loading its libraries and the model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import imagenet

SCRIPT = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
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

model = graph.prepare(graph.load(Path(sys.argv[1])))
names = placement.points(model, list(SCHEMES.values()))
samples = load_samples(Path(sys.argv[2]))[: int(sys.argv[3])]
with open_graph(Path(sys.argv[1])) as runner:
    import numpy as np
    runner.run({"input": np.zeros((1, 3, 224, 224), dtype=np.float32)})
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
began = time.perf_counter()
feeds = ({"input": found} for found, _ in batches(Samples(samples, imagenet.PREPROCESSING), 16))
statistics = calibrate.calibrate(model, names, feeds, open_runner=open_graph)
print(json.dumps({"samples": statistics.samples, "tensors": len(names), "seconds": time.perf_counter() - began,
                  "extra_peak_mb": memory_mb("VmHWM") - before}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 1000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, model = imagenet.export_lite0(folder)
        pictures = imagenet.photographs(folder, max(arguments.samples))
        for count in arguments.samples:
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, str(model), str(pictures), str(count), str(Path(__file__).parent)],
                capture_output=True,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout)
            print(
                f"{found['samples']:5} samples, {found['tensors']} tensors: "
                f"extra peak {found['extra_peak_mb']:.0f} MB, {found['seconds']:.1f} s"
            )


if __name__ == "__main__":
    main()
