"""Outlier channels: the few channels of an activation that are far larger than all others are multiplied in float.

Dettmers et al. 2022, LLM.int8(): 8-bit matrix multiplication for transformers at scale, arXiv:2208.07339, section 3.
Encoders put values of five to a hundred times the size of all others into one or two channels behind Gelu, at one
token, and multiply them by weights that are large as well (Sun et al. 2024, Massive activations in large language
models, arXiv:2402.17762). A range that holds them has no steps left for the rest, one that does not loses what the
output is mostly made of, and weights that are large already cannot take their size over as SmoothQuant would have it.
LLM.int8() looks for the channels in each inference; here they are known from calibration, so that

    y = x W  becomes  y = x W' + Σ_j x_j W_j  over outlier channels j,  W' being W with its rows j zero:

the integer product stays whole, and what x_j is clipped to there is multiplied by zero. The price of a channel is a
product of a column and a row, in float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize import graph as graphs
from edgetl.quantize import products
from edgetl.quantize.equalization import set_constant
from edgetl.quantize.placement import Plan, bias_add, made_in_integers
from edgetl.quantize.smoothing import search
from edgetl.quantize.smoothing_groups import Group, groups

if TYPE_CHECKING:
    import onnx_ir as ir

MOST = 4
"""Channels of one activation that are taken out at most: each is a pass over the outputs of its readers."""
_GAP = 1.5
"""By what factor the smallest of them is larger than the largest that stays."""
_WORTH_A_CHANNEL = 0.25
"""Each channel has to leave this share of the noise at most: a bit of the product's precision."""


@dataclass(frozen=True, kw_only=True)
class Separated:
    """What became of one activation."""

    activation: str
    consumers: tuple[str, ...]
    """The products that read it."""
    channels: tuple[int, ...]
    """Multiplied in float; none: nothing was changed."""
    error_off: float
    """Noise-to-signal power of the consumers' outputs under int8 with all channels in integers, mean of consumers."""
    error: float
    """The same with what was chosen."""
    reason: str = ""
    """Why nothing was changed."""


def separate(
    model: ir.Model, rows: Mapping[str, NDArray[np.floating]], plan: Plan, *, smooth: bool
) -> tuple[Separated, ...]:
    """Take outlier channels out of integer products, where each of them takes three quarters of the noise away.

    Activations whose factors a normalisation takes are left to SmoothQuant, where that costs nothing. The float
    function stays what it was, up to float32 rounding.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; it is changed.
        rows: Activation → sample rows, shape (n, K), float, at least one; those without any are left alone.
        plan: Of the model: activations that some reader multiplies in float anyway, and those that the engine makes
            in integers, are left alone.
        smooth: Whether SmoothQuant comes after it: then noise is what that leaves.

    Returns:
        One result per activation that was looked at, in the graph's order.

    Raises:
        ModelError: Rows or weights hold NaN or Inf, or rows do not have K columns.
    """
    import onnx_ir.passes.common as passes

    results, taken_out = [], []
    for group in groups(model):
        value = group.consumers[0].inputs[0]
        assert value is not None  # groups() found it there
        in_integers = all(id(node) in plan.nodes for node in group.consumers)
        if group.norm is not None or group.activation not in rows or not in_integers or made_in_integers(value, plan):
            continue
        weights = [products.rows_of_weights(node) for node in group.consumers]
        sample = products.checked_rows(group.activation, rows[group.activation], len(weights[0]))
        errors = _errors(sample, weights, smooth)
        best = min(errors, key=lambda channels: errors[channels] / _WORTH_A_CHANNEL ** len(channels))
        if best:
            taken_out.append((group, best))
        results.append(
            Separated(
                activation=group.activation,
                consumers=tuple(node.name or "" for node in group.consumers),
                channels=best,
                error_off=errors[()],
                error=errors[best],
                reason="" if best else "no channel stands out so far that taking it out leaves a quarter of the noise",
            )
        )
    for group, channels in taken_out:  # at the end: the plan is of the graph as it was
        _take_out(model.graph, group, channels)
    passes.NameFixPass()(model)
    return tuple(results)


def _errors(
    rows: NDArray[np.float32], weights: Sequence[NDArray[np.float32]], smooth: bool
) -> dict[tuple[int, ...], float]:
    """The error with no channel in float, and with the largest ones down to each gap between their reaches."""
    reach = np.abs(rows).max(axis=0)
    order = np.argsort(-reach, kind="stable")
    counts = range(1, min(MOST, len(order) - 1) + 1)
    gaps = [count for count in counts if reach[order[count - 1]] > _GAP * reach[order[count]]]
    found = {}
    for count in (0, *gaps):
        channels = tuple(int(channel) for channel in order[:count])
        error = products.relative_noise(rows, weights, in_float=channels)
        if smooth and gaps:  # or there is nothing to compare
            error = search(rows, weights, enough=error, in_float=channels)[1]
        found[channels] = error
    return found


def _take_out(graph: ir.Graph, group: Group, channels: Sequence[int]) -> None:
    """Zero rows of the weights, and add the products of columns and rows to the outputs."""
    import onnx_ir as ir

    value = group.consumers[0].inputs[0]
    assert value is not None  # groups() found it there
    columns = []
    first = min(group.consumers, key=list(graph).index)
    for channel in channels:
        index = graphs.add_initializer(graph, f"{group.activation}_channel", np.asarray([channel], np.int64))
        node = ir.node("Gather", [value, index], {"axis": -1}, name=f"{group.activation}_column_{channel}")
        shape = ir.Shape([*value.shape[:-1], 1]) if value.shape is not None else None
        columns.append(graphs.name_output(node, node.name or "", like=value, shape=shape))
        graph.insert_before(first, node)
    for consumer in group.consumers:
        weights = graphs.array_of(consumer.inputs[1])
        assert weights is not None
        axis = products.input_axis(consumer)
        kept = np.moveaxis(weights, axis, 0).copy()
        outer = [kept[channel].copy() for channel in channels]
        kept[list(channels)] = 0.0
        set_constant(graph, consumer, 1, np.moveaxis(kept, 0, axis))
        _add(graph, consumer, columns, outer)


def _add(graph: ir.Graph, consumer: ir.Node, columns: Sequence[ir.Value], outer: Sequence[NDArray[np.float32]]) -> None:
    """Add products of columns and rows to what a node, or the Add of its bias, puts out."""
    import onnx_ir as ir

    last = bias_add(consumer, len(outer[0])) or consumer
    whole = last.outputs[0]
    name = whole.name or consumer.name or "product"
    readers, is_output = list(whole.uses()), whole.is_graph_output()
    total = whole
    for number, (column, row) in enumerate(zip(columns, outer, strict=True)):
        constant = graphs.add_initializer(graph, f"{name}_row", row.astype(np.float32))
        product = ir.node("Mul", [column, constant], name=f"{name}_outer_{number}")
        graphs.name_output(product, f"{name}_outer_{number}", like=whole)
        adding = ir.node("Add", [total, product.outputs[0]], name=f"{name}_with_{number}")
        graphs.name_output(adding, f"{name}_with_{number}", like=whole)
        graph.insert_after(last, [product, adding])
        total, last = adding.outputs[0], adding
    for node, index in readers:
        node.replace_input_with(index, total)
    if is_output:
        graph.outputs[list(graph.outputs).index(whole)] = total
    total.name, whole.name = whole.name, f"{name}_in_integers"  # whoever knows the name means all of it
