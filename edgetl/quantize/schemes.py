"""How each engine wants to be quantized, as data. Sources are in docs/schemes.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgetl import tomlfile
from edgetl.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True)
class IntegerType:
    """The integers that real values are mapped to."""

    name: Literal["uint8", "int8"]
    low: int
    high: int
    symmetric: bool
    """True: the zero point is 0."""
    scale_type: Literal["float32", "float16"] = "float32"
    """Type of the scale in the graph, and of what is quantized."""
    signed: IntegerType | None = None
    """What a tensor of both signs is quantized to where a zero point costs the engine time: as input of a convolution
    whose bias cannot take it, where that adds little noise; as factor of a product of activations always."""


UINT8 = IntegerType(name="uint8", low=0, high=255, symmetric=False)
INT8 = IntegerType(name="int8", low=-128, high=127, symmetric=False)
INT8_SYMMETRIC = IntegerType(name="int8", low=-128, high=127, symmetric=True)
INT8_NARROW = IntegerType(name="int8", low=-127, high=127, symmetric=True)
UINT8_OR_SIGNED = IntegerType(name="uint8", low=0, high=255, symmetric=False, signed=INT8_SYMMETRIC)


INT8_HALF = IntegerType(name="int8", low=-128, high=127, symmetric=True, scale_type="float16")
INT8_NARROW_HALF = IntegerType(name="int8", low=-127, high=127, symmetric=True, scale_type="float16")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Where Q/DQ pairs stand and what they hold, for one engine."""

    name: str
    activations: IntegerType
    weights: IntegerType
    bias: Literal["int32", "float"]
    """int32: a DequantizeLinear of scale activation × weight; float: left as it is."""
    placement: Literal["inputs-and-outputs", "inputs"]
    """Around every input and output of a quantized node, or on inputs alone, with one branch of a residual Add."""
    weighted: frozenset[str]
    """Operators with weights that are quantized per output channel."""
    elementwise: frozenset[str]
    """Operators without weights that the engine computes in integers where all their inputs are quantized."""
    transparent: frozenset[str]
    """Operators that only move values: input and output share one quantization."""
    float_outputs: frozenset[str] = frozenset({"MatMul", "Gemm"})
    """Weighted operators that may put out floats: their outputs are quantized only for a consumer in integers."""
    activation_products: int | None = None
    """Rows (tokens) of the first factor from which on matrix products of two activations, as those of attention, are
    computed in integers: of shorter ones quantizing takes what the products save. None: all stay in float."""
    zero_points_in_bias: frozenset[str] = frozenset()
    """Weighted operators that pay for a zero point at their input: it goes into their bias, unless they pad."""
    activation_functions: frozenset[str] = frozenset({"Relu", "Clip"})
    """Folded into the weighted operator before them: the quantizer stands behind them."""
    shared_scales: frozenset[str] = frozenset()
    """Operators whose inputs and output are to have one quantization, or the engine would quantize anew between."""
    pair_sums_saturate: bool = False
    """Whether the processor multiplies unsigned by signed bytes in pairs and adds each pair in 16 bits, with saturation
    (vpmaddubsw): weights are then rounded so that no pair can. See :mod:`edgetl.quantize.saturation`."""
    pairs_behind_transparent: bool = True
    """Whether an operator that only moves values has a pair behind it, too, or moves the integers between two."""
    minimum_channels: int = 1
    """A convolution or matrix product with fewer input or output channels stays in float."""
    dynamic: bool = False
    """Whether the engine multiplies integers whose scale is found at run time (MatMulInteger) faster than floats."""
    rest: Literal["float32", "float16"] = "float32"
    """What everything that is not quantized computes in; float16 is converted in the graph."""


_TRANSPARENT = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})

_ONNXRUNTIME = Scheme(
    name="onnxruntime-x86-vnni",
    activations=UINT8,
    weights=INT8_NARROW,
    bias="int32",
    placement="inputs-and-outputs",
    weighted=_WEIGHTED,
    elementwise=frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"}),
    transparent=_TRANSPARENT,
    dynamic=True,
)
_TENSORRT = Scheme(
    name="tensorrt",
    activations=INT8_HALF,
    weights=INT8_NARROW_HALF,
    bias="float",
    placement="inputs",
    weighted=_WEIGHTED,
    elementwise=frozenset({"GlobalAveragePool", "AveragePool"}),
    transparent=_TRANSPARENT,
    shared_scales=frozenset({"Concat"}),
    minimum_channels=16,
    rest="float16",
)


def _variant(base: Scheme, **changes: object) -> Scheme:
    from dataclasses import replace

    return replace(base, **changes)  # type: ignore[arg-type]


# OpenVINO computes most activation functions behind a convolution with it, in the same pass over the output: a pair
# between the two would part them. It folds no pair behind an operator that only moves values, and quantizes anew
# between the scales of a Concat's inputs. It does not guard itself against saturation (docs/saturation.md). Zero points
# at the inputs of its products cost it some 5% of EfficientNet-Lite0 and ViT-tiny. It fuses attention into an operator
# that multiplies signed bytes without zero points, which takes 8% off MiniLM; with zero points float is faster.
_OPENVINO = _variant(
    _ONNXRUNTIME,
    name="openvino-vnni",
    activations=UINT8_OR_SIGNED,
    bias="float",
    # A convolution may put out floats too. A pair behind the patch embedding of a vision transformer makes OpenVINO
    # 2026.4 quantize what its class token is joined with, at a cost of 20 dB.
    float_outputs=frozenset({"Conv", "MatMul", "Gemm"}),
    zero_points_in_bias=frozenset({"Conv", "MatMul", "Gemm"}),
    activation_products=96,
    dynamic=False,
    pairs_behind_transparent=False,
    shared_scales=frozenset({"Concat"}),
    activation_functions=frozenset({"Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Elu", "LeakyRelu"}),
)

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        _ONNXRUNTIME,
        _variant(_ONNXRUNTIME, name="onnxruntime-x86", pair_sums_saturate=True),
        _variant(_ONNXRUNTIME, name="onnxruntime-arm64", activations=INT8),
        # Without VNNI signed bytes are multiplied as unsigned ones, with weights of half the size (oneDNN).
        _variant(_OPENVINO, name="openvino", activations=UINT8, activation_products=None, pair_sums_saturate=True),
        _OPENVINO,
        _TENSORRT,
        # DLA computes whole subgraphs in int8: every tensor between its layers needs a scale.
        _variant(
            _TENSORRT,
            name="tensorrt-dla",
            placement="inputs-and-outputs",
            elementwise=frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"}),
            float_outputs=frozenset(),
            minimum_channels=1,
        ),
    )
}


def scheme(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        UnknownNameError: There is none.
    """
    try:
        return SCHEMES[name]
    except KeyError:
        raise UnknownNameError(
            f"there is no quantization scheme '{name}'; {tomlfile.did_you_mean(name, SCHEMES)}"
        ) from None
