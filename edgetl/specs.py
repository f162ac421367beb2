"""The values that stages exchange: frozen dataclasses without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("int8", "fp16", "bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a fact comes from."""

    fact: str
    """What the source says, in one sentence."""
    url: str
    """Where it says so: a web address, or the command that shows it."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a device is made of, as far as a build needs to know it."""

    architecture: Literal["x86-64", "arm64"]
    """Instruction set of the processor that runs the engine."""
    processor: str
    """The processor in words."""
    cpu_features: tuple[str, ...] = ()
    """Instruction-set extensions that every such device has (Linux names: avx2, avx512_vnni, asimddp …)."""
    memory_gib: float | None = None
    """Memory of the device, in GiB; of the graphics card where the engine runs on one."""
    compute_capability: tuple[str, ...] = ()
    """CUDA compute capabilities, as "8.7"; empty without an NVIDIA GPU."""
    dla_cores: int = 0
    """NVIDIA deep-learning accelerators on the module."""


@dataclass(frozen=True, kw_only=True)
class Software:
    """What runs on a device."""

    system: str = ""
    """Operating system or NVIDIA's software stack, as "JetPack 6.2"."""
    python: str = ""
    """The Python that the system ships, as "3.10"."""
    engine_version: str = ""
    """Version of the backend on the device, where the device dictates it, as "10.3"."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device that engines are built for. Read from ``targets/<name>.toml`` by :mod:`edgetl.catalog`."""

    name: str
    """The file's stem."""
    description: str
    """One line for ``edgetl targets``."""
    backend: str
    """Which backend builds and runs the engine: onnxruntime, openvino, tensorrt, tensorrt_rtx, null."""
    provider: str
    """The execution provider or device that the backend is asked for, in the backend's own words."""
    scheme: str
    """The quantization scheme of :mod:`edgetl.quantize.schemes` for int8; empty where int8 is not offered."""
    precisions: tuple[Precision, ...]
    """What may be asked for on this target."""
    built_on_device: bool
    """True where an engine is bound to the device and can only be made there."""
    dla_core: int | None = None
    """The deep-learning accelerator of an NVIDIA module that the engine runs on, from 0; None: the GPU."""
    dla_fallback: bool = False
    """Whether layers that the accelerator does not have run on the GPU; else TensorRT refuses a graph with one."""
    hardware: Hardware
    software: Software = field(default_factory=Software)
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """How a range is read from statistics."""

    method: Literal["minmax", "percentile", "entropy", "mse", "search"]
    """search: of minmax, percentile and mse, the one whose whole graph comes nearest to the float graph; of activations
    alone."""
    percentile: float = 99.99
    """Only for "percentile": the share of values, in percent, that the range covers."""
    outliers: Literal["keep", "drop", "search"] = "keep"
    """Whether values that but a few samples reach, far beyond what the others do, count. search: whichever brings the
    whole graph nearer to the float graph; of activations alone."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a graph is brought to fewer bits. Read from ``calibration/<name>.toml`` by :mod:`edgetl.catalog`."""

    name: str
    """The file's stem."""
    description: str
    """One line for ``edgetl recipes``."""
    kind: Literal["static", "dynamic", "float16"] = "static"
    """static: int8 with ranges from calibration; dynamic: int8 weights, and ranges of activations found anew in each
    inference; float16: no integers at all."""
    activations: Estimator | None = None
    """Ranges of activations; only, and always, with kind = "static"."""
    weights: Estimator | None = None
    """Ranges of weights, per output channel; not with kind = "float16"."""
    equalization: Literal["none", "cross-layer"] = "none"
    """cross-layer: bring the channels between two convolutions to like ranges before calibration."""
    outlier_channels: Literal["none", "search"] = "none"
    """search: multiply channels that are far larger than all others in float, where that serves; before smoothing."""
    smoothing: Literal["none", "search"] = "none"
    """search: SmoothQuant behind each LayerNormalization, with the strength that serves best, "off" included."""
    rounding: Literal["nearest", "adaround"] = "nearest"
    """adaround: round the weights of the worst layers so that the error of their outputs is smallest."""
    bias_correction: Literal["none", "input-mean", "sequential"] = "none"
    """input-mean: take out of the bias what rounding the weights adds to the output at the mean calibration input.
    sequential: after that, layer after layer, bring what follows the layer nearest to the float graph."""
    attention: Literal["integers", "float"] = "integers"
    """Products of two activations, where the engine has them in integers."""
    keep_float: tuple[str, ...] = ()
    """Operators, or names of nodes, that stay in float; with kind = "float16", in float32."""


@dataclass(frozen=True, kw_only=True)
class BatchRange:
    """The batch sizes that an engine accepts."""

    min: int
    max: int
