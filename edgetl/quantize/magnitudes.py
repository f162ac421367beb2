"""How far activations reach on the calibration samples: what decides whether float16 holds them.

Sketches are taken where quantizers may stand. Between these there are values as well: what a convolution puts out ahead
of its activation function, the scores ahead of a Softmax, the logits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetl.errors import DataError
from edgetl.quantize import graph as graphs
from edgetl.quantize.calibrate import steps
from edgetl.quantize.tools import Tools

if TYPE_CHECKING:
    import onnx_ir as ir

_LEAST, _MOST = "edgetl_least", "edgetl_most"


def magnitudes(model: ir.Model, tools: Tools) -> dict[str, float]:
    """The largest magnitude of every activation of float32, inputs among them; NaN where one is NaN.

    The graph puts out nothing but the ends of the ranges: no activation leaves the engine.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
        tools: Give the samples.

    Raises:
        DataError: There is no calibration sample.
    """
    copy = model.clone()
    names = _probed(copy)
    seen = 0
    ends = np.zeros((2, len(names)))
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        path = Path(folder) / "magnitudes.onnx"
        _save(copy, path)
        with tools.open_runner(path) as runner:
            for feeds, count in steps(model, tools.samples(), graphs.fixed_batch(model) or 1):
                found = runner.run(feeds)
                ends = np.maximum(ends, np.abs(np.stack([found[_LEAST], found[_MOST]]).astype(np.float64)))
                seen += count
                if tools.progress:
                    tools.progress("samples for the reach of activations", seen, 0)
    if not seen:
        raise DataError("there is no calibration sample", hint="give at least one; some hundred are usual")
    return dict(zip(names, ends.max(axis=0).tolist(), strict=True))


def _probed(model: ir.Model) -> list[str]:
    """Let a model, which is changed, put out the ends of every activation's range instead of its outputs."""
    import onnx_ir as ir

    graph = model.graph
    flat = graphs.add_initializer(graph, "edgetl_flat", np.asarray([1], dtype=np.int64))
    values = [*graph.inputs, *(output for node in graph for output in node.outputs if output.name)]
    floats = [value for value in values if value.dtype == ir.DataType.FLOAT]
    graph.outputs.clear()
    for operator, name in (("ReduceMin", _LEAST), ("ReduceMax", _MOST)):
        ends = []
        for number, value in enumerate(floats):
            reduce = ir.node(operator, [value], {"keepdims": 0}, name=f"{name}_{number}")
            reduce.outputs[0].name, reduce.outputs[0].dtype = f"{name}_{number}_of", ir.DataType.FLOAT
            reshape = ir.node("Reshape", [reduce.outputs[0], flat], name=f"{name}_{number}_flat")
            reshape.outputs[0].name, reshape.outputs[0].dtype = f"{name}_{number}_flat_of", ir.DataType.FLOAT
            graph.extend([reduce, reshape])
            ends.append(reshape.outputs[0])
        joined = ir.node("Concat", ends, {"axis": 0}, name=f"{name}_all")
        joined.outputs[0].name, joined.outputs[0].dtype = name, ir.DataType.FLOAT
        graph.append(joined)
        graph.outputs.append(joined.outputs[0])
    return [str(value.name) for value in floats]


def _save(model: ir.Model, path: Path) -> None:
    import onnx_ir as ir

    model.graph.sort()
    ir.save(model, path)
