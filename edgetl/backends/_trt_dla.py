"""TensorRT on a deep-learning accelerator (DLA) of a Jetson module: what a builder is told, and what it is given.

A DLA computes in float16 and int8, in shapes that are fixed at the build. TensorRT 11 takes the types from the graph,
as on a GPU. TensorRT 10 cannot: what stands beside a QuantizeLinear runs on the GPU there, and int8 on a DLA is
quantized implicitly, from the range of every tensor in a graph of floats. So the pairs are taken out of the graph
again, and their scales go where TensorRT 10 wants them, as NVIDIA's translator does for trtexec:
https://github.com/NVIDIA/Deep-Learning-Accelerator-SW/tree/main/tools/qdq-translator
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends._trt_build import Built, Profile, build
from edgetl.backends.base import CompileRequest
from edgetl.errors import MissingExtraError, ProviderError, TargetError
from edgetl.specs import Precision, Target

_LEVELS = 127.0
"""A range of TensorRT's is symmetric: so many scales either way."""
_SAME_RANGE = frozenset({
    "Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity",
})  # fmt: skip
"""Operators whose input needs no other range than their output: between the two stands no pair, and TensorRT wants
ranges of both."""
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_NAMED = 4
"""Products that a warning names."""
_VERSIONS = "TensorRT 10 up to 10.7 (JetPack 6), and 11.4.1 on a Jetson AGX Orin with JetPack 7.2.2, have it"


def build_for_dla(trt: ModuleType, request: CompileRequest, *, workspace_mib: int | None) -> tuple[Built, list[str]]:
    """Build an engine for the accelerator of a request's target; as :func:`edgetl.backends._trt_build.build`.

    Args:
        trt: The imported library.
        request: Its target has ``dla_core``.
        workspace_mib: Limit of a layer's scratch memory on the GPU, in MiB.

    Returns:
        The engine, and the tensors of an int8 graph that have no range in TensorRT 10: what reads or writes them
        computes in float16. The engine's warnings name the products that were to run in int8 and do so.

    Raises:
        ProviderError: TensorRT sees no such accelerator.
        TargetError: It refuses the graph, or shapes are not fixed.
    """
    target, weak, without, warnings = request.target, is_weakly_typed(trt), list[str](), list[str]()
    model, ranges, products = implicit(request.model) if weak else (request.model.read_bytes(), {}, ())

    def prepare(network: Any, profiles: Mapping[str, Profile]) -> None:
        check_shapes(target, profiles)
        if ranges:
            without.extend(set_ranges(trt, network, ranges))
            warnings.extend(missed(trt, network, without, products))

    built = build(
        trt,
        request,
        workspace_mib=workspace_mib,
        model=model,
        strongly_typed=not weak,
        prepare=prepare,
        configure=lambda builder, config: configure(trt, builder, config, target, request.precision),
    )
    return replace(built, warnings=(*warnings, *built.warnings)), without


def is_weakly_typed(trt: ModuleType) -> bool:
    """Whether precisions are flags of the builder there, and int8 is quantized implicitly: TensorRT 10."""
    return hasattr(trt.BuilderFlag, "INT8")


def check_shapes(target: Target, profiles: Mapping[str, Profile]) -> None:
    """Refuse shapes that are not fixed.

    Args:
        target: With ``dla_core``.
        profiles: Input → shapes.

    Raises:
        TargetError: One has a range.
    """
    for name, profile in profiles.items():
        if profile.min != profile.max:
            raise TargetError(
                f"'{target.name}' is a DLA, which has no dynamic shapes; input '{name}' is {list(profile.min)} to"
                f" {list(profile.max)}",
                hint="write batch = { min = 1, max = 1 } under [export]; texts have no fixed length",
            )


def configure(trt: ModuleType, builder: Any, config: Any, target: Target, precision: Precision) -> None:
    """Tell a builder to build for the target's accelerator.

    Args:
        trt: The imported library.
        builder: For the number of its accelerators.
        config: Is changed.
        target: With ``dla_core``.
        precision: Of the graph.

    Raises:
        ProviderError: TensorRT sees no such accelerator.
    """
    core = target.dla_core
    if core is None or core >= builder.num_DLA_cores:
        raise ProviderError(
            f"'{target.name}' asks for DLA core {core}, and TensorRT {trt.__version__} sees {builder.num_DLA_cores}"
            f" of them here; {_VERSIONS}",
            hint="leave dla_core out of the target's file: the GPU then runs everything",
        )
    set_device(trt, config, target, precision)


