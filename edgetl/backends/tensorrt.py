"""TensorRT 10 and 11: engines for NVIDIA GPUs and Jetson modules, built on the GPU that runs them.

An engine is bound to the compute capability, the driver and TensorRT's exact version. So for a device that this machine
is not, the backend leaves what the device needs to build the engine itself, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from edgetl.backends import _trt_dla
from edgetl.backends._trt_backend import TrtBackend
from edgetl.backends._trt_build import (
    ENGINE_NAME,
    SOURCE_NAME,
    Built,
    Profile,
    build,
    build_versions,
    onnx_inputs,
    profiles_for,
    write_bytes,
    write_record,
)
from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.errors import ProviderError, TargetError
from edgetl.runtime.cuda import Cuda
from edgetl.runtime.nvidia import Gpu, Machine, this_machine
from edgetl.runtime.tensorrt import device_index, import_library
from edgetl.specs import Precision, Target

_OLDEST = 10


class TensorRTBackend(TrtBackend):
    """TensorRT 10 and 11.

    Args:
        workspace_mib: Limit of a layer's scratch memory at build and run time, in MiB; None: all of the GPU's.
    """

    name: str = "tensorrt"
    extra: str = "tensorrt"
    library = "tensorrt"
    module = "tensorrt"
    # The Debian package of JetPack registers itself as "tensorrt" too.
    distributions = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings")

    def why_not_here(self, target: Target, precision: Precision) -> str | None:
        """Why this machine cannot run the target's engines in that precision, in a clause; None where it can."""
        del precision  # a GPU of the target's runs all that the target offers
        reason = wrong_device(target, this_machine())
        if reason is None and self.version() is None:
            return "the Python package 'tensorrt' is not installed"
        return reason

    def compile(self, request: CompileRequest) -> EngineRecord:
        """Build the engine, or, for a device that this machine is not, leave what the device needs to build it.

        Args:
            request: Model, folder, target, precision, batch range.

        Returns:
            A record with status "ready" or "build-on-device".

        Raises:
            MissingExtraError: This is the device, and TensorRT is not installed.
            ProviderError: The target is built here, and this machine has no such GPU.
            TargetError: TensorRT refuses this graph, or it is for a DLA and its shapes are not fixed.
            StorageError: The folder cannot be written.
        """
        device = device_index(request.target.provider)
        machine = this_machine()
        reason = wrong_device(request.target, machine)
        if reason is not None and request.target.built_on_device:
            return self._leave_sources(request, reason)
        trt = import_library("tensorrt", needed_for=_purpose(request.target))
        if reason is not None:
            raise ProviderError(f"an engine for '{request.target.name}' cannot be built here: {reason}")
        if _major(trt.__version__) < _OLDEST:
            raise ProviderError(
                f"TensorRT {trt.__version__} is installed; strongly typed engines need {_OLDEST} or newer",
                hint="on an older JetPack, build with trtexec: the record of the engine has the command",
            )
        Cuda(device, extra=self.extra)  # the builder uses the thread's current device
        built, options = self._built(trt, request)
        write_bytes(request.folder / ENGINE_NAME, built.engine)
        write_bytes(request.folder / SOURCE_NAME, request.model.read_bytes())
        versions = build_versions(trt, machine, self.extra)
        record = EngineRecord(
            backend=self.name,
            provider=request.target.provider,
            precision=request.precision,
            status="ready",
            files=(ENGINE_NAME,),
            versions=versions,
            graph=SOURCE_NAME,
            options={
                "profiles": {name: profile.as_json() for name, profile in built.profiles.items()},
                **options,
                "timing_cache": "none",
                "workspace_mib": self._workspace_mib,
                "multiply_adds": dict(built.multiply_adds),
                "gpu": machine.gpus[device].name,
                "compute_capability": machine.gpus[device].compute_capability,
                "warnings": [*_version_warning(request.target, versions["tensorrt"]), *built.warnings],
            },
        )
        return write_record(record, request.folder)

    def _built(self, trt: ModuleType, request: CompileRequest) -> tuple[Built, dict[str, Any]]:
        """An engine for the GPU or for a DLA, and what its record says of the difference."""
        target = request.target
        if target.dla_core is None:
            return build(trt, request, workspace_mib=self._workspace_mib), {"strongly_typed": True}
        built, without = _trt_dla.build_for_dla(trt, request, workspace_mib=self._workspace_mib)
        strong = not _trt_dla.is_weakly_typed(trt)
        return built, {"strongly_typed": strong, **_dla_options(target), "tensors_without_range": without}

    def _leave_sources(self, request: CompileRequest, reason: str) -> EngineRecord:
        target = request.target
        profiles = profiles_for(onnx_inputs(request.model), request.batch, request.longest)
        if target.dla_core is not None:
            _trt_dla.check_shapes(target, profiles)
            refuse_old(target, request.precision)
        command = device_command(target, request.precision, profiles)
        write_bytes(request.folder / SOURCE_NAME, request.model.read_bytes())
        record = EngineRecord(
            backend=self.name,
            provider=target.provider,
            precision=request.precision,
            status="build-on-device",
            files=(SOURCE_NAME,),
            graph=SOURCE_NAME,
            options={
                "profiles": {name: profile.as_json() for name, profile in profiles.items()},
                "precision": request.precision,
                "strongly_typed": _major(target.software.engine_version) >= _OLDEST,
                **_dla_options(target),
                "workspace_mib": self._workspace_mib,
                "tensorrt": target.software.engine_version,
                "system": target.software.system,
                "compute_capability": list(target.hardware.compute_capability),
                "command": command,
                "warnings": [],
            },
            note=f"not built: {reason}. On the device, type: {command}",
        )
        return write_record(record, request.folder)


