"""ONNX files, with the weights that some keep in files beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.errors import ModelError, not_imported

if TYPE_CHECKING:
    import onnx_ir as ir


def read_onnx(path: Path) -> ir.Model:
    """Read an ONNX model, with its weights.

    Raises:
        MissingExtraError: onnx-ir is not installed.
        ModelError: It is not there, or not ONNX, or weights lie outside the model's own folder.
    """
    try:
        import onnx_ir as ir
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise not_imported(error, "onnx_ir", extra="export", needed_for="reading an ONNX graph") from None
    if not path.is_file():
        raise ModelError(f"there is no model {path}")
    try:
        model = ir.load(path, format="protobuf")
    except (DecodeError, RuntimeError, ValueError, OSError) as error:  # onnx-ir's SerdeError is a RuntimeError
        raise ModelError(f"{path} is not an ONNX model: {error}") from None
    if not model.graph.inputs or not model.graph.outputs:
        raise ModelError(f"{path} is not an ONNX model: it has no inputs or no outputs")
    _read_external_data(model, path)
    return model


def _read_external_data(model: ir.Model, path: Path) -> None:
    """Read weights that lie beside the model; refuse those that a crafted one would read from elsewhere on the disk.

    They are read here, so that copies of the model can be saved anywhere.

    Args:
        model: That was read.
        path: Its file.

    Raises:
        ModelError: They lie outside the model's own folder, or are missing or too short.
    """
    import onnx_ir as ir

    folder = path.resolve().parent
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            place = (folder / tensor.location).resolve()
            if not place.is_relative_to(folder):
                raise ModelError(f"{path}: the weights '{tensor.name}' lie outside its folder: {tensor.location}")
            if not place.is_file() or place.stat().st_size < (tensor.offset or 0) + tensor.nbytes:
                raise ModelError(f"{path}: the weights '{tensor.name}' are not in {place}: it is missing or too short")
    for graph in model.graphs():
        for value in graph.initializers.values():
            found = value.const_value
            if isinstance(found, ir.ExternalTensor):
                value.const_value = ir.Tensor(found.numpy().copy(), dtype=found.dtype, name=found.name)
                found.release()


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every constant of a model: initializers, and attributes of nodes, in all graphs and functions."""
    import onnx_ir as ir

    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for node in (node for body in bodies for node in ir.traversal.RecursiveGraphIterator(body)):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from attribute.as_tensors()
