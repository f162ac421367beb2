"""What a build wrote down about the graph of an int8 engine, in a bundle's ``reports/quantization.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgetl.diagnosis import scales
from edgetl.errors import BundleError
from edgetl.runtime.bundle import Bundle, EngineEntry

RECORD = "reports/quantization.json"
"""In a bundle."""
SCHEMA = 1
"""Of that file."""
_HALF = "float16"
"""Scheme of the graphs there that have no integers."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a build wrote down about the graph of an engine."""

    chosen: Mapping[str, scales.Chosen] = field(default_factory=dict)
    """Activation → what calibration chose."""
    resized: bool = False
    """Whether the recipe moved sizes between channels: equalization, outlier channels, smoothing."""
    clips: bool = True
    """Whether the recipe may cut weights off on purpose: ranges of a percentile do, and older builds do not tell."""
    known: bool = True
    """Whether a build wrote down what its recipe did: where it did not, weights may have been changed on purpose."""

    @classmethod
    def of(cls, bundle: Bundle, engine: EngineEntry) -> Recorded:
        """Read it; of a precision without integers there is nothing.

        Raises:
            BundleError: It is no such record.
        """
        path = bundle.folder / RECORD
        if engine.precision != "int8":
            return cls()
        if not path.exists():
            return cls(known=False)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                raise ValueError("it has another schema")
            whole = [graph for graph in document["graphs"] if graph["scheme"] != _HALF]
            graphs = {target: graph for graph in whole for target in graph["targets"]}
            if engine.target not in graphs:
                raise ValueError(f"it has no graph of {engine.target}, but of {', '.join(graphs) or 'none'}")
            params, notes = graphs[engine.target]["params"], graphs[engine.target]["notes"]
            in_biases, weights = notes.get("zero_points_in_biases", ()), notes.get("weights")
            return cls(
                chosen={
                    name: _chosen(name, float(scale), float(low), in_bias=name in in_biases)
                    for name, (scale, _, low, _) in params.items()
                },
                resized=any(document["changes"].values()),
                clips=weights is None or weights["method"] == "percentile",
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise BundleError(f"{path} cannot be read: {why}", hint="build the bundle again") from None


def _chosen(name: str, scale: float, low: float, *, in_bias: bool) -> scales.Chosen:
    if not scales.is_scale(scale) or not math.isfinite(low):
        raise ValueError(f"of the tensor '{name}' it has the scale {scale} and the range from {low}")
    return scales.Chosen(scale=scale, low=low, in_bias=in_bias)
