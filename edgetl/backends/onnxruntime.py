"""ONNX Runtime: the engine is the ONNX graph itself."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.errors import MissingExtraError
from edgetl.runtime.runner import Runner
from edgetl.specs import Precision, Target
from edgetl.store import versions_of

_MACHINES = {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}


class OnnxRuntimeBackend:
    """ONNX Runtime on a processor or, with its CUDA provider, on a GPU."""

    name = "onnxruntime"
    extra = "ort"

    def version(self) -> str | None:
        """Of whichever of the two packages is installed."""
        found = versions_of("onnxruntime-gpu", "onnxruntime")
        return next((version for version in found.values() if version), None)

    def why_not_here(self, target: Target, precision: Precision) -> str | None:
        """Another architecture, a missing package or processor feature, or a provider that cannot start."""
        if self.version() is None:
            return "onnxruntime is not installed"
        reason = why_not_this_processor(target)
        if reason or target.provider == "CPUExecutionProvider":
            return reason
        from edgetl.runtime.onnxruntime import why_no_provider

        return why_no_provider(target.provider)

    def compile(self, request: CompileRequest) -> EngineRecord:
        """Place the graph; ONNX Runtime optimises it for the processor when it is opened."""
        shutil.copyfile(request.model, request.folder / "model.onnx")
        reason = self.why_not_here(request.target, request.precision)
        record = EngineRecord(
            backend=self.name,
            provider=request.target.provider,
            precision=request.precision,
            status="built" if reason else "ready",
            files=("model.onnx",),
            versions={"onnxruntime": self.version() or ""},
            note=f"not run here: {reason}" if reason else "",
        )
        record.write(request.folder)
        return record

    def open(self, folder: Path, *, threads: int | None = None) -> Runner:
        """Start a session on the recorded provider."""
        from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

        if self.version() is None:
            raise MissingExtraError("onnxruntime", extra=self.extra, needed_for=f"running {folder}")
        record = EngineRecord.read(folder)
        return OnnxRuntimeRunner(folder / record.files[0], provider=record.provider, threads=threads)


def why_not_this_processor(target: Target) -> str | None:
    """Why the target's processor is not this machine's, in a clause; None where every feature that it has is here."""
    here = _MACHINES.get(platform.machine(), platform.machine())
    if here != target.hardware.architecture:
        return f"this machine is {here}, the target {target.hardware.architecture}"
    missing = sorted(set(target.hardware.cpu_features) - cpu_features())
    return f"this processor lacks {', '.join(missing)}" if missing else None


def cpu_features() -> set[str]:
    """Instruction-set extensions of this processor, in Linux's names; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {name for line in lines if line.startswith(("flags", "Features")) for name in line.split(":", 1)[1].split()}
