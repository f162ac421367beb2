"""From a PyTorch network to an ONNX graph that is shown to compute the same."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ExportError, ModelError, not_imported
from edgetl.numbers import apart
from edgetl.runtime.preprocessing import Preprocessing
from edgetl.specs import BatchRange

if TYPE_CHECKING:
    from torch import nn

INPUT, OUTPUT = "input", "logits"
_EXAMPLE = 16
"""Size of a dynamic dimension while the network is traced."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What the export came to."""

    opset: int
    nodes: int
    size_bytes: int


def export(
    module: nn.Module,
    path: Path,
    *,
    batch: BatchRange,
    opset: int,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    output: str = OUTPUT,
    longest: int = 1,
) -> Exported:
    """Write a network as ONNX, with a dynamic batch, folded and with its labels and preprocessing in it.

    Args:
        module: In eval mode on the CPU: one array with a leading batch → one array.
        path: Of the file to write.
        batch: Smallest and largest N.
        opset: ONNX operator set.
        labels: In the order of the outputs; metadata_props["edgetl.labels"], as JSON.
        preprocessing: metadata_props["edgetl.preprocessing"], as JSON; says what the input is, and which of its
            dimensions are dynamic, besides the batch.
        output: Name of the output.
        longest: Largest size of such a dimension.

    Raises:
        MissingExtraError: torch, onnx, onnxscript or onnxslim is not installed.
        ExportError: PyTorch cannot export this network; with its reason.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it, and says so less clearly
        import onnxslim
        import torch
    except ImportError as error:
        raise not_imported(error, error.name or "onnx", extra="export", needed_for="exporting to ONNX") from None

    dynamic = batch.min != batch.max
    sizes = torch.export.Dim("batch", min=max(1, batch.min), max=batch.max) if dynamic else None
    # An example of two, or torch.export would take a batch of one for a constant.
    shape = preprocessing.input_shape
    sides = [size if isinstance(size, int) else min(_EXAMPLE, longest) for size in shape]
    example = torch.ones(min(batch.max, max(2, batch.min)), *sides, dtype=getattr(torch, preprocessing.dtype))
    dims = {0: sizes} if dynamic else {}
    dims |= {
        axis: torch.export.Dim(size, min=2, max=longest) for axis, size in enumerate(shape, 1) if isinstance(size, str)
    }
    with _quiet():
        try:
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[output],
                dynamic_shapes=(dims,) if dims else None,
                opset_version=opset,
                verbose=False,
            )
            assert program is not None  # with dynamo=True and no file there is always a program
            model = onnxslim.slim(program.model_proto)
        except Exception as error:  # tracing runs the user's network, which may raise anything
            raise ExportError(f"PyTorch cannot export this network to ONNX: {_reason(error)}") from error
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.node):
        del value.metadata_props[:]  # the exporter's notes on source lines: several times the graph's size
    del model.metadata_props[:]
    for key, text in metadata(labels, preprocessing).items():
        model.metadata_props.add(key=key, value=text)
    model.producer_name = "edgetl"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    found = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return Exported(opset=found, nodes=len(model.graph.node), size_bytes=path.stat().st_size)


def metadata(labels: tuple[str, ...], preprocessing: Preprocessing) -> dict[str, str]:
    """The metadata_props that make a graph usable on its own."""
    return {
        "edgetl.labels": json.dumps(list(labels), ensure_ascii=False),
        "edgetl.preprocessing": json.dumps(preprocessing.to_json(), sort_keys=True),
    }


def check(expected: NDArray[np.float32], got: NDArray[np.float32], *, tolerance: float) -> float:
    """The largest absolute difference between PyTorch's outputs and the graph's.

    Args:
        expected: PyTorch's, any shape.
        got: The graph's, of the same shape.
        tolerance: Largest allowed difference as a share of the largest expected magnitude.

    Raises:
        ExportError: They differ by more.
        ModelError: PyTorch's are not finite.
    """
    if expected.shape != got.shape:
        raise ExportError(f"the exported graph returns {list(got.shape)}, PyTorch {list(expected.shape)}")
    if not np.isfinite(expected).all():
        raise ModelError(
            "the model answers test samples with NaN or infinity, before anything was exported",
            hint="look at its weights and at finetune.phases: a smaller lr, or other pretrained weights",
        )
    difference = float(np.abs(expected.astype(np.float64) - got).max())
    allowed = tolerance * max(float(np.abs(expected).max()), 1e-6)
    if not difference <= allowed:
        found, limit = apart(difference, allowed, 2, "e")
        raise ExportError(
            f"the exported graph differs from PyTorch by up to {found}; allowed are {limit}",
            hint="export.tolerance in edgetl.toml, if that is acceptable",
        )
    return difference


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """Without the exporter's progress lines on stdout, which --json keeps for itself."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"
