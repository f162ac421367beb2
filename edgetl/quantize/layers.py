"""What quantization costs, layer by layer: signal to quantization noise against the float graph, on real samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize import emulation
from edgetl.quantize._half_plan import MOVES
from edgetl.quantize.decibels import decibel, worst_first
from edgetl.quantize.dynamic import Dynamic
from edgetl.quantize.insertion import Quantized
from edgetl.quantize.joined import Joined
from edgetl.quantize.ranges import noise_power
from edgetl.quantize.sketch import Sketch
from edgetl.runtime.runner import Runner

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, kw_only=True)
class LayerLoss:
    """A weighted layer."""

    node: str
    operator: str
    isolated_db: float
    """SQNR of its output where its input and its weights alone are quantized; the input is the float graph's."""
    accumulated_db: float
    """SQNR of its output in the quantized graph."""


@dataclass(frozen=True, kw_only=True)
class TensorLoss:
    """A quantized activation."""

    name: str
    isolated_db: float
    """SQNR of quantizing what calibration counted."""
    accumulated_db: float
    """SQNR of its dequantized form in the quantized graph."""
    scale: float
    zero_point: int
    low: float
    """Smallest real value that is represented."""
    high: float
    """Largest real value that is represented."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """All layers and activations, those that lose most first."""

    layers: tuple[LayerLoss, ...]
    tensors: tuple[TensorLoss, ...]
    samples: int
    """How many samples it was measured on."""


def report(
    original: ir.Model,
    quantized: Quantized,
    statistics: Mapping[str, Sketch],
    batches: Sequence[Mapping[str, NDArray[np.generic]]],
    *,
    open_runner: Callable[[Path], Runner],
) -> LayerReport:
    """Compare the quantized graph with the float graph at every layer.

    Both graphs, and each layer by itself, are joined into one, which puts out nothing but powers of signals and of
    differences: no activation leaves the engine, whatever the size of the model.

    Args:
        original: The float graph that was quantized, as :func:`edgetl.quantize.graph.prepare` left it.
        quantized: From :func:`edgetl.quantize.insertion.quantize` of a copy of it.
        statistics: By activation.
        batches: Feeds of the model.
        open_runner: Opens an ONNX file.
    """
    joined = Joined(original, quantized.model)
    for layer in quantized.layers:
        joined.probe_layer(layer.node)
    for name in quantized.params:
        joined.probe_tensor(name)
    found = joined.measure(batches, open_runner)
    layers = [
        LayerLoss(
            node=layer.node,
            operator=layer.operator,
            isolated_db=found["isolated", layer.node],
            accumulated_db=found["layer", layer.node],
        )
        for layer in quantized.layers
    ]
    tensors = [
        TensorLoss(
            name=name,
            isolated_db=decibel(statistics[name].mean_square, noise_power(statistics[name], params)),
            accumulated_db=found["tensor", name],
            scale=params.scale,
            zero_point=params.zero_point,
            low=params.low,
            high=params.high,
        )
        for name, params in quantized.params.items()
        if name in statistics and ("tensor", name) in found
    ]
    return LayerReport(
        layers=tuple(sorted(layers, key=lambda loss: worst_first(loss.isolated_db))),
        tensors=tuple(sorted(tensors, key=lambda loss: worst_first(loss.isolated_db))),
        samples=_count(batches),
    )


def report_dynamic(
    original: ir.Model,
    quantized: Dynamic,
    batches: Sequence[Mapping[str, NDArray[np.generic]]],
    *,
    open_runner: Callable[[Path], Runner],
) -> LayerReport:
    """As :func:`report`, of a graph whose activations are quantized as they come: they have no ranges to tell of.

    Args:
        original: The float graph that was quantized, as :func:`edgetl.quantize.graph.prepare` left it.
        quantized: From :func:`edgetl.quantize.dynamic.quantize_dynamic` of a copy of it.
        batches: Feeds of the model; each is quantized by itself, as in an inference.
        open_runner: Opens an ONNX file.
    """
    joined = Joined(original, quantized.model)
    for product in quantized.products:
        joined.probe_product(product)
    found = joined.measure(batches, open_runner)
    losses = [
        LayerLoss(
            node=product.node,
            operator=product.operator,
            isolated_db=found["isolated", product.node],
            accumulated_db=found["layer", product.node],
        )
        for product in quantized.products
    ]
    return LayerReport(
        layers=tuple(sorted(losses, key=lambda loss: worst_first(loss.isolated_db))),
        tensors=(),
        samples=_count(batches),
    )


def report_half(
    original: ir.Model,
    halved: ir.Model,
    batches: Sequence[Mapping[str, NDArray[np.generic]]],
    *,
    open_runner: Callable[[Path], Runner],
) -> LayerReport:
    """As :func:`report`, of a graph in float16: of every node that computes in it, and does not only move values.

    Rounding is that of :mod:`edgetl.quantize.emulation`. A node by itself has its inputs, its constants and its output
    rounded. A ratio is NaN where float16 overflows; these come first.

    Args:
        original: The float graph that was converted, as :func:`edgetl.quantize.graph.prepare` left it.
        halved: From :func:`edgetl.quantize.half.to_half` of a copy of it.
        batches: Feeds of the model.
        open_runner: Opens an ONNX file.
    """
    import onnx_ir as ir

    before = {node.name for node in original.graph if node.outputs[0].dtype == ir.DataType.FLOAT}
    computing = [
        node
        for node in halved.graph
        if node.name in before and node.op_type not in MOVES and node.outputs[0].dtype == ir.DataType.FLOAT16
    ]
    joined = Joined(original, emulation.in_float32(halved))
    for node in computing:
        halves = [value is not None and value.dtype == ir.DataType.FLOAT16 for value in node.inputs]
        joined.probe_rounded(str(node.name), halves)
    found = joined.measure(batches, open_runner) if computing else {}
    losses = [
        LayerLoss(
            node=str(node.name),
            operator=node.op_type,
            isolated_db=found["isolated", str(node.name)],
            accumulated_db=found["layer", str(node.name)],
        )
        for node in computing
    ]
    return LayerReport(
        layers=tuple(sorted(losses, key=lambda loss: (not math.isnan(loss.isolated_db), loss.isolated_db))),
        tensors=(),
        samples=_count(batches),
    )


def _count(batches: Sequence[Mapping[str, NDArray[np.generic]]]) -> int:
    """Samples in all batches."""
    return sum(len(next(iter(feeds.values()))) for feeds in batches)