def device_command(target: Target, precision: Precision, profiles: Mapping[str, Profile]) -> str:
    """What to type on the device.

    Args:
        target: The device; a TensorRT older than 10 there means a Python that edgetl does not run on either.
        precision: That of the graph.
        profiles: Input → shapes.

    Returns:
        The command of edgetl, or of NVIDIA's trtexec, which stands in ``/usr/src/tensorrt/bin`` of every JetPack.
    """
    if _major(target.software.engine_version) >= _OLDEST:
        return f"edgetl compile BUNDLE --target {target.name}"
    # Weakly typed there: what the graph holds must also be allowed.
    flags = {"int8": " --int8 --fp16", "fp16": " --fp16", "bf16": "", "fp32": ""}[precision]
    dynamic = {name: profile for name, profile in profiles.items() if profile.min != profile.max}
    shapes = ""
    for bound in ("min", "opt", "max") if dynamic else ():
        sizes = {name: profile.as_json()[bound] for name, profile in dynamic.items()}
        shapes += f" --{bound}Shapes=" + ",".join(f"{name}:{'x'.join(map(str, size))}" for name, size in sizes.items())
    if target.dla_core is not None:
        flags += f" --useDLACore={target.dla_core}" + (" --allowGPUFallback" if target.dla_fallback else "")
    return f"trtexec --onnx={SOURCE_NAME} --saveEngine={ENGINE_NAME}{flags}{shapes}"


def _dla_options(target: Target) -> dict[str, Any]:
    """What the record of an engine for a DLA says; nothing of one for the GPU."""
    return {} if target.dla_core is None else {"dla_core": target.dla_core, "dla_fallback": target.dla_fallback}


def refuse_old(target: Target, precision: Precision) -> None:
    """Int8 on a DLA is not left to a device whose TensorRT edgetl does not know: it wants ranges beside the graph.

    Args:
        target: With ``dla_core``, and not this machine.
        precision: That is asked for.

    Raises:
        TargetError: The target states such a TensorRT.
    """
    if precision == "int8" and _major(target.software.engine_version) < _OLDEST:
        raise TargetError(
            f"int8 for the DLA of '{target.name}' needs TensorRT {_OLDEST} or newer there, and"
            f" {target.software.engine_version} is stated",
            hint='write precisions = ["fp16"] in the target\'s file',
        )


def wrong_device(target: Target, machine: Machine) -> str | None:
    """Why a machine is not one that the target's engines run on.

    Args:
        target: The device that is wanted.
        machine: The one that is there.

    Returns:
        A clause; None where it fits.
    """
    if target.built_on_device and not machine.is_jetson:
        return f"this machine ({machine.architecture}) is not the device: it has no Jetson software (nv_tegra_release)"
    index = device_index(target.provider)
    if machine.problem or index >= len(machine.gpus):
        return machine.problem or f"this machine has {len(machine.gpus)} GPU(s), and '{target.provider}' is asked for"
    return _wrong_gpu(target, machine.gpus[index])


def _wrong_gpu(target: Target, gpu: Gpu) -> str | None:
    wanted = target.hardware.compute_capability
    if wanted and gpu.compute_capability not in wanted:
        return (
            f"its GPU ({gpu.name}) has compute capability {gpu.compute_capability}, "
            f"and '{target.name}' has {' or '.join(wanted)}"
        )
    return None


def _purpose(target: Target) -> str:
    purpose = f"building an engine for '{target.name}'"
    if target.built_on_device:
        purpose += " (JetPack has it for the system's Python: make the virtual environment with --system-site-packages)"
    return purpose


def _major(version: str) -> int:
    head = version.split(".")[0]
    return int(head) if head.isdigit() else _OLDEST  # a device whose version is not stated has a current one


def _version_warning(target: Target, version: str) -> list[str]:
    expected = target.software.engine_version
    if not expected or version == expected or version.startswith(expected + "."):
        return []
    return [f"the target's file expects TensorRT {expected}; this engine was built by {version} and runs only on that"]
