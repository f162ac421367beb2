"""What a manifest must hold before anything is opened by it: a bundle with a valid signature may still be malformed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgetl.errors import BundleError

_STATUSES = ("ready", "built", "build-on-device")
_SHARES = ("agreement", "score", "score_reference")
"""Numbers of an engine's parity from 0 to 1."""
_NAMES = ("target", "precision", "folder", "backend", "provider")
"""Of an engine, that are text."""


def refuse_malformed(manifest: Mapping[str, Any], where: str) -> None:
    """Refuse values that no build writes, before they become a traceback or a comparison that is never true.

    Args:
        manifest: Read from JSON.
        where: Its file, for the message.

    Raises:
        BundleError: A value is of another kind, or outside its range; the message names it.
        KeyError: A part that every bundle has is missing; also TypeError and AttributeError, where it is no such part.
    """
    for name, value, fits, wanted in _held(manifest):
        if not fits:
            raise BundleError(f"{where}: {name} is {_short(value)}, not {wanted}", hint="build the bundle again")


def _held(manifest: Mapping[str, Any]) -> list[tuple[str, Any, bool, str]]:
    """Name, value, whether it is what it must be, and what that is."""
    labels, inputs = manifest["labels"], manifest["inputs"]
    found: list[tuple[str, Any, bool, str]] = [
        ("labels", labels, isinstance(labels, list) and all(isinstance(name, str) for name in labels), "names"),
        ("task", manifest["task"], isinstance(manifest["task"], str), "a name"),
        ("inputs", inputs, isinstance(inputs, list) and bool(inputs), "a list of one input or more"),
    ]
    if found[-1][2]:
        batch = inputs[0].get("batch", [1, 1])
        found += [
            ("inputs.name", inputs[0]["name"], isinstance(inputs[0]["name"], str), "a name"),
            ("inputs.batch", batch, _is_batch(batch), "the smallest and the largest batch"),
        ]
    engines = manifest["engines"]
    found.append(("engines", engines, isinstance(engines, list) and bool(engines), "a list of one engine or more"))
    for engine in engines:
        found += _held_of(engine, f"{engine['target']} {engine['precision']}")
    return found


def _held_of(engine: Mapping[str, Any], name: str) -> list[tuple[str, Any, bool, str]]:
    parity, latency, status = engine.get("parity", {}), engine["latency"], engine["status"]
    found: list[tuple[str, Any, bool, str]] = [
        (f"the status of {name}", status, status in _STATUSES, f"one of {', '.join(_STATUSES)}"),
        (f"the parity of {name}", parity, isinstance(parity, dict), "an object"),
        (f"the latency of {name}", latency, isinstance(latency, dict), "an object"),
        *((f"the {key} of {name}", engine[key], isinstance(engine[key], str), "a name") for key in _NAMES),
    ]
    if not all(fits for *_, fits, _ in found):
        return found
    for key in _SHARES:
        value = parity.get(key)
        fits = value is None or (_is_number(value) and 0.0 <= value <= 1.0)
        found.append((f"the {key} of {name}", value, fits, "a share from 0 to 1"))
    samples, sqnr_db, p50_ms = parity.get("samples"), parity.get("sqnr_db"), latency.get("p50_ms", 0.0)
    counted = samples is None or (type(samples) is int and samples >= 0)
    return [
        *found,
        (f"the samples of {name}", samples, counted, "a number of samples"),
        (f"the sqnr_db of {name}", sqnr_db, sqnr_db is None or _is_number(sqnr_db), "a finite number"),
        (f"the p50_ms of {name}", p50_ms, _is_number(p50_ms), "a finite number"),
    ]


def _is_batch(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) == 2 and all(type(size) is int for size in value)
    return whole and 1 <= value[0] <= value[1]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} …"
