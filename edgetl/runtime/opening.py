"""Open the engine in a folder with the one library that it needs, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from edgetl.errors import BundleError
from edgetl.runtime.runner import Runner


def open_engine(folder: Path, *, of: tuple[str, str] | None = None, threads: int | None = None) -> Runner:
    """Open the engine that ``engine.json`` in a folder describes, with the one library that it needs.

    Args:
        folder: Of the engine.
        of: Backend and precision that it must be of; None: whatever it is.
        threads: For the engine; None: as many as the process may use.

    Raises:
        BundleError: There is no such record, it is of another engine, or its backend is unknown.
    """
    try:
        record = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        backend, name, provider = record["backend"], record["files"][0], record["provider"]
        recorded = record.get("precision")  # not in records that other tools wrote
        if PurePosixPath(name).name != name or name in ("", ".."):
            raise ValueError(f"it names a file outside its folder: {name}")
        file, options = folder / name, record.get("options", {})
        if not isinstance(provider, str) or not isinstance(options, dict):
            raise ValueError(f"its provider is {provider!r}, and its options are {options!r}")
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder} holds no engine that this version can open: {error}") from None
    if of is not None and (backend != of[0] or recorded not in (None, of[1])):
        found = f"{backend} in {recorded}" if recorded else backend
        raise BundleError(
            f"{folder} holds an engine of {found}; by the manifest it is of {' in '.join(of)}",
            hint="the folders of two engines may have been exchanged: build the bundle again",
        )
    if backend == "onnxruntime":
        from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(file, provider=provider, threads=threads)
    if backend == "openvino":
        from edgetl.runtime.openvino import OpenVinoRunner

        precision = str(options.get("inference_precision", "f32"))
        return OpenVinoRunner(file, device=provider, inference_precision=precision, threads=threads)
    if backend in ("tensorrt", "tensorrt_rtx"):
        from edgetl.runtime.tensorrt import TensorRTRunner

        told = {name: options[name] for name in ("dla_core", "multiply_adds") if name in options}
        return TensorRTRunner(file, library=backend, provider=provider, **told)
    raise BundleError(f"{folder}: the runtime cannot open engines of '{backend}'")
