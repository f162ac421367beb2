"""What the TensorRT backends share: parser, optimization profile, builder. TensorRT 10, 11 and TensorRT-RTX alike.

The network is strongly typed: precision is in the ONNX graph. TensorRT 11 has nothing else, TensorRT 10 is told; for a
DLA it cannot be (:mod:`edgetl.backends._trt_dla`).
No timing cache is kept between builds, so that no engine depends on what was built before it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.errors import BundleError, MissingExtraError, ProviderError, StorageError, TargetError
from edgetl.runtime import products
from edgetl.runtime.cuda import Cuda
from edgetl.runtime.nvidia import Machine
from edgetl.runtime.runner import EngineNode
from edgetl.runtime.tensorrt import TITLES, Library, logger_of
from edgetl.specs import BatchRange
from edgetl.store import versions_of

ENGINE_NAME = "model.engine"
SOURCE_NAME = "model.onnx"
"""The graph that it is, or will be, built from."""
_PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "UINT8": "int8", "FP8": "fp8"}
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\]")
_MESSAGE_LENGTH = 300
_MESSAGES = 20
_SHORTEST = 2
"""Smallest size of a dynamic dimension besides the batch: a text has a token at its beginning and one at its end."""

Shape = tuple[int, ...]
"""-1 is a dynamic dimension."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes of one input that an engine accepts, and the one that it is tuned for."""

    min: Shape
    opt: Shape
    max: Shape

    def as_json(self) -> dict[str, list[int]]:
        """Plain values for ``engine.json``."""
        return {"min": list(self.min), "opt": list(self.opt), "max": list(self.max)}


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a builder made."""

    engine: bytes
    profiles: Mapping[str, Profile]
    warnings: tuple[str, ...]
    multiply_adds: Mapping[str, int]
    """Node of the ONNX graph → multiply-adds of one sample; empty where they depend on the sample."""


def installed_version(import_name: str, distributions: tuple[str, ...]) -> str | None:
    """The version of a library without importing it.

    Args:
        import_name: The module that must be there.
        distributions: Names under which its wheels or the system's package may be registered, likeliest first.

    Returns:
        The version, "unknown" where the module has no metadata, None where it is not installed.
    """
    if importlib.util.find_spec(import_name) is None:
        return None
    return next((version for version in versions_of(*distributions).values() if version), "unknown")


def profiles_for(inputs: Mapping[str, Shape], batch: BatchRange, longest: int | None = None) -> dict[str, Profile]:
    """The optimization profile: every dynamic leading dimension takes the batch range, others up to the longest.

    TensorRT chooses kernels for ``opt`` and only promises to run the rest of the range. ``opt`` is the smallest batch,
    because latency at batch 1 is what edge devices are used for first; larger batches run, tuned for the small one. Of
    other dynamic dimensions ``opt`` is the largest size: the slowest inputs are those that matter.

    Args:
        inputs: Input → shape.
        batch: Batch sizes that the engine must accept.
        longest: Largest size of other dynamic dimensions, as the tokens of a text; None: there must be none.

    Returns:
        Input → its profile; inputs of fixed shape have the same shape three times.

    Raises:
        TargetError: Another than the leading dimension is dynamic and has no largest size, or a fixed batch is not the
            range that was asked.
    """
    for name, shape in inputs.items():
        if -1 in shape[1:] and longest is None:
            raise TargetError(
                f"input '{name}' has the shape {list(shape)}: only the leading dimension may be dynamic (-1)",
                hint="export the model with a fixed image size",
            )
    leading = {name: shape[0] for name, shape in inputs.items() if shape}
    if -1 not in leading.values() and any((batch.min, batch.max) != (size, size) for size in leading.values()):
        fixed = ", ".join(f"'{name}' {size}" for name, size in leading.items())
        raise TargetError(
            f"an engine for batches of {batch.min} to {batch.max} was asked for; the graph has a fixed batch: {fixed}",
            hint="export with a dynamic batch, or set batch to the fixed size in [export]",
        )
    return {name: _profile(shape, batch, longest or 1) for name, shape in inputs.items()}


def _profile(shape: Shape, batch: BatchRange, longest: int) -> Profile:
    if -1 not in shape:
        return Profile(min=shape, opt=shape, max=shape)
    first = [(batch.min, batch.min, batch.max) if shape[0] == -1 else (shape[0],) * 3]
    rest = [(min(_SHORTEST, longest), longest, longest) if size == -1 else (size,) * 3 for size in shape[1:]]
    low, middle, high = zip(*first, *rest, strict=True)
    return Profile(min=low, opt=middle, max=high)


def parse(trt: ModuleType, model: bytes, *, strongly_typed: bool = True) -> tuple[Any, Any, Any, list[str]]:
    """Parse an ONNX graph into a network.

    Args:
        trt: The imported library.
        model: A serialized ONNX model without external data.
        strongly_typed: Whether types come from the graph alone; else, in TensorRT 10, the builder may choose them.

    Returns:
        Builder, network, parser (which the network needs alive) and the parser's errors; empty: accepted.

    Raises:
        ProviderError: The library cannot make a builder on this machine.
    """
    log = logger_of(trt)
    log.drain()
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # pybind11's answer to a null pointer
        reasons = "; ".join(message for _, message in log.drain()) or str(error)
        raise ProviderError(f"{_title(trt)} cannot build on this machine: {reasons}") from error
    flags = trt.NetworkDefinitionCreationFlag
    strong = getattr(flags, "STRONGLY_TYPED", None)  # deprecated in 11, where every network is
    network = builder.create_network(0 if strong is None or not strongly_typed else 1 << int(strong))
    parser = trt.OnnxParser(network, log)
    if parser.parse(model):
        return builder, network, parser, []
    errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    return builder, network, parser, errors or ["the parser refuses the model and gives no reason"]


def network_nodes(trt: ModuleType, network: Any) -> tuple[EngineNode, ...]:
    """What the parser made of a graph: layers before the builder fuses them, in the order of the network.

    A convolution or matrix product computes in int8 where both its factors come from dequantizers, at once or moved (a
    dequantizer commutes with that), as TensorRT's explicit quantization asks for; which products and pairs the builder
    then joins only the engine itself can tell.
    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html

    Args:
        trt: The imported library.
        network: From :func:`parse`, with its parser alive.

    Returns:
        The layers without constants, and without those that only constants are fed to (dequantized weights). Dynamic
        dimensions count as 1.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    ends = {network.get_input(index).name for index in range(network.num_inputs)}
    dequantized: set[str] = set()
    nodes: list[EngineNode] = []
    for layer in layers:
        inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
        reads = [tensor for tensor in inputs if tensor is not None]
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        # The parser gives the weights of a matrix product the rank of its input, behind their dequantizer.
        moves = layer.type == trt.LayerType.SHUFFLE and bool(reads) and reads[0].name in dequantized
        if layer.type == trt.LayerType.DEQUANTIZE or moves:
            dequantized.update(tensor.name for tensor in outputs)
        if ends.isdisjoint(tensor.name for tensor in reads):
            continue
        ends.update(tensor.name for tensor in outputs)
        eight_bits = [tensor.name in dequantized for tensor in reads[:2]] == [True, True]
        multiply_adds = _layer_multiply_adds(trt, layer, reads, outputs)
        kinds = [tensor.dtype.name for tensor in (reads[0], outputs[0])]
        precision, written = (_PRECISIONS.get(kind, kind.lower()) for kind in kinds)
        nodes.append(
            EngineNode(
                name=layer.name,
                kind=layer.type.name,
                precision="int8" if multiply_adds and eight_bits else precision,
                multiply_adds=multiply_adds,
                provider="parser",
                inputs=tuple(tensor.name for tensor in reads if tensor.name in ends),
                outputs=tuple(tensor.name for tensor in outputs),
                output_precision=written,
                origins=tuple(_ONNX_LAYER.findall(layer.metadata)),
            )
        )
    return tuple(nodes)


