"""Which layers a recipe loses on, for a model of the zoo: the report that explains a row of docs/calibration.md.

    python benchmarks/zoo_layers.py MODEL --cache DIR [--recipe int8-mse] [--scheme onnxruntime-x86-vnni] [--keep NAME…]

Prints the SQNR of the logits on test samples, then every layer and every activation, worst first, in isolation and
accumulated. ``--keep`` leaves nodes or operators in float: what the logits gain by it is what those cost.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import quality
import zoo

from edgetl import catalog
from edgetl.parity.numeric import sqnr_db
from edgetl.quantize import changes, graph, recipes
from edgetl.quantize.layers import LayerReport
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.schemes import scheme as scheme_of
from edgetl.quantize.tools import Tools
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=zoo.NAMES)
    parser.add_argument("--cache", type=Path, default=zoo.CACHE)
    parser.add_argument("--recipe", default="int8-mse", help="a name or a file (default: %(default)s)")
    parser.add_argument("--scheme", default="onnxruntime-x86-vnni", choices=SCHEMES)
    parser.add_argument("--count", type=int, default=100, help="calibration samples")
    parser.add_argument("--test", type=int, default=300, help="test samples, at most")
    parser.add_argument("--most", type=int, default=12, help="layers and activations to show")
    parser.add_argument("--keep", nargs="+", default=[], help="nodes or operators that stay in float")
    given = parser.parse_args()
    item = zoo.load(given.model, given.cache)
    recipe = catalog.recipe(given.recipe)
    recipe = replace(recipe, keep_float=(*recipe.keep_float, *given.keep))
    samples = [quality.sample(item.calibration, index) for index in range(given.count)]
    tools = Tools(samples=lambda: samples, open_runner=OnnxRuntimeRunner)
    prepared = graph.prepare(graph.load(item.model))
    scheme = scheme_of(given.scheme)
    statistics = recipes.calibrate(prepared, tools, [scheme])
    if recipes.changes_graph(recipe):
        changed = changes.change(prepared, statistics, recipe, tools)
        prepared, statistics = changed.model, changed.statistics
    made = recipes.make(prepared, statistics, scheme, recipe, tools)
    feeds = {name: array[: given.test] for name, array in item.test.items()}
    engine: quality.Engine = "openvino" if "openvino" in given.scheme else "onnxruntime"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        ir.save(made.model, path)
        reference, got = quality.outputs(item.model, feeds), quality.outputs(path, feeds, engine)
    agreed = (reference.argmax(-1) == got.argmax(-1)).mean()
    print(f"{given.model}, {given.recipe}, {engine}: logits {sqnr_db(reference, got):.1f} dB, agreement {agreed:.3f}")
    if made.report:
        show(made.report, given.most)


def show(report: LayerReport, most: int) -> None:
    """Print the layers and activations that lose most in isolation."""
    print(f"{'isolated':>9} {'accumulated':>12}  dB, {len(report.layers)} layers on {report.samples} samples")
    for layer in report.layers[:most]:
        print(f"{layer.isolated_db:9.1f} {layer.accumulated_db:12.1f}  {layer.operator} {layer.node}")
    print(f"{'isolated':>9} {'accumulated':>12}  dB, {len(report.tensors)} activations; range")
    for tensor in report.tensors[:most]:
        span = f"{tensor.low:.3g} … {tensor.high:.3g}"
        print(f"{tensor.isolated_db:9.1f} {tensor.accumulated_db:12.1f}  {tensor.name}: {span}")


if __name__ == "__main__":
    main()
