"""TensorRT-RTX: portable engines for RTX graphics cards, built ahead of time without one.

The builder runs on the processor; kernels are made on the card when the engine is opened. Int8 there is weight-only for
matrix products: convolutions gain nothing from it, fp16 is the precision to ship.
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from edgetl.backends._trt_backend import TrtBackend
from edgetl.backends._trt_build import (
    ENGINE_NAME,
    SOURCE_NAME,
    build,
    build_versions,
    network_nodes,
    parse,
    write_bytes,
    write_record,
)
from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.errors import TargetError
from edgetl.runtime.nvidia import Machine, this_machine
from edgetl.runtime.runner import EngineNode
from edgetl.runtime.tensorrt import device_index, import_library
from edgetl.specs import Precision, Target


class TensorRTRTXBackend(TrtBackend):
    """TensorRT-RTX.

    Args:
        workspace_mib: Limit of a layer's scratch memory, in MiB; None: all of the GPU's.
    """

    name: str = "tensorrt_rtx"
    extra: str = "tensorrt-rtx"
    library = "tensorrt_rtx"
    module = "tensorrt_rtx_bindings"
    distributions = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx")

    def why_not_here(self, target: Target, precision: Precision) -> str | None:
        """Why this machine cannot run the target's engines in that precision, in a clause; None where it can."""
        del precision  # a GPU of the target's runs all that the target offers
        reason = wrong_gpu(target, this_machine())
        if reason is None and self.version() is None:
            return "the Python package 'tensorrt_rtx_bindings' is not installed"
        return reason

    def compile(self, request: CompileRequest) -> EngineRecord:
        """Build one engine for every compute capability of the target; needs no GPU.

        Args:
            request: Model, folder, target, precision, batch range.

        Returns:
            A record with status "ready" where a GPU of the target is here, else "built".

        Raises:
            MissingExtraError: TensorRT-RTX is not installed.
            TargetError: It refuses this graph, or knows none of the target's compute capabilities; or a DLA is wanted.
            StorageError: The folder cannot be written.
        """
        target = request.target
        if target.dla_core is not None:
            raise TargetError(
                f"'{target.name}' asks for DLA core {target.dla_core}; TensorRT-RTX is for graphics cards, without DLA",
                hint='leave dla_core out, or write backend = "tensorrt" for a Jetson module that has one',
            )
        device_index(target.provider)  # refuses a provider that is no GPU before the build
        trt = import_library("tensorrt_rtx", needed_for=f"building an engine for '{target.name}'")
        known, unknown = split_capabilities(trt, target)
        built = build(
            trt,
            request,
            workspace_mib=self._workspace_mib,
            configure=lambda _, config: _set_capabilities(trt, config, known),
        )
        write_bytes(request.folder / ENGINE_NAME, built.engine)
        write_bytes(request.folder / SOURCE_NAME, request.model.read_bytes())
        machine = this_machine()
        reason = wrong_gpu(target, machine, known)
        notes = [f"this machine cannot run it: {reason}"] if reason else []
        if unknown:
            notes.append(f"left out compute capability {', '.join(unknown)}, which this TensorRT-RTX does not know")
        index = device_index(target.provider)
        gpu = machine.gpus[index] if index < len(machine.gpus) else None
        record = EngineRecord(
            backend=self.name,
            provider=target.provider,
            precision=request.precision,
            status="built" if reason else "ready",
            files=(ENGINE_NAME,),
            versions=build_versions(trt, machine, self.extra),
            graph=SOURCE_NAME,
            options={
                "profiles": {name: profile.as_json() for name, profile in built.profiles.items()},
                "strongly_typed": True,
                "timing_cache": "none",
                "workspace_mib": self._workspace_mib,
                "multiply_adds": dict(built.multiply_adds),
                "compute_capabilities": known,
                "compute_capabilities_left_out": unknown,
                "built_beside_gpu": gpu.name if gpu else "",
                "warnings": list(built.warnings),
            },
            note="; ".join(notes),
        )
        return write_record(record, request.folder)


def accepts(model: Path) -> list[str]:
    """Ask TensorRT-RTX's ONNX parser, which is TensorRT's, about a graph; needs no GPU.

    Args:
        model: ONNX file without external data.

    Returns:
        The parser's errors, each naming node and operator; empty where it accepts the graph.

    Raises:
        MissingExtraError: TensorRT-RTX is not installed.
    """
    trt = import_library("tensorrt_rtx", needed_for=f"asking TensorRT's parser about {model.name}")
    *_, errors = parse(trt, model.read_bytes())
    return errors


def parsed(model: Path) -> tuple[EngineNode, ...]:
    """What TensorRT-RTX's ONNX parser, which is TensorRT's, makes of a graph; needs no GPU.

    Args:
        model: ONNX file without external data.

    Returns:
        Layers before fusion; see :func:`edgetl.backends._trt_build.network_nodes`.

    Raises:
        MissingExtraError: TensorRT-RTX is not installed.
        TargetError: The parser refuses the graph.
    """
    trt = import_library("tensorrt_rtx", needed_for=f"asking TensorRT's parser about {model.name}")
    _, network, parser, errors = parse(trt, model.read_bytes())
    if errors:
        raise TargetError(f"TensorRT-RTX refuses {model.name}: " + "; ".join(errors))
    nodes = network_nodes(trt, network)
    del parser  # held until here: the network refers to weights that the parser owns
    return nodes


def split_capabilities(trt: ModuleType, target: Target) -> tuple[list[str], list[str]]:
    """Divide a target's compute capabilities into those that a TensorRT-RTX builds for, and the others.

    Args:
        trt: The imported library.
        target: With ``hardware.compute_capability``.

    Returns:
        Known and unknown ones, as "8.9", in the target's order.

    Raises:
        TargetError: None is known.
    """
    members = trt.ComputeCapability.__members__
    wanted = target.hardware.compute_capability
    known = [capability for capability in wanted if _member(capability) in members]
    if not known:
        offered = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in members if name.startswith("SM"))
        raise TargetError(
            f"'{target.name}' has compute capability {', '.join(wanted) or 'unstated'}; "
            f"TensorRT-RTX {trt.__version__} builds for {offered}",
            hint="correct hardware.compute_capability in the target's file, or use the backend tensorrt on that GPU",
        )
    return known, [capability for capability in wanted if capability not in known]


def wrong_gpu(target: Target, machine: Machine, known: list[str] | None = None) -> str | None:
    """Why a machine's GPU is not one of the target's.

    Args:
        target: The device that is wanted.
        machine: The one that is there.
        known: The compute capabilities that the engine was built for; None: all of the target's.

    Returns:
        A clause; None where it fits.
    """
    index = device_index(target.provider)
    if machine.problem or index >= len(machine.gpus):
        return machine.problem or f"this machine has {len(machine.gpus)} GPU(s), and '{target.provider}' is asked for"
    gpu = machine.gpus[index]
    wanted = list(target.hardware.compute_capability) if known is None else known
    if gpu.compute_capability not in wanted:
        return f"its GPU ({gpu.name}) has compute capability {gpu.compute_capability}, not {' or '.join(wanted)}"
    return None


def _set_capabilities(trt: ModuleType, config: Any, capabilities: list[str]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        member = getattr(trt.ComputeCapability, _member(capability))
        if not config.set_compute_capability(member, index):
            raise TargetError(f"TensorRT-RTX {trt.__version__} does not build for compute capability {capability} here")


def _member(capability: str) -> str:
    return "SM" + capability.replace(".", "")