def _layer_multiply_adds(trt: ModuleType, layer: Any, inputs: list[Any], outputs: list[Any]) -> int:
    """Of a layer of a network, whose weights are its second input or, without a shape of their own, its constants."""
    shapes = [[abs(size) for size in tensor.shape] for tensor in inputs]  # -1, a dynamic dimension, counts as 1
    output = [abs(size) for size in outputs[0].shape]
    if layer.type == trt.LayerType.MATRIX_MULTIPLY:
        return products.matrix_product(shapes[0], output)
    if layer.type not in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION):
        return 0
    if len(shapes) > 1:
        weights = shapes[1]
    else:
        layer.__class__ = trt.IConvolutionLayer if layer.type == trt.LayerType.CONVOLUTION else trt.IDeconvolutionLayer
        channels = (layer.num_output_maps, shapes[0][1] // layer.num_groups)
        if layer.type == trt.LayerType.DECONVOLUTION:
            channels = (shapes[0][1], layer.num_output_maps // layer.num_groups)
        weights = [*channels, *layer.kernel_size_nd]
    if layer.type == trt.LayerType.CONVOLUTION:
        return products.convolution(output, weights)
    return products.transposed_convolution(shapes[0], weights)


def _parser_error(error: Any) -> str:
    text = _short(error.desc())
    if error.node() < 0:
        return text
    return f"node '{error.node_name()}' ({error.node_operator()}, number {error.node()}): {text}"


def build(
    trt: ModuleType,
    request: CompileRequest,
    *,
    workspace_mib: int | None,
    model: bytes | None = None,
    strongly_typed: bool = True,
    prepare: Callable[[Any, Mapping[str, Profile]], None] = lambda _network, _profiles: None,
    configure: Callable[[Any, Any], None] = lambda _builder, _config: None,
) -> Built:
    """Build an engine from a request's ONNX graph.

    Args:
        trt: The imported library.
        request: Model, batch range, and the target's name for messages.
        workspace_mib: Limit of the scratch memory of a layer, in MiB; None: the library's, all of the device's.
        model: What to parse instead of the request's graph.
        strongly_typed: As of :func:`parse`.
        prepare: Told the network and the profiles of its inputs.
        configure: Told the builder and its configuration before the build.

    Returns:
        The serialized engine, its profiles, and warnings, shortened.

    Raises:
        TargetError: The parser or the builder refuses the graph; every parser error is named.
        ProviderError: The library cannot make a builder on this machine.
    """
    content = request.model.read_bytes() if model is None else model
    builder, network, parser, errors = parse(trt, content, strongly_typed=strongly_typed)
    if errors:
        raise refusal(trt, request, errors)
    config = builder.create_builder_config()
    # Layers then tell their types in Placement; it changes no kernel.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    wanted = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    profiles = profiles_for(wanted, request.batch, request.longest)
    prepare(network, profiles)
    profile = builder.create_optimization_profile()
    for name, shapes in profiles.items():
        profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(profile) < 0:
        raise refusal(trt, request, [f"the optimization profile {profiles} is not accepted"])
    configure(builder, config)
    counts = _of_one_sample(trt, network, wanted)
    serialized = builder.build_serialized_network(network, config)
    del parser  # held until here: the network refers to weights that the parser owns
    messages = logger_of(trt).drain()
    if serialized is None:
        errors = [_short(text) for severity, text in messages if severity != "WARNING"]
        raise refusal(trt, request, errors or ["the builder gives no reason"])
    warnings = [_short(text) for severity, text in messages if severity == "WARNING"]
    return Built(
        engine=bytes(serialized), profiles=profiles, warnings=tuple(warnings[:_MESSAGES]), multiply_adds=counts
    )


def _of_one_sample(trt: ModuleType, network: Any, inputs: Mapping[str, Shape]) -> dict[str, int]:
    """Multiply-adds by node of the ONNX graph, as the engine's layers will name them."""
    if any(-1 in shape[1:] for shape in inputs.values()):
        return {}
    fixed = max((shape[0] for shape in inputs.values() if shape), default=1)  # -1, a dynamic batch, counts as 1
    counts: Counter[str] = Counter()
    for node in network_nodes(trt, network):
        if node.multiply_adds:
            counts[next(iter(node.origins), node.name)] += node.multiply_adds // max(1, fixed)
    return dict(counts)


def refusal(trt: ModuleType, request: CompileRequest, errors: list[str]) -> TargetError:
    """The error for a graph that a library does not take, naming all reasons."""
    lines = "".join(f"\n  {error}" for error in errors[:_MESSAGES])
    more = f"\n  … and {len(errors) - _MESSAGES} more" if len(errors) > _MESSAGES else ""
    hint = None
    if any("int32" in error.lower() and "DequantizeLinear" in error for error in errors):
        hint = "TensorRT wants float biases: quantize for this target, whose scheme leaves them float"
    elif any("SM75" in error for error in errors):
        hint = "Turing runs float16 products only: build fp16, or take 7.5 out of the target's compute_capability"
    return TargetError(
        f"{_title(trt)} refuses the {request.precision} graph for '{request.target.name}':{lines}{more}",
        hint=hint,
    )


def _library(trt: ModuleType) -> Library:
    return "tensorrt_rtx" if trt.__name__.startswith("tensorrt_rtx") else "tensorrt"


def _title(trt: ModuleType) -> str:
    return f"{TITLES[_library(trt)]} {trt.__version__}"


def _short(text: str) -> str:
    # Without a driver the libraries add this line to every other message; it is not a reason.
    lines = [line for line in text.splitlines() if "catchCudaError" not in line] or [text]
    joined = " ".join(" ".join(lines).split())
    return joined if len(joined) <= _MESSAGE_LENGTH else joined[: _MESSAGE_LENGTH - 1] + "…"


def build_versions(trt: ModuleType, machine: Machine, extra: str) -> dict[str, str]:
    """What an engine's fate depends on.

    Returns:
        The library's and its parser's version, and with a GPU the CUDA that its driver supports and CUDA's runtime.
    """
    versions = {_library(trt): str(trt.__version__), "onnx_parser": str(trt.get_nv_onnx_parser_version())}
    if machine.gpus:
        versions["cuda_driver"] = machine.cuda_version
        try:
            versions["cuda_runtime"] = Cuda(machine.gpus[0].index, extra=extra).runtime_version()
        except MissingExtraError:  # building needs no cuda-python; running does, and says so
            versions["cuda_runtime"] = "unknown"
    return versions


def onnx_inputs(model: Path) -> dict[str, Shape]:
    """Shapes of a graph's inputs, where no TensorRT can be asked; refuses what is known not to build.

    Args:
        model: The ONNX file.

    Returns:
        Input → shape, -1 for a dynamic dimension.

    Raises:
        MissingExtraError: onnx is not installed.
        TargetError: Not an ONNX file, weights outside the file, or an int32 DequantizeLinear (a quantized bias), which
            TensorRT's parser refuses.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise MissingExtraError("onnx", extra="export", needed_for="recording a build for a device") from None
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        graph = onnx.load_model(model, load_external_data=False).graph
    except decode_error:
        raise TargetError(f"{model.name} is not an ONNX file") from None
    if not graph.node:
        raise TargetError(f"{model.name} holds no graph")
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    outside = [name for name, tensor in tensors.items() if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise TargetError(f"{model.name} keeps weights in another file ({outside[0]} …): it must be one file")
    for node in graph.node:
        weight = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None and weight.data_type == onnx.TensorProto.INT32:
            raise TargetError(
                f"node '{node.name}' (DequantizeLinear) dequantizes an int32 bias, which TensorRT's parser refuses",
                hint="TensorRT wants float biases: quantize for this target, whose scheme leaves them float",
            )
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim
        )
        for value in graph.input
        if value.name not in tensors
    }


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file of an engine's folder.

    Raises:
        StorageError: The folder cannot be written, or the disk is full.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def write_record(record: EngineRecord, folder: Path) -> EngineRecord:
    """Write ``engine.json`` and hand the record on.

    Raises:
        StorageError: The folder cannot be written, or the disk is full.
    """
    try:
        record.write(folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder / 'engine.json'}: {error.strerror or error}") from error
    return record


def engine_to_open(folder: Path, backend: str) -> tuple[Path, EngineRecord]:
    """Read ``engine.json`` of a folder, as far as opening needs it.

    Args:
        folder: With ``engine.json``.
        backend: The backend that is asked to open it.

    Returns:
        The engine's file, and the record.

    Raises:
        BundleError: There is no readable record, or another backend's, or the engine's file is missing.
        ProviderError: The engine was never built: only its sources are here.
    """
    record = EngineRecord.read(folder)
    if record.backend != backend:
        raise BundleError(f"{folder} holds an engine of the backend '{record.backend}', not '{backend}'")
    if record.status == "build-on-device":
        raise ProviderError(f"the engine in {folder} has not been built: only its ONNX graph is here", hint=record.note)
    engine = folder / next(iter(record.files), ENGINE_NAME)
    if not engine.is_file():
        raise BundleError(f"{folder} has a record, but the engine {engine.name} is not in it")
    return engine, record
