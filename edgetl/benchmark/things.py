"""What can be timed, and how a process opens it. Nothing heavy is imported before something is opened."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgetl.errors import BundleError, ModelError, UsageError

if TYPE_CHECKING:
    from edgetl.runtime.runner import Runner

Opener = Literal["engine", "onnxruntime", "openvino", "tensorrt", "checkpoint"]

_IMPORTS = {
    "onnxruntime": ("numpy", "onnxruntime", "edgetl.runtime.onnxruntime"),
    "openvino": ("numpy", "openvino", "edgetl.runtime.openvino"),
    "tensorrt": ("numpy", "tensorrt", "cuda.bindings.runtime", "edgetl.runtime.tensorrt"),
    "tensorrt_rtx": (
        *("numpy", "tensorrt_rtx_libs", "tensorrt_rtx_bindings"),
        *("cuda.bindings.runtime", "edgetl.runtime.tensorrt"),
    ),
    "torch": ("numpy", "torch", "safetensors.torch", "edgetl.backends.torch"),
    "null": ("numpy", "edgetl.backends.null"),
}
"""Backend → what opening one of its engines imports: timed apart from loading the engine."""

_FAMILIES = {"timm": ("timm",), "torchvision": ("torchvision",), "hf": ("transformers",)}
"""Family of a checkpoint's backbone → what building its network imports besides PyTorch."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """Something that can be timed. Plain values, so that it can be sent to another process."""

    name: str
    """For people."""
    opener: Opener
    """engine: a folder with ``engine.json``; checkpoint: one with ``deploy.json``; else what opens the file."""
    path: Path
    """The folder or file, absolute."""
    provider: str = ""
    """Of ONNX Runtime, where the opener is onnxruntime; an engine's folder names its own."""
    imports: tuple[str, ...] = ()
    """Modules that opening it imports."""
    engine: str = ""
    """Of a bundle, in words: which of its engines it is, and that it did not run where the bundle was built."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; the inverse of :meth:`from_json`."""
        return {**asdict(self), "path": str(self.path), "imports": list(self.imports)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Thing:
        """From :meth:`to_json`."""
        return cls(**{**values, "path": Path(values["path"]), "imports": tuple(values["imports"])})


def thing_at(
    path: Path,
    *,
    name: str | None = None,
    target: str | None = None,
    precision: str | None = None,
    key: Path | None = None,
    provider: str = "CPUExecutionProvider",
) -> Thing:
    """What stands at a path of the user's.

    Args:
        path: A bundle, an engine's folder, a checkpoint, or an .onnx, .xml or .engine file.
        name: For people; None: the path.
        target: Of a bundle: the target whose engine is meant; None: the fastest that ran where it was built.
        precision: Of a bundle: likewise.
        key: Of a bundle: public key that must have signed it.
        provider: ONNX Runtime's, for .onnx files.

    Raises:
        UsageError: There is nothing, or nothing that can be timed.
        BundleError: The bundle, or the engine's record, is damaged.
        UnknownNameError: The bundle has no engine for that target and precision.
        TargetError: It has one that must first be built on its device.
    """
    name = name or str(path)
    try:
        path = path.resolve()
    except (OSError, RuntimeError) as error:  # links that point at each other
        raise UsageError(f"{name} cannot be opened: {error}") from None
    if not path.exists():
        raise UsageError(f"there is no {name}")
    if path.suffix == ".onnx" and path.is_file():
        return onnx_thing(path, name=name, provider=provider)
    if path.suffix == ".xml":
        return Thing(name=name, opener="openvino", path=path, imports=_IMPORTS["openvino"])
    if path.suffix == ".engine":
        return Thing(name=name, opener="tensorrt", path=path, imports=_IMPORTS["tensorrt"])
    if (path / "manifest.json").is_file():
        from edgetl.runtime.bundle import open_bundle

        chosen = open_bundle(path, key=key).choose(target, precision)
        words = f"{chosen.target} {chosen.precision}"
        if chosen.status != "ready":
            words += f", which did not run where the bundle was built ({chosen.note or chosen.status})"
        return replace(engine_thing(path / chosen.folder, name=name), engine=words)
    if (path / "engine.json").is_file():
        return engine_thing(path, name=name)
    if (path / "deploy.json").is_file():
        return checkpoint_thing(path, name=name)
    raise UsageError(
        f"{name} is neither a bundle nor a file ending in .onnx, .xml or .engine, nor the folder of an engine or of a"
        " checkpoint"
    )


def onnx_thing(path: Path, *, name: str, provider: str = "CPUExecutionProvider") -> Thing:
    """An .onnx file on an execution provider of ONNX Runtime."""
    return Thing(
        name=name, opener="onnxruntime", path=path.resolve(), provider=provider, imports=_IMPORTS["onnxruntime"]
    )


def engine_thing(folder: Path, *, name: str) -> Thing:
    """The engine that ``engine.json`` in a folder describes.

    Raises:
        BundleError: There is no such record.
    """
    backend = _backend(folder)
    imports = _IMPORTS.get(backend, ())
    if backend == "torch":
        imports += _family(folder)
    return Thing(name=name, opener="engine", path=folder.resolve(), imports=imports)


def checkpoint_thing(folder: Path, *, name: str) -> Thing:
    """A PyTorch checkpoint, in eager mode on the CPU.

    Raises:
        ModelError: It is not one.
    """
    return Thing(name=name, opener="checkpoint", path=folder.resolve(), imports=(*_IMPORTS["torch"], *_family(folder)))


def open_thing(thing: Thing, *, threads: int | None) -> Runner:
    """Open it in this process.

    Args:
        thing: What to open.
        threads: For the engine; None: as many as it takes by itself.

    Returns:
        A context manager.

    Raises:
        MissingExtraError: A library is not installed.
        ProviderError: The provider or device is not on this machine.
        ModelError: The library cannot load it.
        BundleError: The engine's record is damaged.
    """
    if thing.opener == "onnxruntime":
        from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(thing.path, provider=thing.provider, threads=threads)
    if thing.opener == "openvino":
        from edgetl.runtime.openvino import OpenVinoRunner

        return OpenVinoRunner(thing.path, threads=threads)
    if thing.opener == "tensorrt":
        from edgetl.runtime.tensorrt import TensorRTRunner

        return TensorRTRunner(thing.path, library="tensorrt", provider="GPU")
    if thing.opener == "checkpoint":
        from edgetl.backends.torch import TorchBackend

        return TorchBackend().open(thing.path, threads=threads)
    backend = _backend(thing.path)
    if backend in ("torch", "null"):  # not of the runtime: they never leave the machine that builds
        from edgetl import backends

        return backends.backend(backend).open(thing.path, threads=threads)
    from edgetl.runtime.opening import open_engine

    return open_engine(thing.path, threads=threads)


def _backend(folder: Path) -> str:
    try:
        return str(json.loads((folder / "engine.json").read_text(encoding="utf-8"))["backend"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder} holds no engine that this version can open: {error}") from None


def _family(folder: Path) -> tuple[str, ...]:
    """What the network of a checkpoint imports."""
    try:
        backbone = str(json.loads((folder / "deploy.json").read_text(encoding="utf-8"))["backbone"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} is not a checkpoint of edgetl: {error}") from None
    return _FAMILIES.get(backbone.partition(":")[0], ())
