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


UINT8 = IntegerType(name="uint8", low=0, high=255, symmetric=False)
INT8 = IntegerType(name="int8", low=-128, high=127, symmetric=False)
INT8_SYMMETRIC = IntegerType(name="int8", low=-128, high=127, symmetric=True)
INT8_NARROW = IntegerType(name="int8", low=-127, high=127, symmetric=True)


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
    activation_functions: frozenset[str] = frozenset({"Relu", "Clip"})
    """Folded into the weighted operator before them: the quantizer stands behind them."""
    pair_sum_limit: int | None = None
    """Largest magnitude that two integer weights of one sign in one output channel may add up to; None without limit.

    Processors without VNNI multiply unsigned by signed bytes in pairs and add each pair in 16 bits, with saturation
    (vpmaddubsw): 255 · 128 = 32,640 is the largest multiple that fits. Depthwise convolutions are computed another
    way, product by product, and are exempt.
    """
    minimum_channels: int = 1
    """A convolution or matrix product with fewer input or output channels stays in float."""


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
)


def _variant(base: Scheme, **changes: object) -> Scheme:
    from dataclasses import replace

    return replace(base, **changes)  # type: ignore[arg-type]


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        _ONNXRUNTIME,
        _variant(_ONNXRUNTIME, name="onnxruntime-x86", pair_sum_limit=128),
        _variant(_ONNXRUNTIME, name="onnxruntime-arm64", activations=INT8),
        _variant(_ONNXRUNTIME, name="openvino", bias="float"),
        Scheme(
            name="tensorrt",
            activations=INT8_SYMMETRIC,
            weights=INT8_NARROW,
            bias="float",
            placement="inputs",
            weighted=_WEIGHTED,
            elementwise=frozenset({"GlobalAveragePool", "AveragePool"}),
            transparent=_TRANSPARENT,
            minimum_channels=16,
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
