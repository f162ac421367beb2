"""The function that follows a layer, element by element: what of the layer's output anything further on notices.

Of a ReLU6 nothing does below 0 and above 6, of a Gelu next to nothing far below 0. An error there is none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize.graph import array_of
from edgetl.runtime.runner import Runner

if TYPE_CHECKING:
    import onnx_ir as ir

_ELEMENTWISE = frozenset(
    (
        *("Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
        *("LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "Pow", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign"),
        *("Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu"),
    )
)
_STEPS = 1 << 14
"""Of the table, over the range that is asked for: 64 for each step of 8 bits."""


@dataclass(frozen=True, eq=False)
class Following:
    """A function of one variable, as a table."""

    low: float
    """The first point."""
    step: float
    """Between two points, more than 0."""
    values: NDArray[np.float32]
    """At the points, shape (m,)."""
    slopes: NDArray[np.float32]
    """There, shape (m,)."""

    def places(self, x: NDArray[np.float32]) -> NDArray[np.int32]:
        """The nearest point of each element; beyond the table the first or the last."""
        places: NDArray[np.float32] = np.subtract(x, np.float32(self.low), dtype=np.float32)
        places *= np.float32(1.0 / self.step)
        np.rint(places, out=places)
        np.clip(places, 0, len(self.values) - 1, out=places)
        found: NDArray[np.int32] = places.astype(np.int32)
        return found


def end_of_function(value: ir.Value) -> ir.Value | None:
    """Where the function of one variable that follows a value ends; None where no such function follows.

    It is the last value that is a function of this one alone, element by element, with constants of one element, and
    behind which nothing reads what was there before: for x · sigmoid(x) the product, and not the sigmoid.
    """
    inside, end = [value], None
    nodes: set[ir.Node] = set()
    while True:
        open_ends = [node for before in inside for node in before.consumers() if node not in nodes]
        ready = [node for node in open_ends if _is_elementwise(node, inside)]
        if not ready:
            return end
        nodes.add(ready[0])
        inside.append(ready[0].outputs[0])
        before_it = inside[:-1]
        if any(other.is_graph_output() for other in before_it):
            return end
        if all(node in nodes for other in before_it for node in other.consumers()):
            end = inside[-1]


def tabulate(
    model: ir.Model, value: ir.Value, low: float, high: float, *, open_runner: Callable[[Path], Runner]
) -> Following | None:
    """The function behind a value of a float graph, on a range of its values.

    Args:
        model: The graph; not changed.
        value: In it.
        low: Least value that will be asked for.
        high: Largest.
        open_runner: Opens an ONNX file.

    Returns:
        None where no function follows, element by element, or one that is not finite there.
    """
    import onnx_ir as ir

    end = end_of_function(value)
    if end is None or not low < high:
        return None
    graph = ir.convenience.extract(model.graph, [str(value.name)], [str(end.name)])
    graph.inputs[0].shape, graph.outputs[0].shape = ir.Shape([None]), None
    points = np.linspace(low, high, _STEPS + 1).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        path = Path(folder) / "function.onnx"
        ir.save(ir.Model(graph, ir_version=model.ir_version), path)
        with open_runner(path) as runner:
            values = np.asarray(runner.run({str(value.name): points})[str(end.name)], dtype=np.float32).reshape(-1)
    step = (high - low) / _STEPS
    slopes = np.gradient(values.astype(np.float64), step).astype(np.float32)
    if not np.isfinite(slopes).all():
        return None
    return Following(low=low, step=step, values=values, slopes=slopes)


def _is_elementwise(node: ir.Node, values: list[ir.Value]) -> bool:
    """Whether a node of the values' own graph, no branch's, computes of them, and of constants of one element."""
    producer = values[0].producer()
    if node.domain or node.op_type not in _ELEMENTWISE or len(node.outputs) != 1:
        return False
    if producer is None or node.graph is not producer.graph:
        return False
    for operand in node.inputs:
        if operand is not None and operand not in values:
            constant = array_of(operand)
            if constant is None or constant.size != 1:
                return False
    return True