def set_device(trt: ModuleType, config: Any, target: Target, precision: Precision) -> None:
    """What :func:`configure` sets, without asking whether there is such an accelerator."""
    flags = trt.BuilderFlag
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = target.dla_core
    if target.dla_fallback:
        config.set_flag(flags.GPU_FALLBACK)
    if is_weakly_typed(trt):  # as trtexec does
        config.set_flag(flags.PREFER_PRECISION_CONSTRAINTS)
        config.set_flag(flags.FP16)
        if precision == "int8":
            config.set_flag(flags.INT8)


def set_ranges(trt: ModuleType, network: Any, ranges: Mapping[str, float]) -> list[str]:
    """Give the tensors of a network their ranges; TensorRT 10.

    Args:
        trt: The imported library.
        network: Of the graph that :func:`implicit` made, not strongly typed.
        ranges: Tensor → largest magnitude.

    Returns:
        Tensors of floats that have none: what reads or writes them is no int8. Shapes and other integers want none, and
        what is computed of constants alone is a weight.
    """
    floats = (trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.BF16)
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    varying = {tensor.name for tensor in tensors}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type != trt.LayerType.SHAPE and varying & {tensor.name for tensor in _reads(layer)}:
            written = [layer.get_output(output) for output in range(layer.num_outputs)]
            varying.update(tensor.name for tensor in written)
            tensors += written
    without = []
    for tensor in tensors:
        if tensor.name in ranges:
            tensor.dynamic_range = (-ranges[tensor.name], ranges[tensor.name])
        elif tensor.dtype in floats and not tensor.is_shape_tensor:
            without.append(tensor.name)
    return without


def missed(trt: ModuleType, network: Any, without: Collection[str], products: Collection[str]) -> list[str]:
    """Which products fall from int8 to float16 for want of a range.

    Args:
        trt: The imported library.
        network: As given to :func:`set_ranges`.
        without: What that returned.
        products: From :func:`implicit`.

    Returns:
        A line that names them and their tensors; none where all have ranges.
    """
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    found = []
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        tensors = [*_reads(layer), *(layer.get_output(index) for index in range(layer.num_outputs))]
        names = [tensor.name for tensor in tensors if tensor.name in without]
        if layer.type in kinds and layer.name in products and names:
            found.append(f"{layer.name} ({', '.join(names)})")
    if not found:
        return []
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return [
        f"{len(found)} of {len(products)} products of the int8 graph compute in float16, as a tensor that they read or"
        f" write has no range: {', '.join(found[:_NAMED])}{more}"
    ]


def _reads(layer: Any) -> list[Any]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]


