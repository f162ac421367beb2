"""A backend without an engine: everything around backends can be tried without a library or a device.

Its engine answers with zeros of the shapes that the graph declares. It proves nothing about a model, and parity
rejects it like any other engine that is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.runtime.runner import EngineNode, Placement, Runner, Tensors, TensorSpec, check_feeds
from edgetl.specs import Precision, Target


class NullBackend:
    """Reads a graph's inputs and outputs, and computes nothing."""

    name = "null"
    extra = "export"

    def version(self) -> str | None:
        """Always there."""
        return "1"

    def why_not_here(self, target: Target, precision: Precision) -> str | None:
        """Runs everywhere."""
        return None

    def compile(self, request: CompileRequest) -> EngineRecord:
        """Write down the graph's inputs and outputs."""
        import onnx_ir as ir

        graph = ir.load(request.model).graph
        ports = {
            kind: [
                {
                    "name": value.name,
                    "shape": [size if isinstance(size, int) else str(size) for size in value.shape or ()],
                    "dtype": value.dtype.numpy().name if value.dtype else "float32",
                }
                for value in values
            ]
            for kind, values in (("inputs", graph.inputs), ("outputs", graph.outputs))
        }
        (request.folder / "null.json").write_text(json.dumps(ports), encoding="utf-8")
        record = EngineRecord(
            backend=self.name,
            provider=request.target.provider,
            precision=request.precision,
            status="ready",
            files=("null.json",),
        )
        record.write(request.folder)
        return record

    def open(self, folder: Path, *, threads: int | None = None) -> Runner:
        """Open the written ports."""
        record = EngineRecord.read(folder)
        return _NullRunner(folder / record.files[0], record.provider)

    def nodes(self, folder: Path, *, threads: int | None = None) -> tuple[EngineNode, ...]:
        """None: nothing is computed."""
        return ()


class _NullRunner:
    def __init__(self, path: Path, provider: str) -> None:
        ports = json.loads(path.read_text(encoding="utf-8"))
        self._provider = provider
        self._inputs = tuple(TensorSpec(**{**port, "shape": tuple(port["shape"])}) for port in ports["inputs"])
        self._outputs = tuple(TensorSpec(**{**port, "shape": tuple(port["shape"])}) for port in ports["outputs"])

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        check_feeds(feeds, self._inputs)
        batch = len(next(iter(feeds.values())))
        return {
            spec.name: np.zeros([batch, *(n if isinstance(n, int) else 1 for n in spec.shape[1:])], dtype=spec.dtype)
            for spec in self._outputs
        }

    def placement(self) -> Placement:
        return Placement(provider=self._provider, nodes={})

    def __enter__(self) -> _NullRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
