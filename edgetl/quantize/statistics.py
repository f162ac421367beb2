"""The artifact of calibration: the sketches of a model's activations, and what they were taken of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import ModelError, not_imported
from edgetl.quantize.exactsum import ExactSum
from edgetl.quantize.sketch import BUCKETS, Sketch

SCHEMA = 2
_ARRAYS, _FACTS = "calibration.safetensors", "calibration.json"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What calibration found out about a model, independent of any engine and of any recipe."""

    sketches: Mapping[str, Sketch]
    """By activation."""
    samples: int
    """How many samples were seen."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """What was calibrated with what, in plain JSON values: digests of the model, of the data (whatever its order) and
    of the preprocessing."""


def save(statistics: Statistics, folder: Path) -> None:
    """Write ``calibration.safetensors`` (filled buckets, extremes, sums by activation) and ``calibration.json``.

    Raises:
        MissingExtraError: safetensors is not installed.
    """
    arrays: dict[str, NDArray[Any]] = {}
    facts = []
    for index, (name, sketch) in enumerate(statistics.sketches.items()):
        filled = np.flatnonzero(sketch.counts)
        arrays[f"{index}.buckets"], arrays[f"{index}.counts"] = filled.astype(np.uint16), sketch.counts[filled]
        arrays[f"{index}.channel_low"], arrays[f"{index}.channel_high"] = sketch.channel_low, sketch.channel_high
        arrays[f"{index}.sample_lows"], arrays[f"{index}.sample_highs"] = sketch.sample_lows, sketch.sample_highs
        for key, sums in (("sums", sketch.channel_sums), ("squares", sketch.channel_squares)):
            arrays[f"{index}.{key}.places"], arrays[f"{index}.{key}.digits"] = sums.rows()
        facts.append(
            {
                "name": name,
                "values": sketch.total,
                "channels": sketch.channel_low.size,
                "low": sketch.low,
                "high": sketch.high,
                "mean": sketch.mean,
                "mean_square": sketch.mean_square,
            }
        )
    document = {
        "schema": SCHEMA,
        "samples": statistics.samples,
        "source": dict(statistics.source),
        "activations": facts,
    }
    _library().save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, folder / _ARRAYS)
    (folder / _FACTS).write_text(json.dumps(document, indent=1), encoding="utf-8")


def load(folder: Path) -> Statistics:
    """The inverse of :func:`save`.

    Raises:
        ModelError: There is no calibration in the folder, or not one of this version.
        MissingExtraError: safetensors is not installed.
    """
    library = _library()
    try:
        document = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']}, this edgetl reads {SCHEMA}")
        arrays = library.load_file(folder / _ARRAYS)
        sketches = {fact["name"]: _sketch(arrays, index) for index, fact in enumerate(document["activations"])}
        return Statistics(sketches=sketches, samples=document["samples"], source=document["source"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, library_error()) as error:
        raise ModelError(
            f"{folder} holds no calibration that this edgetl can read: {error}", hint="edgetl calibrate makes one"
        ) from None


def library_error() -> type[Exception]:
    """What safetensors raises about a broken file; it has no public base of its own among Python's errors."""
    from safetensors import SafetensorError

    error: type[Exception] = SafetensorError
    return error


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise not_imported(error, "safetensors", extra="export", needed_for="the artifact of a calibration") from None
    return safetensors.numpy


def _sketch(arrays: Mapping[str, NDArray[Any]], index: int) -> Sketch:
    counts = np.zeros(BUCKETS, dtype=np.int64)
    counts[arrays[f"{index}.buckets"]] = arrays[f"{index}.counts"]
    sums, squares = (
        ExactSum.of_rows(arrays[f"{index}.{key}.places"], arrays[f"{index}.{key}.digits"])
        for key in ("sums", "squares")
    )
    return Sketch(
        counts=counts,
        channel_low=arrays[f"{index}.channel_low"],
        channel_high=arrays[f"{index}.channel_high"],
        channel_sums=sums,
        channel_squares=squares,
        sample_lows=arrays[f"{index}.sample_lows"],
        sample_highs=arrays[f"{index}.sample_highs"],
    )
