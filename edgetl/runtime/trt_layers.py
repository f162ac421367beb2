"""What an engine of TensorRT tells of its layers, as its inspector writes it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import Any

from edgetl.runtime.runner import UNKNOWN, EngineNode

# Types as an engine's inspector writes them, in words that no layout has.
_PRECISIONS = {"Float": "fp32", "FP32": "fp32", "Half": "fp16", "FP16": "fp16", "BFloat16": "bf16"}
_TYPES = re.compile(r"BFloat16|BF16|FP8|FP16|FP32|Float|Half|Int8|UInt8|Int32|Int64|Bool")
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1, "uint8": 1, "int32": 4, "int64": 8, "bool": 1}
_OF_PRODUCTS = frozenset({"fp32", "fp16", "bf16", "fp8", "int8"})
"""Types of a first input that a product may compute in; token ids and masks are none."""
_MOVING = frozenset({"Reformat", "NoOp", "Constant", "Shuffle"})
"""Layers that may be named after a node whose product another layer computes."""
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\]")


def layer_kinds(text: str) -> dict[str, int]:
    """Count the layers of an engine by type and type of their first output.

    TensorRT 10 writes "Format/Datatype" of a tensor, TensorRT 11 "DataType"; an engine built without detailed
    verbosity has plain names instead of layers, of which nothing is known.

    Args:
        text: JSON of ``EngineInspector.get_engine_information``.

    Returns:
        As "Convolution Int8" → number of layers; empty where the engine does not tell.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return {}
    kinds: Counter[str] = Counter()
    for layer in layers:
        if isinstance(layer, dict) and "LayerType" in layer:
            output: dict[str, Any] = next(iter(layer.get("Outputs") or []), {})
            kind = output.get("DataType") or output.get("Datatype") or output.get("Format/Datatype") or ""
            kinds[f"{layer['LayerType']} {kind}".strip()] += 1
    return dict(kinds)


def layer_nodes(
    text: str,
    provider: str,
    *,
    dla: str | None = None,
    multiply_adds: Mapping[str, int] = MappingProxyType({}),
    batch: int = 1,
) -> tuple[EngineNode, ...]:
    """The layers of an engine that was built with detailed verbosity.

    An engine does not tell how much its layers compute, but which nodes of the ONNX graph each was made of; how much
    those do was noted when it was built. Where the engine does not name all of them, nothing is known. Where nothing
    was noted, multiply-adds are known of convolutions alone, from the number of their weights.

    What a layer computes in it does not tell either. A layer of one product computes it in the type of its first input;
    of several products, fused for a DLA or by Myelin, each may have a type of its own: those are
    :data:`~edgetl.runtime.runner.UNKNOWN`.

    Args:
        text: JSON of ``EngineInspector.get_engine_information``.
        provider: Of the engine.
        dla: What to call the accelerator whose layers an engine may have.
        multiply_adds: Node of the ONNX graph → multiply-adds of one sample.
        batch: Samples of an inference.

    Returns:
        In the engine's order; empty where it does not tell.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return ()
    nodes = [
        _layer_node(layer, dla if dla is not None and "DLA" in layer["LayerType"] else provider)
        for layer in layers
        if isinstance(layer, dict) and "LayerType" in layer
    ]
    if not multiply_adds:
        return tuple(replace(node, precision=_of_products(node, 1)) if node.multiply_adds else node for node in nodes)
    makers: dict[str, int] = {}  # node of the graph → the layer that computes it
    for number, node in sorted(enumerate(nodes), key=lambda item: (item[1].kind in _MOVING, item[0])):
        for origin in node.origins:
            makers.setdefault(origin, number)
    counts, products = [0] * len(nodes), [0] * len(nodes)
    if all(origin in makers for origin in multiply_adds):
        for origin, count in multiply_adds.items():
            counts[makers[origin]] += batch * count
            products[makers[origin]] += 1
    return tuple(
        replace(node, multiply_adds=count, precision=_of_products(node, number))
        for node, count, number in zip(nodes, counts, products, strict=True)
    )


def _of_products(node: EngineNode, products: int) -> str:
    """The precision of a layer that so many products were fused into."""
    return node.precision if not products or (products == 1 and node.precision in _OF_PRODUCTS) else UNKNOWN


def _layer_node(layer: dict[str, Any], provider: str) -> EngineNode:
    inputs, outputs = layer.get("Inputs") or [], layer.get("Outputs") or []
    weights, maps = layer.get("Weights") or {}, layer.get("OutMaps", 0)
    size = prod(abs(length) for length in outputs[0].get("Dimensions", [0])) if outputs else 0
    kept = [held for held in (weights, layer.get("Bias") or {}) if held.get("Count")]
    return EngineNode(
        name=str(layer.get("Name", "")),
        kind=str(layer["LayerType"]),
        precision=_layer_precision(inputs or outputs),
        multiply_adds=size * weights.get("Count", 0) // maps if maps else 0,
        provider=provider,
        inputs=tuple(str(tensor.get("Name", "")) for tensor in inputs),
        outputs=tuple(str(tensor.get("Name", "")) for tensor in outputs),
        output_precision=_layer_precision(outputs),
        origins=tuple(_ONNX_LAYER.findall(str(layer.get("Metadata", "")))),
        weight_bytes=sum(held["Count"] * _BYTES.get(_precision(str(held.get("Type", ""))), 0) for held in kept),
        activation_bytes=sum(_tensor_bytes(tensor) for tensor in (*inputs, *outputs)),
    )


def _tensor_bytes(tensor: dict[str, Any]) -> int:
    """Without what a layout fills up; a dynamic dimension counts as 1."""
    lengths = [abs(int(length)) for length in tensor.get("Dimensions", [0])]
    return prod(lengths) * _BYTES.get(_layer_precision([tensor]), 0)


def _layer_precision(tensors: list[dict[str, Any]]) -> str:
    """Of the first of some tensors: TensorRT 10 writes type and layout into one text, as "Int8 NC/32HW32"."""
    if not tensors:
        return UNKNOWN
    text = tensors[0].get("DataType") or tensors[0].get("Datatype") or tensors[0].get("Format/Datatype") or UNKNOWN
    return _precision(str(text))


def _precision(text: str) -> str:
    words = _TYPES.findall(text)
    return _PRECISIONS.get(words[0], words[0].lower()) if words else UNKNOWN
