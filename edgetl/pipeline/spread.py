"""What a benchmark kept beside percentiles, for the report: times of single calls, the machine and its ceilings."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgetl.benchmark import telling
from edgetl.benchmark.ceilings import device_of
from edgetl.report import machine, model

_LEAST = 20
"""Times that make a distribution worth drawing."""
_MOST = 400
"""Of a distribution that are kept."""


def distributions(details: Mapping[str, Any]) -> tuple[model.Distribution, ...]:
    """Of everything that was timed, where the benchmark kept its histogram, and it can be read here.

    Args:
        details: Of bench.json; "histogram" has by name an HdrHistogram of the times in nanoseconds, or None where the
            package hdrhistogram was not there.
    """
    histograms = details.get("histogram") or {}
    made = []
    for name, text in histograms.items():
        counts = dict(_recorded(text)) if text else {}
        samples = sum(counts.values())
        if samples >= _LEAST:
            made.append(model.Distribution(name=name, times_ms=_at_even_ranks(counts, samples), samples=samples))
    return tuple(made)


def conditions(details: Mapping[str, Any]) -> tuple[machine.Condition, ...]:
    """What the machine's sensors said, where they were read; see :func:`edgetl.benchmark.telling.told`."""
    found = details.get("conditions")
    return tuple(machine.Condition(**vars(each)) for each in telling.told(found)) if found else ()


def ceilings(details: Mapping[str, Any]) -> tuple[machine.Ceilings, ...]:
    """What the machine can do at most, by device; see :meth:`edgetl.benchmark.ceilings.Ceilings.to_json`."""
    return tuple(
        machine.Ceilings(
            device=device,
            products=tuple((name, each["multiply_adds_per_s"], each["by"]) for name, each in found["products"].items()),
            bandwidth=tuple((entry["bytes"], entry["bytes_per_s"]) for entry in found["bandwidth"]),
        )
        for device, found in (details.get("ceilings") or {}).items()
    )


def rooflines(details: Mapping[str, Any]) -> tuple[machine.Roofline, ...]:
    """Of everything that was timed; see :meth:`edgetl.benchmark.roofline.Roofline.to_json`."""
    return tuple(
        machine.Roofline(
            name=name,
            least_ms=found["least_ms"],
            share=found["share"],
            device=_device(found["layers"]),
            limits=tuple(found["limits"].items()),
            layers=tuple(
                machine.RooflineLayer(
                    name=layer["name"],
                    kind=layer["kind"],
                    precision=layer["precision"],
                    multiply_adds=layer["multiply_adds"],
                    bytes=layer["weight_bytes"] + layer["activation_bytes"],
                    time_ms=layer["time_ms"],
                    least_ms=layer["least_ms"],
                    limit=layer["limit"],
                )
                for layer in found["layers"]
            ),
            reason=found["reason"],
        )
        for name, found in (details.get("roofline") or {}).items()
    )


def energies(details: Mapping[str, Any], name: str) -> tuple[machine.Energy, ...]:
    """Of one call of something that was timed; see :class:`edgetl.benchmark.sensors.energy.Energy`."""
    return tuple(
        machine.Energy(
            sensor=found["sensor"],
            per_call_mj=_milli(found["per_inference_j"]),
            above_rest_mj=_milli(found["above_idle_per_inference_j"]),
            why=found["why"],
        )
        for found in details.get("energy", {}).get(name, ())
    )


def _milli(value: float | None) -> float | None:
    return None if value is None else 1e3 * value


def _device(layers: Sequence[Mapping[str, Any]]) -> str:
    """The device that does most of the multiply-adds; "cpu" where there are none."""
    done: Counter[str] = Counter({"cpu": 0})
    for layer in layers:
        done[device_of(layer["provider"]) or ""] += layer["multiply_adds"]
    return done.most_common(1)[0][0]


def _recorded(text: str) -> Iterator[tuple[int, int]]:
    """Time in nanoseconds (to three digits) and calls that took it, ascending; none without the package."""
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError:  # the report has its percentiles all the same
        return
    for found in HdrHistogram.decode(text).get_recorded_iterator():
        yield found.value_iterated_to, found.count_at_value_iterated_to


def _at_even_ranks(counts: Mapping[int, int], samples: int) -> tuple[float, ...]:
    """Times in milliseconds, ascending; the first and the last of all are among them."""
    kept = min(samples, _MOST)
    ranks = sorted({round(step * (samples - 1) / (kept - 1)) for step in range(kept)})
    ends = list(itertools.accumulate(counts.values()))
    values = iter(zip(counts, ends, strict=True))
    value, end = next(values)
    times = []
    for rank in ranks:
        while rank >= end:
            value, end = next(values)
        times.append(value / 1e6)
    return tuple(times)