def implicit(model: Path) -> tuple[bytes, dict[str, float], tuple[str, ...]]:
    """A graph of floats, and the ranges that its tensors are quantized to.

    Args:
        model: ONNX file of the scheme tensorrt-dla, or of float16.

    Returns:
        The graph in float32, without quantizers and without casts to float16, its weights as their steps made them;
        tensor → largest magnitude, by the names in that graph; and its products that are to run in int8, by name. Both
        are empty for a graph without quantizers.

    Raises:
        MissingExtraError: onnx is not installed.
        TargetError: A quantizer of an activation has a scale per channel or no constant one, or a zero point.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ModuleNotFoundError:
        raise MissingExtraError("onnx", extra="export", needed_for="building for a DLA with TensorRT 10") from None
    found = onnx.load_model(model, load_external_data=False)
    types = _types(onnx.shape_inference.infer_shapes(found).graph)
    graph = found.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    instead: dict[str, str] = {}  # tensor → the one that stands for it
    scales: dict[str, float] = {}
    dequantized, products = set[str](), list[str]()
    kept: list[Any] = []
    for node in graph.node:
        source = node.input[0] if node.input else ""
        if node.op_type == "DequantizeLinear":
            dequantized.update(node.output)
        elif node.op_type in _PRODUCTS and dequantized.issuperset(node.input[:2]):
            products.append(node.name)
        node.input[:] = [instead.get(name, name) for name in node.input]
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            constants[node.output[0]] = _dequantized(node, constants)
        elif node.op_type == "QuantizeLinear":
            name = node.input[0]
            scales[name] = max(_scale(node, constants), scales.get(name, 0.0))
            instead[node.output[0]] = name
        elif node.op_type == "DequantizeLinear" or _between_floats(node, types.get(source)):
            instead[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    _name_outputs(kept, outputs, instead, scales)
    _spread(kept, scales)
    kept = _without_gemms(kept, constants, scales)
    used = {name for node in kept for name in node.input}
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(
        numpy_helper.from_array(_widened(value), name) for name, value in constants.items() if name in used
    )
    for node in kept:
        _widen_attributes(node)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    return found.SerializeToString(), {name: _LEVELS * scale for name, scale in scales.items()}, tuple(products)


def _scale(node: Any, constants: Mapping[str, NDArray[Any]]) -> float:
    """Of a quantizer of an activation."""
    scale, zero = constants.get(node.input[1]), constants.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or scale.size != 1 or (zero is not None and zero.any()):
        raise TargetError(
            f"node '{node.name}' (QuantizeLinear) has no constant scale for the whole tensor and a zero point of 0,"
            " which a DLA wants",
            hint='quantize for a target whose scheme is "tensorrt-dla"',
        )
    return float(scale.reshape(-1)[0])


def _dequantized(node: Any, constants: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    steps, scale = constants[node.input[0]], constants[node.input[1]].astype(np.float32)
    zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale)
    axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
    shape = [1] * steps.ndim
    if scale.ndim:
        shape[axis] = scale.size
    shifted = steps.astype(np.float32) - zero.astype(np.float32).reshape(shape if zero.ndim else ())
    return np.asarray(shifted * scale.reshape(shape if scale.ndim else ()), np.float32)


def _types(graph: Any) -> dict[str, int]:
    """Tensor → type of its elements, as far as it is known."""
    values = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)
    }
    return {**values, **{tensor.name: tensor.data_type for tensor in graph.initializer}}


def _between_floats(node: Any, source: int | None) -> bool:
    """Whether a node casts one type of float to another; any other cast to float16 is made one to float32."""
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    if node.op_type != "Cast":
        return False
    (to,) = (each for each in node.attribute if each.name == "to")
    if to.i in floats and source not in floats:
        to.i = TensorProto.FLOAT
    return to.i in floats and source in floats


def _name_outputs(kept: list[Any], outputs: set[str], instead: Mapping[str, str], scales: dict[str, float]) -> None:
    """What stood for an output of the graph takes its name."""
    for output in outputs & set(instead):
        name = instead[output]
        if name in scales:
            scales[output] = scales.pop(name)
        for node in kept:
            node.input[:] = [output if each == name else each for each in node.input]
            node.output[:] = [output if each == name else each for each in node.output]


def _spread(kept: list[Any], scales: dict[str, float]) -> None:
    """Ranges across operators that need none of their own, forwards and back."""
    pairs = [(node.input[0], node.output[0]) for node in kept if node.op_type in _SAME_RANGE]
    both = [*pairs, *((output, name) for name, output in reversed(pairs))]
    known = -1
    while known != len(scales):
        known = len(scales)
        for one, other in both:
            if one in scales:
                scales.setdefault(other, scales[one])


def _without_gemms(kept: list[Any], constants: dict[str, NDArray[Any]], scales: dict[str, float]) -> list[Any]:
    """The nodes with each Gemm that has a range as a product and a sum.

    The parser splits it in any case, and no one would know the range of the tensor between the two: that of the sum,
    and the largest bias, which may still be missing.
    """
    from onnx import helper

    found = []
    for node in kept:
        wanted = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        plain = wanted.get("alpha", 1.0) == wanted.get("beta", 1.0) == 1.0 and not wanted.get("transA", 0)
        given = len(node.input) == 3 and node.input[1] in constants and node.input[2] in constants
        if node.op_type != "Gemm" or not plain or not given or node.output[0] not in scales:
            found.append(node)
            continue
        weights, product = f"{node.output[0]}/weights", f"{node.output[0]}/product"
        constants[weights] = constants[node.input[1]].T if wanted.get("transB", 0) else constants[node.input[1]]
        scales[product] = scales[node.output[0]] + float(np.abs(constants[node.input[2]]).max()) / _LEVELS
        found += [
            helper.make_node("MatMul", [node.input[0], weights], [product], node.name),
            helper.make_node("Add", [product, node.input[2]], node.output, f"{node.name}/bias"),
        ]
    return found


def _widened(value: NDArray[Any]) -> NDArray[Any]:
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _widen_attributes(node: Any) -> None:
    from onnx import TensorProto, numpy_helper

    for attribute in node.attribute:
        if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
            attribute.t.CopyFrom(
                numpy_helper.from_array(_widened(numpy_helper.to_array(attribute.t)), attribute.t.name)
            )
