"""How near a latency is to what the machine could do: S. Williams et al., "Roofline", CACM 52 (2009), layer by layer.

A layer can be no faster than its multiply-adds at their precision's ceiling, and no faster than its bytes at the
memory's. Weights are met again only at the next inference, so that all of them compete for the caches: their bandwidth
is that of so many bytes. Activations were written by the layer before: theirs is that of their own size. The least time
of a network is the sum over its layers, which run one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgetl.benchmark.ceilings import Ceilings, device_of
from edgetl.runtime.runner import UNKNOWN

MEMORY = "memory"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A node of an engine's optimised graph, as it ran on the timed inputs."""

    name: str
    kind: str
    precision: str
    provider: str
    multiply_adds: int
    weight_bytes: int
    activation_bytes: int
    time_ms: float | None
    """Median, in a profile; None: the engine does not time it."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """A layer with the least time that the machine needs for it."""

    layer: Layer
    least_ms: float
    limit: str
    """What keeps it from being faster: the precision of its multiply-adds, or "memory"."""

    @property
    def share(self) -> float | None:
        """Of the machine's ceiling that the layer reached in the profile; None where it was not timed."""
        return self.least_ms / self.layer.time_ms if self.layer.time_ms else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.layer.to_json(), "least_ms": self.least_ms, "limit": self.limit}


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What a machine could do at most with one engine."""

    least_ms: float | None
    """Of an inference; None where it is not known."""
    layers: tuple[Bounded, ...] = ()
    reason: str = ""
    """Why it is not known."""

    @property
    def limits(self) -> dict[str, float]:
        """What limits → share of the least time that it accounts for, largest first."""
        found: dict[str, float] = {}
        for each in self.layers:
            found[each.limit] = found.get(each.limit, 0.0) + each.least_ms
        total = sum(found.values())
        return {name: part / total for name, part in sorted(found.items(), key=lambda item: -item[1])} if total else {}

    def share(self, p50_ms: float) -> float | None:
        """Of what the machine could do: 1 is the ceiling itself.

        Args:
            p50_ms: The measured median.
        """
        return self.least_ms / p50_ms if self.least_ms is not None and p50_ms else None

    def to_json(self, p50_ms: float) -> dict[str, Any]:
        """Plain values.

        Args:
            p50_ms: The measured median.

        Returns:
            least_ms; share: of this machine's ceiling that the median reached; limits, layers and reason.
        """
        return {
            "least_ms": self.least_ms,
            "share": self.share(p50_ms),
            "limits": self.limits,
            "layers": [each.to_json() for each in self.layers],
            "reason": self.reason,
        }


def roofline(layers: Sequence[Layer], ceilings: Mapping[str, Ceilings], *, reason: str = "") -> Roofline:
    """What the machine could do at most with an engine.

    Args:
        layers: All that it runs.
        ceilings: By device.
        reason: Why the layers are not known, where they are not.
    """
    if not any(layer.multiply_adds for layer in layers):
        return Roofline(least_ms=None, reason=reason or "the engine does not tell how much it computes")
    weights = sum(layer.weight_bytes for layer in layers)
    found = []
    for layer in layers:
        device = device_of(layer.provider)
        known = ceilings.get(device) if device else None
        if known is None:
            return Roofline(least_ms=None, reason=f"the ceilings of {layer.provider or 'its device'} were not measured")
        bounded = _bounded(layer, known, weights)
        if isinstance(bounded, str):
            return Roofline(least_ms=None, reason=bounded)
        found.append(bounded)
    return Roofline(least_ms=sum(each.least_ms for each in found), layers=tuple(found))


def _bounded(layer: Layer, ceilings: Ceilings, weights: int) -> Bounded | str:
    """The layer's bound, or why there is none."""
    compute_s = 0.0
    if layer.multiply_adds:
        if layer.precision == UNKNOWN:
            return f"the engine does not tell what '{layer.name}' computes in"
        ceiling = ceilings.products.get(layer.precision)
        if ceiling is None:
            why = ceilings.unknown.get(layer.precision, "it was not measured")
            return f"there is no ceiling of {layer.precision}: {why}"
        compute_s = layer.multiply_adds / ceiling.multiply_adds_per_s
    memory_s = 0.0
    for moved, size in ((layer.weight_bytes, weights), (layer.activation_bytes, layer.activation_bytes)):
        rate = ceilings.bytes_per_s(size)
        if moved and rate is None:
            return "the bandwidth of its memory was not measured"
        memory_s += moved / rate if moved and rate else 0.0
    limit = layer.precision if compute_s >= memory_s else MEMORY
    return Bounded(layer=layer, least_ms=1e3 * max(compute_s, memory_s), limit=limit)
