"""Bundles that are already there: files, signature, golden inputs, and accuracy on data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import metrics
from edgetl.data.dataset import UNLABELLED
from edgetl.data.load import label_names
from edgetl.data.loader import Samples, batches
from edgetl.diagnosis import departures, explain
from edgetl.diagnosis.departures import EngineLayers
from edgetl.diagnosis.explain import Answered
from edgetl.diagnosis.layers import FAITHFUL_DB
from edgetl.errors import BundleError, DataError, EdgetlError, ParityError, SetupError, UnknownNameError
from edgetl.parity.numeric import MOST_DB, sqnr_db
from edgetl.pipeline import tasks
from edgetl.runtime import replay
from edgetl.runtime.bundle import Bundle, EngineEntry, Predictor, open_bundle
from edgetl.runtime.golden import Golden

_OTHER_DB = 0.0
"""A graph whose answers are further from PyTorch's than zeros are is of another model. What a device makes of a graph
that is nearer is for the device to show."""
Scales = Callable[[EngineEntry], tuple[str, ...] | str]
"""As :func:`edgetl.diagnosis.departures.reading_scales` hands out."""
Told = Callable[[str], None]

_FURTHER_DB = 10.0
"""By which a few golden inputs may lie further from PyTorch than the whole test split did."""


@dataclass(frozen=True, kw_only=True)
class CheckedEngine:
    """What one engine of a bundle did here."""

    name: str
    golden: int = 0
    """Golden inputs."""
    agreeing: int = 0
    """Of them, those that it names as PyTorch did."""
    sqnr_db: float = 0.0
    largest_batch: int = 0
    """Samples in the largest batch that was tried; the golden inputs are repeated to fill it."""
    score: float | None = None
    """The metric on the given data."""
    metric: str = ""
    """In words."""
    samples: int = 0
    skipped: str = ""
    """Why it did not run."""
    graph_agreeing: int | None = None
    """Golden inputs that its graph, computed on the processor, names as PyTorch did, where the engine did not run."""
    graph_db: float | None = None
    """SQNR of its graph against the golden outputs there."""
    graph_skipped: str = ""
    """Why its graph was not run either."""
    scales_skipped: str = ""
    """Why an int8 engine's scales were not held against calibration and the float weights, also of one that did not
    run."""
    layers: EngineLayers | None = None
    """What it looks like from the inside, where that was asked for."""
    layers_skipped: str = ""
    """Why it was not looked into."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found out about a bundle."""

    files: int
    golden: int
    """Golden inputs."""
    signed_by: str | None
    preprocessing_difference: float
    graph_db: float | None
    """SQNR of the float graph against the golden outputs; None where it was not run."""
    graph_skipped: str
    """Why it was not."""
    engines: tuple[CheckedEngine, ...]


def verify_bundle(
    folder: Path,
    *,
    key: Path | None = None,
    data: Path | None = None,
    layers: bool = False,
    told: Told | None = None,
) -> Checked:
    """Check a bundle, and run every engine of it that can run here.

    Args:
        folder: Of the bundle.
        key: Public key that must have signed it.
        data: Labelled samples, to measure the bundle's metric on.
        layers: Compare each engine tensor by tensor with the graph that it was made of, and that with the float graph.
        told: Of a bundle that is kept only where it passes: an engine that is refused is compared so, too, as nobody
            could do that later; this is told before, since it may take minutes. None: it is not.

    Raises:
        BundleError: A file, the signature or the preprocessing is not as it was built.
        ParityError: An engine answers the golden inputs in another way than where it was built.
        DataError: The data cannot be used, or has no labels that the bundle knows.
        MissingExtraError: ``layers``, and what reads graphs is not installed.
        SetupError: No engine runs here, though one ran where the bundle was built, or ``data`` or ``layers`` need one.
    """
    bundle = open_bundle(folder, key=key, replay=False)  # more than that is done here
    golden = bundle.golden()
    difference = _check_contract(bundle, golden)
    samples = _labelled(bundle, data) if data else None
    graph = explain.float_graph(bundle, golden)
    # What is held against another network's weights and tensors would be accused of its difference.
    layers = layers and not graph.is_other
    with departures.reading_scales(bundle) as wrong_scales:
        scales = None if graph.is_other else wrong_scales
        engines = tuple(
            _check(bundle, engine, golden, samples, scales, graph, layers=layers, told=None if graph.is_other else told)
            for engine in bundle.engines
        )
    wanted = data is not None or layers or any(engine.status == "ready" for engine in bundle.engines)
    if wanted and all(item.skipped for item in engines):
        raise SetupError(
            "\n  ".join(
                [f"{folder}: no engine runs here, so that nothing is known of their answers:"]
                + [f"{item.name}: {item.skipped}" for item in engines]
            ),
            hint="edgetl doctor; or verify it on a machine that has an engine's library and device",
        )
    explain.refuse_other(bundle, graph, ran=not all(item.skipped for item in engines))
    return Checked(
        files=bundle.verified.files,
        golden=len(golden.outputs),
        signed_by=bundle.verified.signed_by,
        preprocessing_difference=difference,
        graph_db=graph.db,
        graph_skipped=graph.skipped,
        engines=engines,
    )


