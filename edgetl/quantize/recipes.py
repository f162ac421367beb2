"""A recipe, from the float graph to the graph that an engine is built of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from edgetl.errors import TargetError
from edgetl.quantize import calibrate as calibration
from edgetl.quantize import correction, dynamic, half, insertion, layers, zero_points
from edgetl.quantize.fidelity import Fidelity, FloatOutput
from edgetl.quantize.layers import LayerReport
from edgetl.quantize.magnitudes import magnitudes
from edgetl.quantize.placement import is_kept, points, refuse_unknown
from edgetl.quantize.schemes import SCHEMES, Scheme
from edgetl.quantize.sketch import Sketch
from edgetl.quantize.statistics import Statistics
from edgetl.quantize.tools import Tools, feeds_of, room_for
from edgetl.specs import Estimator, Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

CORRECTION_SAMPLES = 64
"""Of the calibration samples, for corrections: a mean per channel needs no more."""
HELD_OUT = 1 / 2
"""Of the samples looked at for corrections, the least share that they never saw, and have to prove themselves on.

Nineteen samples find a correction that is as good as one of sixty; twenty do not tell whether it serves."""
REPORT_SAMPLES = 16
SEARCH_SAMPLES = 128
"""For the choice of an estimator: among fewer there may be none of the outliers that decide it."""
SEARCHED: tuple[Literal["mse", "minmax", "percentile"], ...] = ("mse", "minmax", "percentile")
"""What activations.method = "search" chooses from, with and without outliers where these are searched too; the first
stays where no other clearly serves better."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A graph with the precision of a recipe in it."""

    model: ir.Model
    quantized: Mapping[str, int]
    """Operator → nodes in fewer bits."""
    left_in_float: Mapping[str, int]
    """Operator → nodes that stay as they were."""
    params: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Activation → scale, zero point, smallest and largest value that is represented; of a static recipe."""
    report: LayerReport | None = None
    """None of a graph in float16 that was made without samples."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What corrections and searches did: plain JSON values."""


def calibrate(model: ir.Model, tools: Tools, schemes: Iterable[Scheme] = tuple(SCHEMES.values())) -> Statistics:
    """Statistics of all activations that some schemes ask for.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
        tools: What to calibrate with.
        schemes: All by default: then one calibration serves every target.
    """

    def tell(seen: int) -> None:
        """Of a stream of samples nobody knows how many there are: 0 in all."""
        if tools.progress:
            tools.progress("calibration samples", seen, 0)

    return calibration.calibrate(
        model,
        points(model, list(schemes)),
        tools.samples(),
        open_runner=tools.open_runner,
        memory_mb=tools.memory_mb,
        progress=tell,
        describe=tools.describe,
    )


def changes_graph(recipe: Recipe) -> bool:
    """Whether a recipe changes the float graph, which is then calibrated anew."""
    return any(setting != "none" for setting in (recipe.equalization, recipe.outlier_channels, recipe.smoothing))


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """The float graph before a recipe's changes, for the layer report: it shows what they are worth."""

    model: ir.Model
    statistics: Statistics


def make(
    model: ir.Model,
    statistics: Statistics,
    scheme: Scheme,
    recipe: Recipe,
    tools: Tools,
    unchanged: Unchanged | None = None,
) -> Made:
    """Carry out a recipe for the scheme of an engine.

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`, or :func:`change`; not changed.
        statistics: Of it.
        scheme: The engine's.
        recipe: Of kind "static" or "dynamic".
        tools: What to do it with.
        unchanged: What the model was made of, where it is of :func:`change`.

    Raises:
        ModelError: Nothing in the graph can be quantized.
        TargetError: The recipe is not for such an engine.
        UnknownNameError: The recipe keeps something in float that is neither an operator nor a node of the model.
    """
    refuse_unknown(recipe.keep_float, model.graph)
    if recipe.kind == "dynamic":
        return _dynamic(model, scheme, recipe, tools)
    if recipe.kind != "static":
        raise TargetError(
            f"the recipe {recipe.name} is of kind {recipe.kind}; int8 engines are made by a static or dynamic one",
            hint="edgetl recipes",
        )
    return _static(model, statistics, scheme, recipe, tools, unchanged)


