"""The values of a report's sections about quantization: ranges, what engines made of graphs, what each layer loses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TensorHistogram:
    """The values of one activation tensor over the calibration samples, and the range that was chosen for it."""

    name: str
    edges: tuple[float, ...]
    """Bounds of the bins, ascending; one more than counts."""
    counts: tuple[int, ...]
    """Values per bin."""
    low: float
    """Smallest value that is represented."""
    high: float
    """Largest value that is represented."""
    scale: float
    zero_point: int
    clipped_share: float
    """Share of the values that lie outside low to high."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How activation ranges were chosen."""

    recipe: str
    samples: int
    """Calibration samples."""
    tensors: tuple[TensorHistogram, ...]
    """The tensors worth looking at, most interesting first; the page shows up to twelve."""
    tensors_total: int
    """Tensors that have a range in the graph."""


@dataclass(frozen=True, kw_only=True)
class OperatorCount:
    """How many nodes of one operator were quantized."""

    operator: str
    quantized: int
    """Nodes that compute on integers."""
    float_: int
    """Nodes that were left in floating point."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """One quantized graph."""

    scheme: str
    """Name of the quantization scheme."""
    targets: tuple[str, ...]
    """The targets whose int8 engines come from this graph."""
    operators: tuple[OperatorCount, ...]


@dataclass(frozen=True, kw_only=True)
class Unfused:
    """A quantizer or dequantizer that an engine left in its graph."""

    name: str
    """The engine's name of it."""
    kind: str
    """Its operator, as the engine calls it."""
    reason: str
    """Why it is there, in words."""
    needed: bool
    """Whether it stands at an input or output, where a float interface needs it."""
    defect: bool
    """Whether it should have been fused."""


@dataclass(frozen=True, kw_only=True)
class FloatProduct:
    """A convolution or matrix product of an int8 engine that does not run in int8."""

    name: str
    kind: str
    precision: str
    """What it runs in."""
    share: float
    """Of the engine's multiply-adds."""


@dataclass(frozen=True, kw_only=True)
class FallenBack:
    """A node that was to run in int8 and does not."""

    node: str
    precision: str
    """What it runs in."""


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """What an engine made of a quantized graph."""

    engine: str
    """:attr:`edgetl.report.model.Engine.name`."""
    library: str
    """Whose graph it is: "ONNX Runtime", "TensorRT's parser"."""
    view: Literal["engine", "parser"]
    """engine: the optimised graph that runs; parser: the graph before fusion, of an engine that did not run here."""
    int8_share: float | None
    """Share of the multiply-adds in 8-bit integers; None where the library does not tell."""
    unfused: tuple[Unfused, ...] = ()
    """In the order of execution."""
    float_products: tuple[FloatProduct, ...] = ()
    """The largest first."""
    fallen_back: tuple[FallenBack, ...] = ()
    refused: str = ""
    """Why the library refuses the graph; empty where it does not."""


@dataclass(frozen=True, kw_only=True)
class LayerLoss:
    """What quantization costs at the output of one layer. A ratio is inf where nothing is lost at all."""

    node: str
    operator: str
    place: int
    """In the graph's order of layers, from 0."""
    isolated_db: float
    """Signal-to-quantization-noise ratio where this layer alone is quantized."""
    accumulated_db: float
    """The same where all before it is quantized, too."""
    before_db: float | None = None
    """Accumulated, without what the recipe changed in the float graph and corrected; None where that was nothing."""


@dataclass(frozen=True, kw_only=True)
class TensorLoss:
    """What quantization costs one activation. A ratio is inf where nothing is lost at all."""

    name: str
    isolated_db: float
    """Signal-to-quantization-noise ratio of rounding what calibration saw."""
    accumulated_db: float
    """The same in the quantized graph."""
    low: float
    """Smallest value that is represented."""
    high: float
    """Largest value that is represented."""
    scale: float


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What quantization costs, layer by layer."""

    scheme: str
    recipe: str
    targets: tuple[str, ...]
    """The targets whose engines come from this graph."""
    samples: int
    """Calibration samples that it was measured on."""
    layers: tuple[LayerLoss, ...]
    """Those that lose most by themselves first."""
    tensors: tuple[TensorLoss, ...] = ()
    """Those that lose most by themselves first."""
    notes: tuple[str, ...] = ()
    """What corrections and searches did, a sentence each."""
    half: bool = False
    """Whether the graph is in float16, and has no integers."""
