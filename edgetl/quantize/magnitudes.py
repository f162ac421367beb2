"""How far activations reach on the calibration samples: what decides whether float16 holds them.

Sketches are taken where quantizers may stand. Between these there are values as well: what a convolution puts out ahead
of its activation function, the scores ahead of a Softmax, the logits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, ModelError
from edgetl.quantize import graph as graphs
from edgetl.quantize.activations import steps
from edgetl.quantize.tools import Tools

if TYPE_CHECKING:
    import onnx_ir as ir

_REDUCED = ("ReduceMin", "ReduceMax", "ReduceSumSquare")
"""The ends of a range; and what is NaN where any value is, and only there: ReduceMax may pass over one."""


def magnitudes(model: ir.Model, tools: Tools) -> dict[str, float]:
    """The largest magnitude of every activation of float32, inputs among them; NaN where one is NaN, 0 without values.

    The graph puts out nothing but the ends of the ranges, and each is taken as soon as its activation is there: no
    activation leaves the engine, and none stays in it for this.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
        tools: Give the samples.

    Raises:
        DataError: There is no calibration sample, or one makes an output NaN, or has NaN or infinity in it: both are
            named. Minus infinity is what some masks are made of.
        ModelError: The graph has no activation of float32.
    """
    import onnx_ir as ir

    copy = model.clone()
    names = _probed(copy)
    if not names:
        raise ModelError(
            "nothing in this graph is float32: there is nothing to put into float16",
            hint="give the float32 graph that it was made from; edgetl inspect MODEL tells what a graph is made of",
        )
    inputs = {str(value.name) for value in model.graph.inputs}
    ends = inputs | {str(value.name) for value in model.graph.outputs}
    seen = 0
    reached = np.zeros(len(names))
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        path = Path(folder) / "magnitudes.onnx"
        ir.save(copy, path)
        with tools.open_runner(path) as runner:
            for feeds, count in steps(model, tools.samples(), graphs.fixed_batch(model) or 1):
                (found,) = runner.run(feeds).values()
                reach, infinite = _reach(found)
                endless = [name for name, there in zip(names, infinite, strict=True) if there and name in inputs]
                if endless:  # first: what is computed of it may well be NaN
                    raise _broken(f"has an infinite number in '{endless[0]}'", tools, seen, count)
                broken = [name for name, size in zip(names, reach, strict=True) if np.isnan(size)]
                if not ends.isdisjoint(broken):
                    raise _broken(f"makes the activation '{broken[0]}' NaN", tools, seen, count)
                reached = np.maximum(reached, reach)
                seen += count
                if tools.progress:
                    tools.progress("samples for the reach of activations", seen, 0)
    if not seen:
        raise DataError("there is no calibration sample", hint="give at least one; some hundred are usual")
    return dict(zip(names, reached.tolist(), strict=True))


def _reach(found: NDArray[np.generic]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Magnitudes from the ends of ranges and sums of squares, and whether the upper end is infinite.

    The least of no values is more than the most.
    """
    low, high, power = found.astype(np.float64).reshape(-1, len(_REDUCED)).T
    reach = np.where(low > high, 0.0, np.maximum(np.abs(low), np.abs(high)))
    return np.where(np.isnan(power), np.nan, reach), (low <= high) & np.isposinf(high)


def _broken(how: str, tools: Tools, first: int, count: int) -> DataError:
    sample = tools.describe(first)
    which = f"calibration sample {sample}" if count == 1 else f"one of {count} calibration samples from {sample} on"
    return DataError(
        f"{which} {how}", hint="look at that sample, and at the model's weights: one of them holds NaN or an overflow"
    )


def _probed(model: ir.Model) -> list[str]:
    """Let a model, which is changed, put out what is reduced of every float activation instead of its outputs.

    ONNX Runtime orders nodes depth first from the last node on, and follows the input that stands last in the file
    first. So the probes of what is computed first come last, and all go into one node: else it computes the whole graph
    before it reduces the first activation, and all of them are alive.
    """
    import onnx_ir as ir

    graph = model.graph
    graph.sort()
    values = [*graph.inputs, *(output for node in graph for output in node.outputs if output.name)]
    tensors = [value for value in values if isinstance(value.type, ir.TensorType)]
    floats = [value for value in tensors if value.dtype == ir.DataType.FLOAT]
    if not floats:
        return []
    mark = graphs.free_mark(graph)
    flat = graphs.add_initializer(graph, f"{mark}flat", np.asarray([1], dtype=np.int64))
    graph.outputs.clear()
    rows: list[list[ir.Value]] = []
    for number, value in reversed(list(enumerate(floats))):
        row = []
        for operator in _REDUCED:
            name = f"{number}{mark}{operator}"
            reduce = ir.node(operator, [value], {"keepdims": 0}, name=name)
            reduce.outputs[0].name, reduce.outputs[0].dtype = f"{name}_of", ir.DataType.FLOAT
            reshape = ir.node("Reshape", [reduce.outputs[0], flat], name=f"{name}{mark}flat")
            reshape.outputs[0].name, reshape.outputs[0].dtype = f"{name}{mark}flat_of", ir.DataType.FLOAT
            graph.extend([reduce, reshape])
            row.append(reshape.outputs[0])
        rows.append(row)
    joined = ir.node("Concat", [each for row in reversed(rows) for each in row], {"axis": 0}, name=f"{mark}all")
    joined.outputs[0].name, joined.outputs[0].dtype = f"{mark}reached", ir.DataType.FLOAT
    graph.append(joined)
    graph.outputs.append(joined.outputs[0])
    return [str(value.name) for value in floats]
