"""Changes of the float graph before quantization: it computes the same, and quantizes better."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize import equalization, insertion, outlier_channels, smoothing, smoothing_groups
from edgetl.quantize.activations import with_outputs
from edgetl.quantize.fidelity import FloatOutput
from edgetl.quantize.placement import plan_of, points
from edgetl.quantize.recipes import CORRECTION_SAMPLES, REPORT_SAMPLES, calibrate, candidates
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.statistics import Statistics
from edgetl.quantize.tools import Tools, feeds_of
from edgetl.specs import Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

_JUDGE = SCHEMES["onnxruntime-x86-vnni"]
"""The scheme by which changes are judged: they are made once for all targets."""
_Rows = dict[str, NDArray[np.float32]]
_ROWS = 2048
"""Rows of an activation for the search of SmoothQuant's strength and of outlier channels."""


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A float graph that computes the same, and quantizes better."""

    model: ir.Model
    statistics: Statistics
    """Of the changed graph."""
    equalized: tuple[equalization.Equalized, ...] = ()
    separated: tuple[outlier_channels.Separated, ...] = ()
    smoothed: tuple[smoothing.Smoothed, ...] = ()


def change(model: ir.Model, statistics: Statistics, recipe: Recipe, tools: Tools) -> Changed:
    """Equalize a float graph, take outlier channels out of its products, smooth it, and calibrate it again.

    Outlier channels and SmoothQuant's factors are chosen activation by activation, by what serves the products behind
    it. What stays is what serves the graph's output: of the outlier channels all or none; of the factors all, those
    alone that a normalisation takes, or none.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
        statistics: Of it.
        recipe: Which changes.
        tools: What to do it with.
    """
    best = Changed(model=model.clone(), statistics=statistics)
    if recipe.equalization == "cross-layer":
        reach = {name: sketch.channel_reach for name, sketch in statistics.sketches.items()}
        equalized = equalization.equalize(best.model, reach)
        best = replace(best, statistics=calibrate(best.model, tools), equalized=equalized)
    wanted = recipe.outlier_channels == "search" or recipe.smoothing == "search"
    names = [group.activation for group in smoothing_groups.groups(best.model)] if wanted else []
    if not names:
        return best
    if not set(points(best.model, [_JUDGE])) <= set(best.statistics.sketches):
        best = replace(best, statistics=calibrate(best.model, tools))
    rows = _rows(best.model, names, tools)
    few = feeds_of(model, tools, REPORT_SAMPLES)
    judge = _Judge(recipe=recipe, wanted=FloatOutput(model, few, open_runner=tools.open_runner), tools=tools)
    options = [best]
    if recipe.outlier_channels == "search":
        options = _separated(best, rows, judge)
    if recipe.smoothing == "search":
        options = [_smoothed(option, rows, judge) for option in options]
    if len(options) == 1:
        return options[0]
    # Judged behind SmoothQuant: as long as other products are the noisiest, the output does not tell.
    whole_db, separated_db = (judge.tried_db(option) for option in options)
    if separated_db > whole_db:
        return options[1]
    reason = f"together they take the output's fidelity from {whole_db:.1f} to {separated_db:.1f} dB"
    off = (replace(each, channels=(), error=each.error_off, reason=reason) for each in options[1].separated)
    return replace(options[0], separated=tuple(off))


def _separated(whole: Changed, rows: _Rows, judge: _Judge) -> list[Changed]:
    """The graph as it is, and, where there are outlier channels, without them."""
    model = whole.model.clone()
    plan = plan_of(model, _JUDGE, judge.recipe.keep_float)
    separated = outlier_channels.separate(model, rows, plan, smooth=judge.recipe.smoothing == "search")
    if not any(each.channels for each in separated):
        return [replace(whole, separated=separated)]
    return [whole, replace(whole, model=model, statistics=calibrate(model, judge.tools), separated=separated)]


def _smoothed(before: Changed, rows: _Rows, judge: _Judge) -> Changed:
    """The graph with the factors of SmoothQuant that serve its output."""
    best, before_db = before, judge.tried_db(before)
    best_db = before_db
    tried = []
    for chosen in _choices(before.model, rows):
        smooth = before.model.clone()
        smoothed = smoothing.smooth(smooth, chosen)
        after = replace(before, model=smooth, statistics=calibrate(smooth, judge.tools), smoothed=smoothed)
        tried.append((judge.tried_db(after), smoothed))
        if tried[-1][0] >= best_db:
            best, best_db = after, tried[-1][0]
    if best.smoothed:
        return best
    reason = f"all groups together take the output's fidelity from {before_db:.1f} to {tried[0][0]:.1f} dB"
    off = tuple(
        replace(each, alpha=None, error=each.error_off, lowest=1.0, highest=1.0, reason=reason) for each in tried[0][1]
    )
    return replace(best, smoothed=off)


def _choices(model: ir.Model, rows: _Rows) -> list[_Rows]:
    """The rows of all groups; and of those alone whose factors cost no node, where there are others beside them."""
    folded = {group.activation for group in smoothing_groups.groups(model) if group.norm is not None}
    alone = {name: found for name, found in rows.items() if name in folded}
    return [rows, alone] if alone and len(alone) < len(rows) else [rows]


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """By what changes stay: the output of the graph, quantized for a CPU."""

    recipe: Recipe
    wanted: FloatOutput
    tools: Tools

    def tried_db(self, changed: Changed) -> float:
        """Fidelity of the output in dB, quantized by the recipe without its searches and corrections."""
        plain = replace(self.recipe, activations=candidates(self.recipe.activations)[0], bias_correction="input-mean")
        done = insertion.quantize(changed.model.clone(), changed.statistics.sketches, _JUDGE, plain)
        return self.wanted.fidelity(done.model).db


def _rows(model: ir.Model, names: Sequence[str], tools: Tools) -> _Rows:
    """Rows of activations, shape (n, K): the same positions of every sample, at most :data:`_ROWS` of each."""
    few = feeds_of(model, tools, CORRECTION_SAMPLES)
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    per_batch = max(1, _ROWS // len(few))
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        path = with_outputs(model, names, Path(folder) / "rows.onnx")
        with tools.open_runner(path) as runner:
            for feeds in few:
                outputs = runner.run(feeds)
                for name in names:
                    rows = np.asarray(outputs[name] if name in outputs else feeds[name], dtype=np.float32)
                    rows = rows.reshape(-1, rows.shape[-1])
                    chosen = np.unique(np.linspace(0, len(rows) - 1, min(per_batch, len(rows))).astype(np.int64))
                    found[name].append(rows[chosen])
    return {name: np.concatenate(parts) for name, parts in found.items()}
