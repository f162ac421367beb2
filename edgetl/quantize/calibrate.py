"""One streaming pass over calibration samples: every activation becomes a sketch, none is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, ModelError
from edgetl.quantize.graph import fixed_batch
from edgetl.quantize.sketch import BUCKETS, Sketch
from edgetl.runtime.runner import Runner

if TYPE_CHECKING:
    import onnx_ir as ir

_COPIES = 2
"""Of every activation alive at once: the engine's own buffer, and the array that it hands over."""

OpenRunner = Callable[[Path], Runner]
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What calibration found out about a model, independent of any engine."""

    sketches: Mapping[str, Sketch]
    """By activation."""
    samples: int
    """How many samples were seen."""


def calibrate(
    model: ir.Model,
    names: list[str],
    batches: Iterable[NDArray[np.float32]],
    *,
    open_runner: OpenRunner,
    memory_mb: int = 256,
    progress: Progress | None = None,
    describe: Callable[[int], str] = str,
) -> Statistics:
    """Collect the statistics of activations.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`, with one float32 input; not changed.
        names: Activations of the model, from :func:`edgetl.quantize.placement.points`.
        batches: float32 arrays of shape (N, ...), N arbitrary and changing.
        open_runner: Opens an ONNX file that outputs the activations.
        memory_mb: How many MB of activations may be alive at once. Where a single sample has more, the activations
            are computed in several groups.
        progress: Called with the number of samples after each step.
        describe: Names the sample of an index, for the message about a bad one.

    Raises:
        DataError: There is no sample, or a sample makes an activation NaN or infinite; both are named.
        ModelError: The model has more than one input.
    """
    if len(model.graph.inputs) != 1:
        raise ModelError(
            f"calibration feeds one input; the model has {', '.join(str(v.name) for v in model.graph.inputs)}"
        )
    budget = memory_mb * 1_000_000 // _COPIES
    groups, per_sample = _groups(model, names, budget)
    fixed = fixed_batch(model)
    step = fixed or int(np.clip(budget // max(per_sample, 1), 1, 32))
    input_name = str(model.graph.inputs[0].name)
    sketches = {name: _Accumulator() for name in names}
    seen = 0
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder, ExitStack() as stack:
        runners = [
            stack.enter_context(open_runner(_with_outputs(model, group, Path(folder) / f"group{number}.onnx")))
            for number, group in enumerate(groups)
        ]
        for batch in batches:
            for start in range(0, len(batch), step):
                part = np.ascontiguousarray(batch[start : start + step], dtype=np.float32)
                if input_name in sketches:
                    _add(sketches[input_name], input_name, part, describe, seen)
                for runner in runners:
                    outputs = runner.run({input_name: _filled(part, fixed)})
                    for name in list(outputs):
                        if name in sketches and name != input_name:
                            values = outputs.pop(name)
                            own = values[: len(part)] if values.ndim and len(values) == fixed else values
                            _add(sketches[name], name, own, describe, seen)
                seen += len(part)
                if progress:
                    progress(seen)
    if not seen:
        raise DataError("there is no calibration sample")
    return Statistics(sketches={name: found.sketch() for name, found in sketches.items()}, samples=seen)


def save(statistics: Statistics, folder: Path) -> None:
    """Write ``calibration.npz`` into a folder: per activation its filled buckets, extremes and channel sums."""
    arrays: dict[str, NDArray[np.generic]] = {"samples": np.asarray(statistics.samples)}
    arrays["names"] = np.asarray(list(statistics.sketches))
    for index, sketch in enumerate(statistics.sketches.values()):
        filled = np.flatnonzero(sketch.counts)
        arrays[f"{index}_buckets"], arrays[f"{index}_counts"] = filled.astype(np.uint16), sketch.counts[filled]
        arrays[f"{index}_extremes"] = np.asarray([sketch.low, sketch.high])
        arrays[f"{index}_channel_sums"] = sketch.channel_sums
    np.savez(folder / "calibration.npz", **arrays)  # type: ignore[arg-type]


def load(folder: Path) -> Statistics:
    """The inverse of :func:`save`."""
    sketches = {}
    with np.load(folder / "calibration.npz", allow_pickle=False) as arrays:
        for index, name in enumerate(arrays["names"].tolist()):
            counts = np.zeros(BUCKETS, dtype=np.int64)
            counts[arrays[f"{index}_buckets"]] = arrays[f"{index}_counts"]
            low, high = arrays[f"{index}_extremes"].tolist()
            sums = arrays[f"{index}_channel_sums"]
            sketches[name] = Sketch(counts=counts, low=low, high=high, channel_sums=sums)
        return Statistics(sketches=sketches, samples=int(arrays["samples"]))


class _Accumulator:
    """A sketch under construction; merging frozen ones would copy 512 KB per tensor and step."""

    def __init__(self) -> None:
        self.counts = np.zeros(BUCKETS, dtype=np.int64)
        self.low, self.high = np.inf, -np.inf
        self.channel_sums: NDArray[np.float64] = np.zeros(0)

    def add(self, part: Sketch) -> None:
        self.counts += part.counts
        self.low, self.high = min(self.low, part.low), max(self.high, part.high)
        self.channel_sums = self.channel_sums + part.channel_sums if self.channel_sums.size else part.channel_sums

    def sketch(self) -> Sketch:
        return Sketch(counts=self.counts, low=self.low, high=self.high, channel_sums=self.channel_sums)


def _filled(part: NDArray[np.float32], fixed: int | None) -> NDArray[np.float32]:
    """A batch of the size that the model is fixed to; what is missing is copies of the last sample."""
    missing = (fixed or 0) - len(part)
    return np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing > 0 else part


def _add(
    found: _Accumulator, name: str, values: NDArray[np.generic], describe: Callable[[int], str], seen: int
) -> None:
    part = Sketch.of(values.astype(np.float32, copy=False))
    if not part.finite:
        bad = ~np.isfinite(values.astype(np.float32, copy=False))
        samples = np.flatnonzero(bad.reshape(len(values), -1).any(axis=1)) if values.ndim else np.zeros(1, dtype=int)
        raise DataError(
            f"calibration sample {describe(seen + int(samples[0]))} makes the activation '{name}' NaN or infinite",
            hint="look at that sample, and at the model's weights: one of them holds NaN or an overflow",
        )
    found.add(part)


def _groups(model: ir.Model, names: list[str], budget: int) -> tuple[list[list[str]], int]:
    """Activations in groups that each fit the budget at one sample, and the bytes per sample of the largest."""
    sizes = dict.fromkeys(names, 0)
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.name in sizes and value.shape is not None:
            sizes[value.name] = 4 * int(np.prod([size if isinstance(size, int) else 1 for size in value.shape]))
    groups: list[list[str]] = [[]]
    filled = largest = 0
    for name in names:
        if groups[-1] and filled + sizes[name] > budget:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += sizes[name]
        largest = max(largest, filled)
    return groups, largest


def _with_outputs(model: ir.Model, names: list[str], path: Path) -> Path:
    """Save a copy of the model that outputs the named activations too."""
    import onnx_ir as ir

    copy = model.clone()
    graph = copy.graph
    there = {value.name for value in graph.outputs}
    found = {output.name: output for node in graph for output in node.outputs}
    found.update({value.name: value for value in graph.inputs})
    for name in names:
        value = found[name]
        if name not in there and not value.is_graph_input():
            if value.dtype is None:
                value.dtype = ir.DataType.FLOAT
            graph.outputs.append(value)
    ir.save(copy, path)
    return path
