"""Lite0 at 224 px: int8 engines against ONNX Runtime fp32 and PyTorch eager, interleaved in fresh processes.

Prints medians with their intervals and the ratios to the int8 engine of the x86-64-cpu scheme; run by `make bench`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import imagenet

from edgetl.backends.checkpoint import Deploy
from edgetl.backends.torch import write_checkpoint
from edgetl.benchmark import environment
from edgetl.benchmark.comparison import compare
from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.sampling import Plan, measure
from edgetl.benchmark.things import Thing, checkpoint_thing, onnx_thing
from edgetl.pipeline.own_model import quantize_model
from edgetl.pipeline.timing import details_of, latency_of, median_cold

BASE = "ONNX Runtime int8 (x86-64-cpu)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=700)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--threads", type=int, default=environment.usable_cores())
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        things = made(Path(name))
        plan = Plan(samples=arguments.samples, processes=arguments.processes, threads=arguments.threads)
        sampled = measure(things, Feeds(), plan)
    series = {each.thing.name: each.series() for each in sampled}
    print(f"{environment.cpu_name()}, {arguments.threads} threads, load {environment.load_average()}")
    print(f"{'':34} {'p50 ms':>8} {'95% interval':>16} {'p90 ms':>8} {'p99 ms':>8} {'load ms':>8}  p50 / int8")
    for each in sampled:
        item, ratio = latency_of(each), compare(series[each.thing.name], series[BASE])
        low, high = item.p50_interval_ms or (float("nan"), float("nan"))
        print(
            f"{each.thing.name:34} {item.p50_ms:8.2f} {low:7.2f} to {high:5.2f} {item.p90_ms or float('nan'):8.2f}"
            f" {item.p99_ms or float('nan'):8.2f} {median_cold(each.cold).load_ms:8.0f}"
            f"  {ratio.ratio:.2f} ({ratio.lower:.2f} to {ratio.upper:.2f})"
        )
    if arguments.output:
        latencies = {each.thing.name: latency_of(each).to_json() for each in sampled}
        details = details_of(sampled, threads=arguments.threads, references=(BASE,))
        document = {"environment": environment.environment(), "latency": latencies, **details}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


def made(folder: Path) -> list[Thing]:
    """The network as a checkpoint, as a float graph, and quantized for three targets."""
    module, model = imagenet.export_lite0(folder)
    graphs = {}
    for target in ("x86-64-cpu", "x86-64-vnni", "intel-cpu"):
        graphs[target] = folder / f"{target}.onnx"
        quantize_model(model, imagenet.photographs(folder), graphs[target], target=target, samples=64)
    place = folder / "checkpoint"
    place.mkdir()
    deploy = Deploy(
        backbone="timm:tf_efficientnet_lite0",
        classes=tuple(map(str, range(1000))),
        preprocessing=imagenet.PREPROCESSING,
        config_digest="",
    )
    write_checkpoint(place, module, deploy)
    return [
        checkpoint_thing(place, name="PyTorch eager"),
        onnx_thing(model, name="ONNX Runtime fp32"),
        onnx_thing(graphs["x86-64-cpu"], name=BASE),
        onnx_thing(graphs["x86-64-vnni"], name="ONNX Runtime int8 (x86-64-vnni)"),
        openvino_thing(model, name="OpenVINO fp32"),
        openvino_thing(graphs["intel-cpu"], name="OpenVINO int8 (intel-cpu)"),
    ]


def openvino_thing(model: Path, *, name: str) -> Thing:
    """An ONNX file on OpenVINO, which reads those too."""
    imports = ("numpy", "openvino", "edgetl.runtime.openvino")
    return Thing(name=name, opener="openvino", path=model.resolve(), imports=imports)


if __name__ == "__main__":
    main()
