"""What a build wrote down about the graph of an int8 engine, in a bundle's ``reports/quantization.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgetl.diagnosis import scales
from edgetl.errors import BundleError
from edgetl.runtime.bundle import Bundle, EngineEntry


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
        path = bundle.folder / "reports" / "quantization.json"
        if engine.precision != "int8":
            return cls()
        if not path.exists():
            return cls(known=False)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            graph = next((graph for graph in document["graphs"] if engine.target in graph["targets"]), None)
            params, notes = (graph["params"], graph["notes"]) if graph else ({}, {})
            in_biases, weights = notes.get("zero_points_in_biases", ()), notes.get("weights")
            return cls(
                chosen={
                    name: scales.Chosen(scale=float(scale), low=float(low), in_bias=name in in_biases)
                    for name, (scale, _, low, _) in params.items()
                },
                resized=any(document.get("changes", {}).values()),
                clips=weights is None or weights["method"] == "percentile",
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise BundleError(f"{path} cannot be read: {error!r}", hint="build the bundle again") from None