def _static(
    model: ir.Model,
    statistics: Statistics,
    scheme: Scheme,
    recipe: Recipe,
    tools: Tools,
    unchanged: Unchanged | None,
) -> Made:
    """Choose ranges, quantize, report, correct, and report again."""
    known: insertion.KnownScales = {}
    chosen, search_notes = _searched(model, statistics.sketches, scheme, recipe, tools, known)
    done = insertion.quantize(model.clone(), statistics.sketches, scheme, chosen, known)
    few = feeds_of(model, tools, REPORT_SAMPLES)
    report = layers.report(model, done, statistics.sketches, few, open_runner=tools.open_runner)
    corrected: dict[str, Any] = {}
    if chosen.bias_correction == "sequential" or chosen.rounding == "adaround":
        plain = done
        if chosen.bias_correction == "sequential":
            # The means of inputs tell what rounding adds to a layer's output, and cost nothing; the rest is corrected.
            means = replace(chosen, bias_correction="input-mean")
            plain = insertion.quantize(model.clone(), statistics.sketches, scheme, means, known)
        done = replace(plain, model=plain.model.clone())
        corrected = _corrected(model, done, plain, scheme, chosen, report, tools)
        if "correction_left_out" in corrected:
            done = plain
        report = layers.report(model, done, statistics.sketches, few, open_runner=tools.open_runner)
    if unchanged is not None:
        corrected["before_corrections"] = _accumulated(unchanged, scheme, chosen, tools)
    notes = {
        **search_notes,
        **corrected,
        "keep_float_without_effect": _idle(model, recipe),
        "weights": asdict(recipe.weights) if recipe.weights is not None else None,
    }
    if scheme.pair_sums_saturate:
        widened = {layer.node: layer.widened for layer in done.layers if layer.widened}
        notes["channels_widened_against_saturation"] = widened
    folded = zero_points.fold(done.model, done.layers, scheme)
    if folded:
        notes["zero_points_in_biases"] = list(folded)
    finished = done.model
    if scheme.rest == "float16":
        finished = half.to_half(done.model, largest=magnitudes(model, tools)).model
    return Made(
        model=finished,
        quantized=done.quantized,
        left_in_float=done.left_in_float,
        params={name: [p.scale, p.zero_point, p.low, p.high] for name, p in done.params.items()},
        report=report,
        notes=notes,
    )


def make_half(model: ir.Model, recipe: Recipe, tools: Tools | None) -> Made:
    """Carry out a recipe of kind "float16".

    Args:
        model: From :func:`edgetl.quantize.graph.prepare`; not changed.
        recipe: Of that kind.
        tools: What to do it with: what reaches beyond float16 on the samples stays in float32. None where there are no
            samples: weights alone decide, and there is no layer report.

    Raises:
        TargetError: The recipe is of another kind.
        UnknownNameError: It keeps something that is neither an operator nor a node of the model.
    """
    refuse_unknown(recipe.keep_float, model.graph)
    if recipe.kind != "float16":
        raise TargetError(
            f"the recipe {recipe.name} is of kind {recipe.kind}; fp16 engines are made by one of kind float16",
            hint='quantize.fp16_recipe = "fp16"',
        )
    largest = magnitudes(model, tools) if tools is not None else None
    named = {str(node.name) for node in model.graph if is_kept(node, recipe.keep_float)}
    done = half.to_half(model.clone(), keep=half.SENSITIVE | named, largest=largest)
    report = None
    if tools is not None:
        few = feeds_of(model, tools, REPORT_SAMPLES)
        report = layers.report_half(model, done.model, few, open_runner=tools.open_runner)
    return Made(
        model=done.model,
        quantized=done.converted,
        left_in_float=done.kept,
        report=report,
        notes={
            "kept_in_float32": dict(done.reasons),
            "vanished_weights": dict(done.vanished),
            "keep_float_without_effect": _idle(model, recipe),
        },
    )


def _idle(model: ir.Model, recipe: Recipe) -> list[str]:
    """The operators that a recipe wants to keep in float and the graph does not have."""
    return [name for name in recipe.keep_float if not any(is_kept(node, [name]) for node in model.graph)]


def _dynamic(model: ir.Model, scheme: Scheme, recipe: Recipe, tools: Tools) -> Made:
    if not scheme.dynamic:
        able = [name for name, other in SCHEMES.items() if other.dynamic]
        raise TargetError(
            f"the recipe {recipe.name} is of kind dynamic, which {scheme.name} does not run; {', '.join(able)} do",
            hint="a static recipe: edgetl recipes",
        )
    done = dynamic.quantize_dynamic(
        model.clone(), weights=recipe.weights, keep=recipe.keep_float, saturates=scheme.pair_sums_saturate
    )
    few = feeds_of(model, tools, REPORT_SAMPLES)
    return Made(
        model=done.model,
        quantized=done.quantized,
        left_in_float=done.left_in_float,
        report=layers.report_dynamic(model, done, few, open_runner=tools.open_runner),
        notes={"left_in_float": dict(done.reasons), "keep_float_without_effect": _idle(model, recipe)},
    )


