"""OpenVINO: Q/DQ graphs are read natively; the engine is OpenVINO's own model (IR)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.backends.onnxruntime import why_not_this_processor
from edgetl.errors import MissingExtraError, TargetError
from edgetl.runtime.runner import EngineNode, Runner
from edgetl.specs import Precision, Target
from edgetl.store import versions_of

if TYPE_CHECKING:
    from edgetl.runtime.openvino import OpenVinoRunner

_HINTS: dict[Precision, str] = {"fp32": "f32", "int8": "f32", "bf16": "bf16", "fp16": "f16"}
"""What the float layers run in; without it OpenVINO takes bf16 where the processor can, and says nothing."""
_REDUCTIONS = {
    "ReduceMean": "reduce_mean", "ReduceSum": "reduce_sum", "ReduceProd": "reduce_prod", "ReduceMax": "reduce_max",
    "ReduceMin": "reduce_min", "ReduceL1": "reduce_l1", "ReduceL2": "reduce_l2",
}  # fmt: skip
"""Operator → what makes it."""


class OpenVinoBackend:
    """OpenVINO on an Intel or other x86-64 or Arm processor, or an Intel GPU."""

    name = "openvino"
    extra = "openvino"

    def version(self) -> str | None:
        """Of the openvino package."""
        return versions_of("openvino")["openvino"] or None

    def why_not_here(self, target: Target, precision: Precision) -> str | None:
        """Another architecture, a missing package or device, or a precision that the device does not run."""
        if self.version() is None:
            return "openvino is not installed"
        reason = why_not_this_processor(target)
        if reason:
            return reason
        from edgetl.runtime.openvino import why_no_device

        return why_no_device(target.provider, _HINTS[precision])

    def compile(self, request: CompileRequest) -> EngineRecord:
        """Convert to OpenVINO's model format, with dynamic batch."""
        if self.version() is None:
            raise MissingExtraError("openvino", extra=self.extra, needed_for=f"building for {request.target.name}")
        import openvino

        from edgetl.runtime.openvino import core

        try:
            model = core().read_model(request.model)
        except RuntimeError as error:
            raise TargetError(f"OpenVINO cannot read this graph: {error}") from error
        if request.precision == "int8":
            _keep_reduced_axes(model)
        openvino.save_model(model, request.folder / "model.xml", compress_to_fp16=False)
        reason = self.why_not_here(request.target, request.precision)
        record = EngineRecord(
            backend=self.name,
            provider=request.target.provider,
            precision=request.precision,
            status="built" if reason else "ready",
            files=("model.xml", "model.bin"),
            versions={"openvino": self.version() or ""},
            options={"inference_precision": _HINTS[request.precision]},
            note=f"not run here: {reason}" if reason else "",
        )
        record.write(request.folder)
        return record

    def nodes(self, folder: Path, *, threads: int | None = None) -> tuple[EngineNode, ...]:
        """The nodes of OpenVINO's own executed graph, in the order of their execution.

        Args:
            folder: With ``engine.json``.
            threads: As for :meth:`open`.

        Raises:
            MissingExtraError: openvino is not installed.
            ProviderError: The recorded device is not on this machine.
        """
        with self._open(folder, threads) as runner:
            return runner.nodes()

    def open(self, folder: Path, *, threads: int | None = None) -> Runner:
        """Compile for the recorded device, in the recorded precision."""
        return self._open(folder, threads)

    def _open(self, folder: Path, threads: int | None) -> OpenVinoRunner:
        from edgetl.runtime.openvino import OpenVinoRunner

        record = EngineRecord.read(folder)
        return OpenVinoRunner(
            folder / record.files[0],
            device=record.provider,
            inference_precision=str(record.options.get("inference_precision", "f32")),
            threads=threads,
        )


def _keep_reduced_axes(model: Any) -> None:
    """Let reductions keep their axes, and drop them behind it.

    OpenVINO (2026.4) moves scales of channels that stand behind a reduction, as those of the product before it, into
    the quantizer behind it, and computes that with the reduction: where axes are dropped, by scales of other channels.
    """
    from openvino import opset13 as opset

    for op in model.get_ordered_ops():
        make = _REDUCTIONS.get(op.get_type_name())
        if (
            make is None
            or op.get_attributes()["keep_dims"]
            or op.input_value(1).get_node().get_type_name() != "Constant"
        ):
            continue
        output = op.output(0)
        readers, names = output.get_target_inputs(), output.get_names()
        kept = getattr(opset, make)(*op.input_values(), keep_dims=True, name=f"{op.get_friendly_name()}_kept")
        dropped = opset.squeeze(kept, op.input_value(1), name=op.get_friendly_name())
        dropped.output(0).set_names(names)
        for reader in readers:
            reader.replace_source_output(dropped.output(0))
    model.validate_nodes_and_infer_types()
