"""Into engines of TensorRT and of TensorRT-RTX: see :mod:`edgetl.backends.inside`.

Such an engine puts out what it was built to put out, and does not hold its graph. That lies beside it: for each look
another engine is built from it, on the device, with more outputs.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgetl import backends
from edgetl.backends._inside_onnx import InsideOnnx
from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.errors import BundleError
from edgetl.runtime.runner import Runner
from edgetl.specs import BatchRange, Hardware, Target


def look_into(folder: Path, record: EngineRecord, wanted: Collection[str], workplace: Path) -> InsideTensorRT:
    """See :func:`edgetl.backends.inside.look_into`."""
    if PurePosixPath(record.graph).name != record.graph or not (folder / record.graph).is_file():
        raise BundleError(
            f"{folder}: the engine's graph '{record.graph}' is not in its folder", hint="build the bundle again"
        )
    return InsideTensorRT(folder, record, wanted, workplace)


class InsideTensorRT(InsideOnnx):
    """An engine of TensorRT; see :class:`edgetl.backends.inside.Inside`. The promise is computed by ONNX Runtime.

    Args:
        folder: Of the engine.
        record: In it.
        wanted: Tensors of the float graph.
        workplace: Where files with more outputs go.
    """

    together = 16  # a build takes from seconds to minutes

    def __init__(self, folder: Path, record: EngineRecord, wanted: Collection[str], workplace: Path) -> None:
        super().__init__(folder / record.graph, wanted, workplace)
        self._folder, self._record = folder, record

    def _engine(self, graph: Path, *, more: bool) -> Runner:
        backend = backends.backend(self._record.backend)
        if not more:
            return backend.open(self._folder)
        place = Path(tempfile.mkdtemp(dir=self._workplace))
        try:
            backend.compile(request_of(self._record, graph, place))
            return backend.open(place)
        finally:
            shutil.rmtree(place)  # a runner has read all of it


def request_of(record: EngineRecord, graph: Path, folder: Path) -> CompileRequest:
    """What an engine would be asked for with again: shapes, precision and GPU as its record has them.

    Args:
        record: Of TensorRT or TensorRT-RTX.
        graph: To build from.
        folder: For the new engine.

    Raises:
        BundleError: The record does not tell.
    """
    try:
        profiles: Mapping[str, Mapping[str, list[int]]] = record.options["profiles"]
        (low, high, rest), *_ = [_sizes(each) for each in profiles.values()]
        capabilities: Any = record.options.get("compute_capabilities", ())
        return CompileRequest(
            model=graph,
            folder=folder,
            target=Target(
                name="the layers of an engine",
                description="",
                backend=record.backend,
                provider=record.provider,
                scheme="",
                precisions=(record.precision,),
                built_on_device=False,
                hardware=Hardware(architecture="x86-64", processor="", compute_capability=tuple(capabilities)),
            ),
            precision=record.precision,
            batch=BatchRange(min=low, max=high),
            longest=rest,
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BundleError(f"the record of the engine does not tell for which shapes it was built: {error!r}") from None


def _sizes(profile: Mapping[str, list[int]]) -> tuple[int, int, int | None]:
    """Smallest and largest batch, and the largest size of other dimensions that are dynamic, if any is."""
    low, high = profile["min"], profile["max"]
    others = [most for least, most in zip(low[1:], high[1:], strict=True) if least != most]
    return int(low[0]), int(high[0]), max(others, default=None)
