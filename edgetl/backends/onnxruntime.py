"""ONNX Runtime: the engine is the ONNX graph itself."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.errors import MissingExtraError, not_imported
from edgetl.runtime.runner import EngineNode, Runner
from edgetl.specs import Precision, Target
from edgetl.store import versions_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

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

    def nodes(self, folder: Path, *, threads: int | None = None) -> tuple[EngineNode, ...]:
        """The nodes of ONNX Runtime's own optimised graph, in the order of their execution.

        What ran, and with which shapes, is from the profile of one inference; which tensors a node reads and writes is
        from the optimised graph that the same session wrote.

        Args:
            folder: With ``engine.json``.
            threads: As for :meth:`open`.

        Raises:
            MissingExtraError: onnxruntime or onnx-ir is not installed.
            ProviderError: The recorded provider is not on this machine.
        """
        with self._open(folder, threads) as runner, tempfile.TemporaryDirectory() as place:
            optimised = Path(place) / "optimised.onnx"
            nodes = runner.nodes(optimised=optimised)
            return _with_tensors(nodes, optimised)

    def open(self, folder: Path, *, threads: int | None = None) -> Runner:
        """Start a session on the recorded provider."""
        return self._open(folder, threads)

    def _open(self, folder: Path, threads: int | None) -> OnnxRuntimeRunner:
        from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

        if self.version() is None:
            raise MissingExtraError("onnxruntime", extra=self.extra, needed_for=f"running {folder}")
        record = EngineRecord.read(folder)
        return OnnxRuntimeRunner(folder / record.files[0], provider=record.provider, threads=threads)


def _with_tensors(nodes: tuple[EngineNode, ...], optimised: Path) -> tuple[EngineNode, ...]:
    """Add the names of the tensors that nodes read and write, from an optimised graph."""
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise not_imported(
            error, "onnx_ir", extra="export", needed_for="reading ONNX Runtime's optimised graph"
        ) from None
    named: dict[str, ir.Node] = {}
    unnamed: dict[str, list[ir.Node]] = {}
    for found in ir.load(optimised).graph:
        if found.name:
            named[found.name] = found
        else:
            unnamed.setdefault(found.op_type, []).append(found)
    return tuple(_with_tensors_of(node, named, unnamed) for node in nodes)


def _with_tensors_of(
    node: EngineNode, named: Mapping[str, ir.Node], unnamed: Mapping[str, list[ir.Node]]
) -> EngineNode:
    """A node of the profile with the tensors of its like in the graph; in the body of a loop it has none there.

    The profile calls a node without a name by its operator and index. The graph file has no index, but its order is
    that of the execution, in which they are taken from ``unnamed``.
    """
    found = named.get(node.name)
    if found is None and re.fullmatch(rf"{re.escape(node.kind)}_\d+", node.name) and unnamed.get(node.kind):
        found = unnamed[node.kind].pop(0)
    return node if found is None else replace(node, inputs=_read_by(found), outputs=_named(found.outputs))


def _read_by(node: ir.Node) -> tuple[str, ...]:
    """Names of the activations that a node reads: no constants."""
    return _named(
        value
        for value in node.inputs
        if value is not None
        and not value.is_initializer()
        and ((producer := value.producer()) is None or producer.op_type != "Constant")
    )


def _named(values: Iterable[ir.Value]) -> tuple[str, ...]:
    return tuple(value.name for value in values if value.name)


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
