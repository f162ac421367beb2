"""The GPU half of a build, on real digits: training, parity and latency of every engine that runs on this GPU.

    python benchmarks/gpu.py                          # on a machine with an NVIDIA GPU; `make gpu-check` runs it
    python benchmarks/gpu.py --target x86-64-vnni     # the same path without one

Fine-tunes, exports, compiles and proves as `edgetl build` does, for ONNX Runtime's CUDA provider and TensorRT-RTX,
beside the processor, and writes latencies, comparisons, ceilings, training throughput and parity into
benchmarks/results/<gpu>.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgetl.benchmark import environment
from edgetl.pipeline import start

TARGETS = ("nvidia-gpu", "rtx-pc", "x86-64-vnni")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", help=f"may be repeated [default: {', '.join(TARGETS)}]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    given = parser.parse_args()
    gpus = environment.gpu_names()
    if not gpus and not given.target:
        sys.exit("nvidia-smi finds no NVIDIA GPU here; --target x86-64-vnni measures the processor")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        config = project(Path(name), given.target or TARGETS)
        done = subprocess.run([sys.executable, "-m", "edgetl", "build", config, "--unsigned", "--json"], check=False)
        if done.returncode:
            sys.exit(done.returncode)
        document = gathered(config.parent)
    document["seconds"] = round(time.perf_counter() - began, 1)
    file = given.results / f"{slug((gpus or [environment.cpu_name()])[0])}.json"
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for each, latency in document["latency"].items():
        print(f"{each:34} p50 {latency['p50_ms']:.3f} ms")
    print(f"wrote {file}")


def project(folder: Path, targets: tuple[str, ...] | list[str]) -> Path:
    """The digits, for these targets; every precision that they offer."""
    config = start.init(folder, "digits").config
    text, _, _ = config.read_text(encoding="utf-8").partition("[[target]]")
    config.write_text(text + "".join(f'[[target]]\ndevice = "{target}"\n\n' for target in targets), encoding="utf-8")
    return config


def gathered(folder: Path) -> dict[str, Any]:
    """What the build's stages wrote, without single calls."""
    bench = only(folder, "bench", "bench.json")
    phases = only(folder, "finetune", "training.json")
    parity = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(".edgetl/verify/*/*.json"))]
    details = bench["details"]
    for found in details["roofline"].values():
        del found["layers"]
    return {
        "environment": bench["environment"],
        "created": bench["created"],
        "latency": bench["latency"],
        **{name: details[name] for name in ("cold_start", "comparisons", "ceilings", "roofline", "stability")},
        "training": phases,
        "parity": parity,
    }


def only(folder: Path, stage: str, name: str) -> Any:
    """The one file of that name that a stage of the build wrote."""
    (file,) = folder.glob(f".edgetl/{stage}/*/{name}")
    return json.loads(file.read_text(encoding="utf-8"))


def slug(name: str) -> str:
    """As a file's name: "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.split(",")[0].lower()).strip("-")


if __name__ == "__main__":
    main()