def _check_contract(bundle: Bundle, golden: Golden) -> float:
    """Refuse another preprocessing or other labels than the recorded ones.

    Returns:
        The largest difference of a golden tensor.
    """
    folder = bundle.folder
    replay.refuse_contract(bundle)
    _refuse_decision(bundle)
    difference = replay.tensor_difference(bundle, golden)
    if difference > replay.TENSOR_TOLERANCE:
        cause, hint = explain.preprocessing(bundle, golden, difference)
        raise BundleError(
            f"{folder}: preprocessing on this machine differs from the recorded one"
            + (f" by up to {difference:.1e}" if math.isfinite(difference) else "")
            + (f": {cause}" if cause else ""),
            hint=hint,
        )
    replay.refuse_labels(bundle, golden)
    return difference


_KINDS: Mapping[tasks.Objective, tuple[str, ...]] = {
    "one-label": ("largest", "threshold"), "several-labels": ("multi-label",), "embedding": ("similarity",),
}  # fmt: skip
"""Objective of a task → how its outputs become answers."""


def _refuse_decision(bundle: Bundle) -> None:
    """Refuse a decision that does not fit the task; a task that is not known is told of elsewhere."""
    task, kind = tasks.TASKS.get(bundle.manifest["task"]), bundle.decision.kind
    if task is not None and kind not in _KINDS[task.objective]:
        raise BundleError(
            f"{bundle.folder}: decision.kind in manifest.json is {kind}; a bundle of {task.name} has"
            f" {' or '.join(_KINDS[task.objective])}",
            hint="publish the bundle again: edgetl build",
        )


def _check(
    bundle: Bundle,
    engine: EngineEntry,
    golden: Golden,
    samples: Samples | None,
    scales: Scales | None,
    graph: Answered,
    *,
    layers: bool,
    told: Told | None,
) -> CheckedEngine:
    name = f"{engine.target} {engine.precision}"
    if engine.status == "build-on-device":
        skipped = engine.note or "it is built on its device"
        return _not_run(bundle, engine, golden, scales, CheckedEngine(name=name, skipped=skipped))
    try:
        opened = bundle.open(target=engine.target, precision=engine.precision)
    except SetupError as error:
        return _not_run(bundle, engine, golden, scales, CheckedEngine(name=name, skipped=error.message))
    parity = replay.recorded_parity(bundle, engine)
    metric = _metric(bundle, parity)
    with opened as model:
        got = replay.golden_answers(bundle, model, golden)
        broken = replay.not_finite(name, got)
        agreed = replay.agrees(bundle, got, golden.outputs)
        found = CheckedEngine(
            name=name,
            golden=len(golden.outputs),
            agreeing=int(agreed.all(1).sum()),
            sqnr_db=-MOST_DB if broken else sqnr_db(golden.outputs, got),
            largest_batch=explain.batches_of(model, golden)[-1],
            score=_score(model, bundle, samples, metric) if samples and not broken else None,
            metric=metric.title,
            samples=len(samples) if samples else 0,
        )
        refused = broken or _refusal(found, parity, agreed)
        because = None
        if refused and not broken:
            because = explain.cause(model, bundle, golden, got, graph)
        elif not broken:
            because = explain.dependence(model, bundle, golden, got)
    found, wrong = _inside(bundle, engine, golden, found, scales, layers=layers)
    if told and (refused or because or wrong) and not layers:
        told(f"{name} is refused: its layers are compared")
        try:
            found, wrong = _inside(bundle, engine, golden, found, scales, layers=True)
        except EdgetlError as error:  # of it more is known than that
            found = replace(found, layers_skipped=error.message)
    _gate(found, refused, because, wrong)
    return found


def _inside(
    bundle: Bundle, engine: EngineEntry, golden: Golden, found: CheckedEngine, scales: Scales | None, *, layers: bool
) -> tuple[CheckedEngine, Sequence[str]]:
    """Look into an engine: at its layers, or at its scales where these are not looked at."""
    seen = departures.look_into(bundle, engine, golden) if layers else ""
    found = replace(found, layers_skipped=seen) if isinstance(seen, str) else replace(found, layers=seen)
    return _with_scales(found, engine, scales) if scales and found.layers is None else (found, ())


def _not_run(
    bundle: Bundle, engine: EngineEntry, golden: Golden, scales: Scales | None, found: CheckedEngine
) -> CheckedEngine:
    """An engine that does not run here: its graph can be read, and computed on the processor, all the same."""
    wrong: Sequence[str] = ()
    if scales is not None:
        found, wrong = _with_scales(found, engine, scales)
    if wrong:
        raise ParityError(
            f"{found.name}, which does not run here, is of a graph that is not the one that was quantized:\n "
            f" {departures.spoken(wrong)}",
            hint="build the bundle again: edgetl build",
        )
    answered = explain.engine_graph(bundle, engine, golden)
    if answered.outputs is None or answered.db is None:
        return replace(found, graph_skipped=answered.skipped)
    broken = replay.not_finite(f"the graph of {found.name}, which does not run here,", answered.outputs)
    if broken or answered.db < _OTHER_DB:
        raise ParityError(
            broken
            or f"the graph of {found.name}, which does not run here, is {answered.db:.1f} dB from PyTorch on the golden"
            " inputs: it is of another model",
            hint="build the bundle again: edgetl build",
        )
    agreed = replay.agrees(bundle, answered.outputs, golden.outputs)
    return replace(found, graph_agreeing=int(agreed.all(1).sum()), graph_db=answered.db)


