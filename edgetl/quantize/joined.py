"""A float graph and what was made of it in one graph, with probes between them that put out nothing but powers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize import emulation
from edgetl.quantize import graph as graphs
from edgetl.quantize.decibels import decibel
from edgetl.quantize.dynamic import Product
from edgetl.runtime.runner import Runner

if TYPE_CHECKING:
    import onnx_ir as ir


class Joined:
    """The float graph, the quantized graph and every layer by itself, in one, with probes between them."""

    def __init__(self, original: ir.Model, quantized: ir.Model) -> None:
        self._model = original.clone()
        self._graph = self._model.graph
        self._mark = graphs.free_mark(self._graph)
        self._suffix = f"{self._mark}quantized"
        self._probes: list[_Probe] = []
        self._rounded: dict[ir.Value, ir.Value] = {}
        self._float = {str(value.name): value for node in self._graph for value in node.outputs}
        self._float.update((str(value.name), value) for value in self._graph.inputs)
        self._float_nodes = {node.name: node for node in self._graph}
        self._places = {node: place for place, node in enumerate(self._graph)}
        other = quantized.clone()
        self._other_nodes = {str(node.name): node for node in other.graph}
        self._other_values = {str(value.name): value for node in other.graph for value in node.outputs}
        self._take(other)
        # One for all probes: looking for a free name goes through the whole graph.
        self._flat = graphs.add_initializer(self._graph, f"{self._mark}flat", np.asarray([1], dtype=np.int64))
        self._graph.outputs.clear()

    def measure(
        self, batches: Sequence[Mapping[str, NDArray[np.generic]]], open_runner: Callable[[Path], Runner]
    ) -> dict[tuple[str, str], float]:
        """SQNR in dB of each probe, by its kind and name."""
        with (
            tempfile.TemporaryDirectory(prefix="edgetl-") as folder,
            open_runner(self._save(Path(folder) / "compared.onnx")) as runner,
        ):
            powers = np.sum([_powers(runner, dict(feeds)) for feeds in batches], axis=0)
        return {(probe.kind, probe.name): decibel(*both) for probe, both in zip(self._probes, powers, strict=True)}

    def _save(self, path: Path) -> Path:
        """With the probes of what is computed first at the end: so ONNX Runtime takes them as soon as it can.

        See :func:`edgetl.quantize.magnitudes.magnitudes`: else all activations of all graphs are alive together.
        """
        import onnx_ir as ir

        for probe in sorted(self._probes, key=lambda each: each.place, reverse=True):
            self._graph.extend(probe.nodes)
        powers = [value for probe in self._probes for value in probe.powers]
        node = ir.node("Concat", powers, {"axis": 0}, name=f"{self._mark}all")
        node.outputs[0].name, node.outputs[0].dtype = f"{self._mark}powers", ir.DataType.FLOAT
        self._graph.append(node)
        self._graph.outputs.append(node.outputs[0])
        self._graph.sort()
        ir.save(self._model, path)
        return path

    def _take(self, other: ir.Model) -> None:
        """Move the nodes of another graph of the same inputs into this one."""
        nodes = list(other.graph)
        other.graph.outputs.clear()  # first: a constant that is put out belongs to the graph as long as it is
        for mine, its in zip(self._graph.inputs, other.graph.inputs, strict=True):
            for node, index in list(its.uses()):
                node.replace_input_with(index, mine)
        initializers = list(other.graph.initializers.values())
        other.graph.initializers.clear()
        other.graph.remove(nodes)
        for value in initializers:
            value.name = f"{value.name}{self._suffix}"
            self._graph.register_initializer(value)
        for node in nodes:
            node.name = f"{node.name}{self._suffix}"
            for value in node.outputs:
                value.name = f"{value.name}{self._suffix}"
        self._graph.extend(nodes)

    def probe_layer(self, name: str) -> None:
        """A layer between Q/DQ pairs: in the quantized graph, and alone behind a pair of its own."""
        import onnx_ir as ir

        mine, its = self._float_nodes[name], self._other_nodes[name]
        self._probe("layer", name, mine.outputs[0], its.outputs[0])
        alone = its.inputs[0]
        dequantize = alone.producer() if alone is not None else None
        source = mine.inputs[0]
        assert dequantize is not None and source is not None  # every quantized layer reads a pair
        quantize_inputs = [source, *dequantize.inputs[1:]]
        pair = ir.node("QuantizeLinear", quantize_inputs, name=f"{name}{self._mark}q")
        back = ir.node("DequantizeLinear", [pair.outputs[0], *dequantize.inputs[1:]], name=f"{name}{self._mark}dq")
        inputs = [back.outputs[0], *its.inputs[1:]]
        copy = ir.Node(its.domain, its.op_type, inputs, its.attributes.values(), name=f"{name}{self._mark}isolated")
        for node, suffix in ((pair, "q"), (back, "dq"), (copy, "isolated")):
            node.outputs[0].name = f"{name}{self._mark}{suffix}_output"
        self._graph.extend([pair, back, copy])
        self._probe("isolated", name, mine.outputs[0], copy.outputs[0])

    def probe_product(self, product: Product) -> None:
        """A dynamically quantized product: in the quantized graph, and alone on what the float graph feeds it."""
        mine, its = self._float[product.output], self._other_values[product.result]
        self._probe("layer", product.node, mine, its)
        self._probe("isolated", product.node, mine, self._alone(its, product.node, {}))

    def _alone(self, value: ir.Value, layer: str, copies: dict[ir.Node, ir.Node]) -> ir.Value:
        """A value of the quantized graph computed once more, from the nearest values that the float graph has too."""
        import onnx_ir as ir

        node = value.producer()
        assert node is not None  # of the layer: inputs of the graph are the float graph's
        if node not in copies:
            inputs: list[ir.Value | None] = []
            for each in node.inputs:
                if each is not None and each.producer() is not None:
                    same = self._float.get(str(each.name).removesuffix(self._suffix))
                    inputs.append(same if same is not None else self._alone(each, layer, copies))
                else:  # a constant, or an input of the graph, which is the float graph's
                    inputs.append(each)
            copy = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                node.attributes.values(),
                num_outputs=len(node.outputs),
                name=f"{layer}{self._mark}{node.name}",
            )
            for mine, its in zip(copy.outputs, node.outputs, strict=True):
                mine.name = f"{layer}{self._mark}{its.name}"
            self._graph.append(copy)
            copies[node] = copy
        return copies[node].outputs[list(node.outputs).index(value)]

    def probe_rounded(self, name: str, halves: Sequence[bool]) -> None:
        """A node that computes in float16: in the graph, and alone on what the float graph feeds it, rounded.

        Args:
            name: Of the node.
            halves: Which of its inputs it reads in float16; not the sizes of a Resize, or the condition of a Where.
        """
        import onnx_ir as ir

        mine, its = self._float_nodes[name], self._other_nodes[name]
        self._probe("layer", name, mine.outputs[0], self._round(its.outputs[0]))
        inputs = []
        for source, same, half in zip(mine.inputs, its.inputs, halves, strict=True):
            if source is None or source.is_initializer():
                inputs.append(same)  # a constant is rounded there
            else:
                inputs.append(self._round(source) if half else source)
        copy = ir.Node(
            mine.domain,
            mine.op_type,
            inputs,
            mine.attributes.values(),
            num_outputs=len(mine.outputs),
            name=f"{name}{self._mark}isolated",
        )
        for number, (value, like) in enumerate(zip(copy.outputs, mine.outputs, strict=True)):
            value.name, value.type, value.shape = f"{name}{self._mark}isolated_{number}", like.type, like.shape
        self._graph.append(copy)
        self._probe("isolated", name, mine.outputs[0], self._round(copy.outputs[0]))

    def _round(self, value: ir.Value) -> ir.Value:
        """As float16 holds it, in float32; once for each value."""
        if value not in self._rounded:
            self._rounded[value] = emulation.rounded(self._graph, value, self._mark)
        return self._rounded[value]

    def probe_tensor(self, name: str) -> None:
        """An activation: as the float graph computes it, and behind its pair."""
        dequantize = self._other_nodes.get(f"{name}_dequantize")
        if name in self._float and dequantize is not None:
            self._probe("tensor", name, self._float[name], dequantize.outputs[0])

    def _probe(self, kind: str, name: str, mine: ir.Value, its: ir.Value) -> None:
        import onnx_ir as ir

        number, producer = len(self._probes), mine.producer()
        difference = ir.node("Sub", [mine, its], name=f"{number}{self._mark}difference")
        difference.outputs[0].name = f"{number}{self._mark}difference_output"
        nodes, powers = [difference], []
        for value, what in ((mine, "signal"), (difference.outputs[0], "noise")):
            power = ir.node("ReduceSumSquare", [value], {"keepdims": 0}, name=f"{number}{self._mark}{what}")
            power.outputs[0].name = f"{number}{self._mark}{what}_power"
            flat = ir.node("Reshape", [power.outputs[0], self._flat], name=f"{number}{self._mark}{what}_flat")
            flat.outputs[0].name = f"{number}{self._mark}{what}_flat_output"
            nodes += [power, flat]
            powers.append(flat.outputs[0])
        place = -1 if producer is None else self._places[producer]
        self._probes.append(_Probe(kind=kind, name=name, place=place, nodes=tuple(nodes), powers=tuple(powers)))


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """A place where two graphs are compared."""

    kind: str
    name: str
    place: int
    """Of the node whose output it looks at, in the float graph."""
    nodes: tuple[ir.Node, ...]
    powers: tuple[ir.Value, ...]
    """Of the signal and of the noise, shape (1,)."""


def _powers(runner: Runner, feeds: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """Of the signal and of the noise at each probe, shape (probes, 2)."""
    (found,) = runner.run(feeds).values()
    return found.astype(np.float64).reshape(-1, 2)
