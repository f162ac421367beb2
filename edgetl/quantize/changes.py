"""Changes of the float graph before quantization: it computes the same, and quantizes better."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize import calibrate as calibration
from edgetl.quantize import equalization, insertion, layers, smoothing, smoothing_groups
from edgetl.quantize.placement import points
from edgetl.quantize.recipes import CORRECTION_SAMPLES, REPORT_SAMPLES, Tools, calibrate, candidates, feeds_of
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.statistics import Statistics
from edgetl.specs import Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

_JUDGE = SCHEMES["onnxruntime-x86-vnni"]
"""The scheme by which changes are judged: they are made once for all targets."""
_ROWS = 2048
"""Rows of an activation for the search of SmoothQuant's strength."""


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A float graph that computes the same, and quantizes better."""

    model: ir.Model
    statistics: Statistics
    """Of the changed graph."""
    equalized: tuple[equalization.Equalized, ...] = ()
    smoothed: tuple[smoothing.Smoothed, ...] = ()


def change(model: ir.Model, statistics: Statistics, recipe: Recipe, tools: Tools) -> Changed:
    """Equalize and smooth a float graph, and calibrate it again.

    SmoothQuant chooses group by group what serves the products behind it. What stays is what serves the graph's output
    best: all groups, those alone whose factors a normalisation takes, or none.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
        statistics: Of it.
        recipe: Which changes.
        tools: What to do it with.
    """
    copy = model.clone()
    equalized: tuple[equalization.Equalized, ...] = ()
    if recipe.equalization == "cross-layer":
        reach = {name: sketch.channel_reach for name, sketch in statistics.sketches.items()}
        equalized = equalization.equalize(copy, reach)
        statistics = calibrate(copy, tools)
    names = [group.activation for group in smoothing_groups.groups(copy)] if recipe.smoothing == "search" else []
    if not names:
        return Changed(model=copy, statistics=statistics, equalized=equalized)
    if not set(points(copy, [_JUDGE])) <= set(statistics.sketches):
        statistics = calibrate(copy, tools)
    rows = _rows(copy, names, tools)
    few = feeds_of(model, tools, REPORT_SAMPLES)
    wanted = layers.first_outputs(model, few, open_runner=tools.open_runner)
    plain_db = best_db = _tried_db(copy, statistics, recipe, wanted, few, tools)
    best = Changed(model=copy, statistics=statistics, equalized=equalized)
    tried = []
    for chosen in _choices(copy, rows):
        smooth = copy.clone()
        smoothed = smoothing.smooth(smooth, chosen)
        after = calibrate(smooth, tools)
        tried.append((_tried_db(smooth, after, recipe, wanted, few, tools), smoothed))
        if tried[-1][0] >= best_db:
            best_db = tried[-1][0]
            best = Changed(model=smooth, statistics=after, equalized=equalized, smoothed=smoothed)
    if best.smoothed:
        return best
    reason = f"all groups together take the output's SQNR from {plain_db:.1f} to {tried[0][0]:.1f} dB"
    off = tuple(
        replace(each, alpha=None, error=each.error_off, lowest=1.0, highest=1.0, reason=reason) for each in tried[0][1]
    )
    return replace(best, smoothed=off)


def _choices(model: ir.Model, rows: dict[str, NDArray[np.float32]]) -> list[dict[str, NDArray[np.float32]]]:
    """The rows of all groups; and of those alone whose factors cost no node, where there are others beside them."""
    folded = {group.activation for group in smoothing_groups.groups(model) if group.norm is not None}
    alone = {name: found for name, found in rows.items() if name in folded}
    return [rows, alone] if alone and len(alone) < len(rows) else [rows]


def _tried_db(
    model: ir.Model,
    statistics: Statistics,
    recipe: Recipe,
    wanted: Sequence[NDArray[np.float64]],
    batches: Sequence[Mapping[str, NDArray[np.generic]]],
    tools: Tools,
) -> float:
    """SQNR of the output in dB, quantized by a recipe without its searches and corrections, for a CPU."""
    plain = replace(recipe, activations=candidates(recipe.activations)[0], bias_correction="input-mean")
    done = insertion.quantize(model.clone(), statistics.sketches, _JUDGE, plain)
    return layers.output_db(wanted, done, batches, open_runner=tools.open_runner)


def _rows(model: ir.Model, names: Sequence[str], tools: Tools) -> dict[str, NDArray[np.float32]]:
    """Rows of activations, shape (n, K): the same positions of every sample, at most :data:`_ROWS` of each."""
    few = feeds_of(model, tools, CORRECTION_SAMPLES)
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    per_batch = max(1, _ROWS // len(few))
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        path = calibration.with_outputs(model, names, Path(folder) / "rows.onnx")
        with tools.open_runner(path) as runner:
            for feeds in few:
                outputs = runner.run(feeds)
                for name in names:
                    rows = np.asarray(outputs[name], dtype=np.float32)
                    rows = rows.reshape(-1, rows.shape[-1])
                    chosen = np.unique(np.linspace(0, len(rows) - 1, min(per_batch, len(rows))).astype(np.int64))
                    found[name].append(rows[chosen])
    return {name: np.concatenate(parts) for name, parts in found.items()}
