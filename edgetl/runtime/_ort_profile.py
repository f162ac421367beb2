"""Nodes of ONNX Runtime's optimised graph, out of the profile that a session writes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetl.runtime import products
from edgetl.runtime.runner import EngineNode

Event = dict[str, Any]
"""Of a node's kernel, as the profile has it."""

_KERNEL_TIME = "_kernel_time"
_END_OF_RUN = "model_run"
"""The event that follows those of an inference's nodes."""

_PRECISIONS = {
    "float": "fp32",
    "double": "fp64",
    "float16": "fp16",
    "bfloat16": "bf16",
    "uint8": "int8",
    "int8": "int8",
}

_INTEGER_KINDS = re.compile(r"QLinear|QGemm|QAttention|DynamicQuantize(MatMul|LSTM)|MatMulInteger|ConvInteger")
"""Operators that compute in 8-bit integers although some, or all, of their inputs are float."""

_ADDED_SUFFIX = re.compile(r"(_token_\d+|_nchwc)+$")
"""What the passes that change the layout of tensors append to a node's name."""
_BLOCKED = "_nchwc"
"""That of the pass that pads channels to the width of the processor's registers, on x86-64."""
_REGISTERS = (8, 16)
"""Channels of float32 that one of them holds: AVX2, AVX-512."""

_SECOND_FACTOR = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
"""Operator → which input the weights are, where scale and zero point of the first come between; else the second."""


def inferences(profile: Path) -> list[list[Event]]:
    """The events of nodes' kernels in their order, of each inference; those of none behind the last."""
    found: list[list[Event]] = [[]]
    for event in json.loads(profile.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL_TIME):
            found[-1].append(event)
        elif event.get("name") == _END_OF_RUN:
            found.append([])
    return found


def is_blocked(event: Event) -> bool:
    """Whether a node's channels may be padded to the width of registers."""
    return bool(_name(event).endswith(_BLOCKED))


def unpadded(events: list[Event], others: list[Event]) -> tuple[EngineNode, ...]:
    """Nodes with the multiply-adds of the model's channels, where the engine's shapes have them padded.

    A product is found by its shapes. What is not is a scaling that the pass made a convolution of, which counts as
    nothing. Where one of the other session is not found here, the counts stay as they are.

    Args:
        events: Of an inference.
        others: Of one in a session without the pass that pads.
    """
    nodes = tuple(node(event) for event in events)
    left = [(_shapes(event), count) for event in others if (count := node(event).multiply_adds)]
    found = []
    for each, event in zip(nodes, events, strict=True):
        place = None
        if each.multiply_adds:
            mine = _shapes(event)
            place = next((at for at, (shapes, _) in enumerate(left) if _is_padded(mine, shapes)), None)
        found.append(replace(each, multiply_adds=0 if place is None else left.pop(place)[1]))
    return nodes if left else tuple(found)


def _name(event: Event) -> str:
    return str(event["name"])[: -len(_KERNEL_TIME)]


def node(event: Event) -> EngineNode:
    """A node from the event of its execution."""
    facts = event["args"]
    kind = facts.get("op_name", "unknown")
    inputs, outputs = _tensors(facts.get("input_type_shape", [])), _tensors(facts.get("output_type_shape", []))
    types = [name for name, _ in inputs] or [name for name, _ in outputs] or ["unknown"]
    name = _name(event)
    return EngineNode(
        name=name,
        kind=kind,
        precision="int8" if _INTEGER_KINDS.match(kind) else _PRECISIONS.get(types[0], types[0]),
        multiply_adds=_multiply_adds(kind, [shape for _, shape in inputs], [shape for _, shape in outputs]),
        provider=facts.get("provider", "unknown"),
        output_precision=_PRECISIONS.get(outputs[0][0], outputs[0][0]) if outputs else "",
        origins=(_ADDED_SUFFIX.sub("", name),),
        **products.traffic(
            kind,
            constants=int(facts.get("parameter_size", 0)),
            read=int(facts.get("activation_size", 0)),
            written=int(facts.get("output_size", 0)),
        ),
    )


def _tensors(found: list[dict[str, list[int]]]) -> list[tuple[str, list[int]]]:
    """Type and shape of each tensor in the profile's ``input_type_shape``; an absent optional one is left out there."""
    return [next(iter(tensor.items())) for tensor in found if tensor]


def _shapes(event: Event) -> tuple[list[int], ...]:
    """Of the weights and the result of a product."""
    facts = event["args"]
    inputs, outputs = (_tensors(facts.get(f"{name}_type_shape", [])) for name in ("input", "output"))
    place = _SECOND_FACTOR.get(facts.get("op_name", ""), 1)
    return tuple(shape for _, shape in (*inputs[place : place + 1], *outputs[:1]))


def _is_padded(larger: tuple[list[int], ...], shapes: tuple[list[int], ...]) -> bool:
    """Whether shapes are others with their channels, the first two dimensions, filled up to whole registers."""
    if [len(shape) for shape in larger] != [len(shape) for shape in shapes]:
        return False
    return all(
        most == size or (axis < 2 and any(most == -(-size // width) * width for width in _REGISTERS))
        for filled, shape in zip(larger, shapes, strict=True)
        for axis, (most, size) in enumerate(zip(filled, shape, strict=True))
    )


def _multiply_adds(kind: str, inputs: list[list[int]], outputs: list[list[int]]) -> int:
    """Of ONNX Runtime's operators; those of Einsum are not known, because a profile has no attributes."""
    place = _SECOND_FACTOR.get(kind, 1)
    if len(inputs) <= place or not outputs:
        return 0
    first, second, output = inputs[0], inputs[place], outputs[0]
    if kind.endswith(("Conv", "ConvInteger")):
        return products.convolution(output, second)
    if kind.endswith("ConvTranspose"):
        return products.transposed_convolution(first, second)
    if kind == "MatMulNBits":
        return products.matrix_product(first[-1:], output)  # its packed weights tell no shape
    if kind.endswith("Gemm") or "MatMul" in kind:
        return products.matrix_product(first, output)
    if kind in ("RNN", "GRU", "LSTM", "DynamicQuantizeLSTM") and len(inputs) > 2:
        return products.recurrent(first, second, inputs[2])
    if kind.endswith("Attention"):
        if len(second) == 2:
            return products.packed_attention(first, second)
        return products.attention(first, second, inputs[2]) if len(inputs) > 2 else 0
    return 0
