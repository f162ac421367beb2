"""Lite0 at 224 px: int8 engines against ONNX Runtime fp32 and PyTorch eager, interleaved in one process.

Prints medians and the ratios to the int8 engine of the x86-64-cpu scheme. Run it with `make bench`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import imagenet
import numpy as np

from edgetl.backends.torch import TorchRunner
from edgetl.benchmark import environment, latency
from edgetl.pipeline.own_model import quantize_model
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.runtime.openvino import OpenVinoRunner
from edgetl.runtime.runner import TensorSpec

FED = TensorSpec(name="input", shape=("batch", 3, 224, 224), dtype="float32")
LOGITS = TensorSpec(name="logits", shape=("batch", 1000), dtype="float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    arguments = parser.parse_args()
    threads = environment.usable_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module, model = imagenet.export_lite0(folder)
        graphs = {}
        for target in ("x86-64-cpu", "x86-64-vnni", "intel-cpu"):
            graphs[target] = folder / f"{target}.onnx"
            quantize_model(model, imagenet.photographs(folder), graphs[target], target=target, samples=64)
        runners = {
            "PyTorch eager": TorchRunner(module, FED, LOGITS, threads=threads),
            "ONNX Runtime fp32": OnnxRuntimeRunner(model, threads=threads),
            "ONNX Runtime int8 (x86-64-cpu)": OnnxRuntimeRunner(graphs["x86-64-cpu"], threads=threads),
            "ONNX Runtime int8 (x86-64-vnni)": OnnxRuntimeRunner(graphs["x86-64-vnni"], threads=threads),
            "OpenVINO fp32": OpenVinoRunner(model, threads=threads),
            "OpenVINO int8 (intel-cpu)": OpenVinoRunner(graphs["intel-cpu"], threads=threads),
        }
        image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
        calls = {
            name: (lambda runner=runner: runner.run({runner.inputs[0].name: image})) for name, runner in runners.items()
        }
        times = latency.measure(calls, samples=arguments.samples, warmup=20)
    found = {name: latency.summarise(measured) for name, measured in times.items()}
    base = found["ONNX Runtime int8 (x86-64-cpu)"].p50_ms
    print(f"{environment.cpu_name()}, {threads} threads, load {environment.load_average()}")
    print(f"{'':34} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8} {'p50 / int8':>11}")
    for name, item in found.items():
        print(f"{name:34} {item.p50_ms:8.2f} {item.p90_ms:8.2f} {item.p99_ms:8.2f} {item.p50_ms / base:10.2f}×")
    if arguments.output:
        document = {"environment": environment.environment(), "latency": {k: v.to_json() for k, v in found.items()}}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