def _searched(
    model: ir.Model,
    sketches: Mapping[str, Sketch],
    scheme: Scheme,
    recipe: Recipe,
    tools: Tools,
    known: insertion.KnownScales,
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the estimator of activations that serves this graph best, and notes on the search.

    A recipe that names its estimator stays as it is, without notes.
    """
    estimators = candidates(recipe.activations)
    if len(estimators) == 1:
        return replace(recipe, activations=estimators[0]), {}
    few = feeds_of(model, tools, SEARCH_SAMPLES, outputs_only=True)
    wanted = FloatOutput(model, few, open_runner=tools.open_runner)
    found = {}
    for estimator in estimators:
        tried = replace(recipe, activations=estimator, bias_correction="input-mean")
        done = insertion.quantize(model.clone(), sketches, scheme, tried, known)
        found[estimator] = wanted.fidelity(done.model)
    best = _best(found)
    notes = {
        "searched_activations_db": {label(each): fidelity.db for each, fidelity in found.items()},
        "activations": label(best),
    }
    return replace(recipe, activations=best), notes


def _best(found: Mapping[Estimator, Fidelity]) -> Estimator:
    """The estimator with the highest fidelity among those that are clearly above the first.

    The first is what a recipe would have without a search. A tenth of a decibel on some calibration samples is no
    reason to leave it: with percentile instead of mse for such a gain a network lost a decibel and a half on others.
    """
    first, *others = found
    serving = [other for other in others if found[other].clearly_above(found[first])]
    return max(serving, key=lambda other: found[other].db, default=first)


def candidates(estimator: Estimator | None) -> list[Estimator]:
    """What a search chooses from: the estimator itself where it is none."""
    if estimator is None:
        return []
    methods = SEARCHED if estimator.method == "search" else (estimator.method,)
    outliers: Sequence[Literal["keep", "drop", "search"]] = [estimator.outliers]
    if estimator.outliers == "search":
        outliers = ["keep", "drop"]
    return [replace(estimator, method=method, outliers=each) for each in outliers for method in methods]


def label(estimator: Estimator) -> str:
    """What an estimator is called: its method, the share of a percentile, and "drop" where outliers are dropped."""
    share = f" {estimator.percentile:g}" if estimator.method == "percentile" else ""
    return estimator.method + share + (" drop" if estimator.outliers == "drop" else "")


def _corrected(
    model: ir.Model,
    done: insertion.Quantized,
    plain: insertion.Quantized,
    scheme: Scheme,
    recipe: Recipe,
    report: LayerReport,
    tools: Tools,
) -> dict[str, Any]:
    """Correct a quantized graph, which is changed, as the recipe wants it.

    Args:
        model: The float graph.
        done: What is corrected.
        plain: The same, to stay as it is. On samples that the correction never saw it has to be clearly worse.
        scheme: Of both.
        recipe: With bias_correction "sequential", rounding "adaround", or both.
        report: Of the graph without any correction.
        tools: What to do it with.

    Returns:
        Notes: "corrected" and "before_corrections"; or "correction_left_out" where the other graph should be taken.
    """
    biases, rounding = recipe.bias_correction == "sequential", recipe.rounding == "adaround"
    few = feeds_of(model, tools, round(CORRECTION_SAMPLES / (1 - HELD_OUT)), outputs_only=True)
    cut = len(few) - max(1, round(HELD_OUT * len(few))) if len(few) > 1 else 1
    cut = min(cut, room_for(model, tools).walked)
    seen, unseen = few[:cut], few[cut:] or few  # a single batch has to do for both
    wanted = FloatOutput(model, unseen, open_runner=tools.open_runner)
    before = wanted.fidelity(plain.model)
    losses = [(loss.node, loss.isolated_db) for loss in report.layers]
    corrected = correction.correct(
        model,
        done,
        scheme,
        seen,
        biases=biases,
        learned=correction.flagged(losses) if rounding else (),
        open_runner=tools.open_runner,
        progress=partial(tools.progress, "corrected layers") if tools.progress else None,
    )
    after = wanted.fidelity(done.model)
    if not after.clearly_above(before):
        left = {"before_db": before.db, "after_db": after.db, "samples": len(before.noise)}
        return {"correction_left_out": left}
    return {
        "corrected": [asdict(item) for item in corrected],
        "before_corrections": {loss.node: loss.accumulated_db for loss in report.layers},
    }


def _accumulated(unchanged: Unchanged, scheme: Scheme, recipe: Recipe, tools: Tools) -> dict[str, float]:
    """Layer → accumulated dB in the quantized graph that neither changes nor corrections have touched."""
    plain = replace(recipe, bias_correction="none", rounding="nearest")
    done = insertion.quantize(unchanged.model.clone(), unchanged.statistics.sketches, scheme, plain)
    few = feeds_of(unchanged.model, tools, REPORT_SAMPLES)
    found = layers.report(unchanged.model, done, unchanged.statistics.sketches, few, open_runner=tools.open_runner)
    return {loss.node: loss.accumulated_db for loss in found.layers}