def _with_scales(found: CheckedEngine, engine: EngineEntry, scales: Scales) -> tuple[CheckedEngine, Sequence[str]]:
    """Of an engine, with the scales that are wrong; where they cannot be read it is said why."""
    wrong = scales(engine)
    return (replace(found, scales_skipped=wrong), ()) if isinstance(wrong, str) else (found, wrong)


def _metric(bundle: Bundle, parity: Mapping[str, Any]) -> metrics.Metric:
    """What an engine was measured by where the bundle was built.

    Raises:
        BundleError: No such metric or task is known.
    """
    try:
        return metrics.metric(parity.get("metric") or metrics.default_metric(bundle.manifest["task"]))
    except (UnknownNameError, KeyError) as error:
        said = error.message if isinstance(error, UnknownNameError) else f"there is no task {error}"
        raise BundleError(
            f"{bundle.folder}: {said}", hint="the edgetl that built the bundle, or build the bundle again"
        ) from None


def _refusal(found: CheckedEngine, parity: Mapping[str, Any], agreed: NDArray[np.bool_]) -> str | None:
    """Why an engine is not the one that the bundle was built with, by its answers to the golden inputs.

    Args:
        found: What it did here.
        parity: What was recorded where the bundle was built; empty where it did not run there.
        agreed: Its decisions on the golden inputs that are PyTorch's, (n, d).
    """
    refused = replay.refusal(found.name, parity, agreed)
    if refused:
        return refused
    recorded_db = parity.get("sqnr_db")
    if recorded_db is not None and found.sqnr_db < min(recorded_db, FAITHFUL_DB) - _FURTHER_DB:
        return (
            f"{found.name} is {found.sqnr_db:.1f} dB from PyTorch on the golden inputs; where the bundle was built it"
            f" was {recorded_db:.1f} dB on the test split"
        )
    return None


def _gate(found: CheckedEngine, refused: str | None, because: str | None, scales: Sequence[str]) -> None:
    """Fail for an engine that is not what it was.

    Args:
        found: What it did here.
        refused: Why its answers are not those that were recorded.
        because: The cause of that, where it is known; where nothing is refused, on what its answers depend besides
            their input.
        scales: That are wrong, a clause each.
    """
    told = found.layers is not None and (found.layers.failed or refused or because)
    inside = f"\n  {found.layers.statement}" if told and found.layers is not None else ""
    inside += "\n  " + departures.spoken(scales) if scales else ""
    skipped = f"\n  its layers were not compared: {found.layers_skipped}" if found.layers_skipped else ""
    hint = "build the engine again on this device, or ship another precision"
    if because and because.endswith(explain.OTHER_GOLDEN):
        hint = "build the bundle again; golden/ may be of another build"
    elif found.layers is None and not found.layers_skipped:
        hint += "; edgetl verify BUNDLE --layers tells where it goes wrong"
    if refused:
        raise ParityError(refused + (f"; {because}" if because else "") + inside + skipped, hint=hint)
    if because:
        raise ParityError(
            f"{found.name}: {because}{inside}{skipped}",
            hint="run it with a batch of one and without padding, or build the engine again",
        )
    if inside:
        raise ParityError(f"{found.name} is not what its graph promises:{inside}{skipped}", hint=hint)


def _labelled(bundle: Bundle, data: Path) -> Samples:
    modality = tasks.TASKS[bundle.manifest["task"]].modality
    names = bundle.labels if bundle.labels else label_names(data)  # of faces, whoever is there
    samples = modality.load_samples(data, bundle.preprocessing, names)
    without = sum(sample.label == UNLABELLED for sample in samples)
    if without and data.is_file():
        raise DataError(
            f"{data}: {without} of {len(samples)} samples have no label",
            hint=f"a column label, with one of {', '.join(bundle.labels[:5]) or 'the names of people'} in every row",
        )
    if without:
        raise DataError(
            f"{data} has no labels: its sub-folders should be named {', '.join(bundle.labels[:5]) or 'after people'}",
            hint="a manifest with the columns path and label will do as well",
        )
    return Samples(samples, bundle.preprocessing)


def _score(model: Predictor, bundle: Bundle, samples: Samples, metric: metrics.Metric) -> float:
    found, labels = [], []
    for inputs, targets in batches(samples, 1):
        found.append(model.outputs(inputs))
        labels.append(targets)
    outputs, truth = np.concatenate(found), np.concatenate(labels)
    if metric.name == "top1":
        return float((bundle.decision.decide(outputs) == truth).mean())
    return metric(outputs, truth)
