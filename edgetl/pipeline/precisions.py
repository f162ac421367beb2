"""The stages from the float graph to graphs with a precision in them: calibration, corrections, quantization."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl import catalog
from edgetl.backends.checkpoint import read_deploy
from edgetl.config import Config
from edgetl.data.dataset import Dataset, Sample
from edgetl.data.loader import Samples, batches
from edgetl.data.splits import draw_calibration
from edgetl.errors import ProviderError
from edgetl.numbers import counted
from edgetl.pipeline import tasks
from edgetl.pipeline.engines import RUN_PACKAGES, Candidate, open_graph
from edgetl.pipeline.session import Session
from edgetl.specs import Precision, Recipe, Target
from edgetl.store import Artifact, code_digest, digest_of, versions_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgetl.quantize.recipes import Made
    from edgetl.quantize.statistics import Statistics
    from edgetl.quantize.tools import Tools

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""quantize.device → ONNX Runtime's execution provider."""


@dataclass(frozen=True, kw_only=True)
class FloatGraph:
    """A float graph and the statistics of its activations."""

    graph: Artifact
    statistics: Artifact
    unchanged: FloatGraph | None = None
    """What the recipe's changes made it of."""


def check_device(config: Config) -> None:
    """Find out before hours of training whether calibration can run where ``quantize.device`` says.

    Raises:
        ProviderError: It cannot.
    """
    from edgetl.runtime.onnxruntime import why_no_provider

    device = config.quantize.device
    reason = why_no_provider(PROVIDERS[device]) if device != "cpu" else None
    if reason is not None:
        raise ProviderError(
            f"quantize.device is {device}, and {reason}",
            hint='edgetl doctor; or quantize.device = "cpu" in edgetl.toml',
        )


def is_halved(target: Target, precision: Precision) -> bool:
    """Whether a target's engine of that precision is built of a graph in float16; OpenVINO converts by itself."""
    return precision == "fp16" and precision in target.precisions and target.backend != "openvino"


def calibrate(session: Session, dataset: Dataset, checkpoint: Artifact, exported: Artifact) -> Artifact:
    """Statistics of every activation that any scheme may ask for: independent of the targets."""
    samples = calibration_samples(session, dataset, checkpoint)
    inputs = {
        "model": exported.digest,
        **_calibration_inputs(session, samples, checkpoint),
    }

    def make(folder: Path) -> None:
        from edgetl.quantize import graph, recipes, statistics

        model = graph.prepare(graph.load(exported / "model.onnx"))
        found = recipes.calibrate(model, _tools(session, samples, checkpoint))
        source = {
            "model": exported.digest,
            "samples": digest_of(sorted(sample.digest for sample in samples)),
            "preprocessing": read_deploy(checkpoint.folder).preprocessing.digest(),
        }
        statistics.save(replace(found, source=source), folder)

    return session.stage("calibrate", f"activation statistics of {counted(len(samples), 'sample')}", inputs, make)


def equalize(
    session: Session, dataset: Dataset, checkpoint: Artifact, exported: Artifact, statistics: Artifact
) -> FloatGraph:
    """The float graph as the recipe wants it, with statistics of its own; as it was where it wants no change."""
    from edgetl.quantize import recipes

    recipe = catalog.recipe(session.config.quantize.recipe)
    if not recipes.changes_graph(recipe):
        return FloatGraph(graph=exported, statistics=statistics)
    samples = calibration_samples(session, dataset, checkpoint)
    inputs = {
        "model": exported.digest,
        "statistics": statistics.digest,
        "recipe": asdict(recipe),  # ranges and what stays in float, too: changes are judged by the quantized output
        **_calibration_inputs(session, samples, checkpoint),
    }

    def make(folder: Path) -> None:
        import onnx_ir as ir

        from edgetl.quantize import changes, graph
        from edgetl.quantize import statistics as artifact

        model = graph.prepare(graph.load(exported / "model.onnx"))
        tools = _tools(session, samples, checkpoint)
        changed = changes.change(model, artifact.load(statistics.folder), recipe, tools)
        ir.save(changed.model, folder / "model.onnx")
        artifact.save(changed.statistics, folder)
        facts = {
            "equalized": [asdict(item) for item in changed.equalized],
            "separated": [asdict(item) for item in changed.separated],
            "smoothed": [asdict(item) for item in changed.smoothed],
        }
        (folder / "equalize.json").write_text(json.dumps(facts), encoding="utf-8")

    artifact = session.stage("equalize", f"channels as {recipe.name} wants them", inputs, make)
    unchanged = FloatGraph(graph=exported, statistics=statistics)
    return FloatGraph(graph=artifact, statistics=artifact, unchanged=unchanged)


def _calibration_inputs(session: Session, samples: tuple[Sample, ...], checkpoint: Artifact) -> dict[str, Any]:
    """What of calibration samples a result depends on."""
    return {
        "samples": sorted(sample.digest for sample in samples),
        "preprocessing": read_deploy(checkpoint.folder).preprocessing.digest(),
        "device": session.config.quantize.device,
        "code": code_digest(
            "quantize", "runtime", "data/loader.py", "specs.py", "pipeline/precisions.py", "pipeline/engines.py"
        ),
        "versions": versions_of("onnx-ir", "onnxscript", "safetensors", *RUN_PACKAGES),
    }


def _tools(session: Session, samples: tuple[Sample, ...], checkpoint: Artifact) -> Tools:
    """What recipes are carried out with in a build."""
    from edgetl.quantize.tools import Tools

    preprocessing = read_deploy(checkpoint.folder).preprocessing
    # Samples of different lengths go in one at a time: padding would be counted among their activations.
    size = 16 if all(isinstance(side, int) for side in preprocessing.input_shape) else 1
    provider = PROVIDERS[session.config.quantize.device]
    return Tools(
        samples=lambda: ({"input": arrays} for arrays, _ in batches(Samples(samples, preprocessing), size)),
        open_runner=partial(open_graph, provider=provider),
        memory_mb=session.config.quantize.memory_mb,
        progress=lambda what, done, total: session.progress(what, done, total or len(samples)),
        describe=lambda index: samples[index].where,
    )


def calibration_samples(session: Session, dataset: Dataset, checkpoint: Artifact) -> tuple[Sample, ...]:
    """Drawn from train, or from the folder or file that ``quantize.data`` names; never from test."""
    config = session.config
    if config.quantize.data is None:
        return draw_calibration(dataset.train, config.quantize.samples, config.quantize.seed)
    modality = tasks.task_of(config).modality
    preprocessing = read_deploy(checkpoint.folder).preprocessing
    own = modality.load_samples(config.quantize.data, preprocessing, dataset.classes)
    modality.check_calibration(own, dataset)
    return draw_calibration(own, config.quantize.samples, config.quantize.seed)


def graph_for(
    session: Session,
    dataset: Dataset,
    checkpoint: Artifact,
    candidate: Candidate,
    exported: Artifact,
    prepared: FloatGraph | None,
) -> Artifact:
    """The graph with the candidate's precision in it; the float graph where the engine converts by itself.

    Args:
        session: The build.
        dataset: Its data.
        checkpoint: The trained network.
        candidate: Target and precision.
        exported: The float graph.
        prepared: As the recipe for int8 wants it; None where no candidate is int8.
    """
    if candidate.precision == "int8":
        assert prepared is not None  # the pipeline calibrates for int8
        recipe = catalog.recipe(session.config.quantize.recipe)
        samples = calibration_samples(session, dataset, checkpoint)
        return _quantized(session, candidate.target.scheme, recipe, prepared, samples, checkpoint)
    if is_halved(candidate.target, candidate.precision):
        return _half(session, exported, calibration_samples(session, dataset, checkpoint), checkpoint)
    return exported


def _quantized(
    session: Session,
    scheme: str,
    recipe: Recipe,
    prepared: FloatGraph,
    samples: tuple[Sample, ...],
    checkpoint: Artifact,
) -> Artifact:
    from edgetl.quantize import schemes

    wanted = schemes.scheme(scheme)
    inputs = {
        "model": prepared.graph.digest,
        "statistics": prepared.statistics.digest,
        "unchanged": [each.graph.digest + each.statistics.digest for each in (prepared.unchanged,) if each],
        "scheme": scheme,
        "recipe": asdict(recipe),
        **_calibration_inputs(session, samples, checkpoint),
    }

    def make(folder: Path) -> None:
        import onnx_ir as ir

        from edgetl.quantize import graph, recipes
        from edgetl.quantize import statistics as artifact

        def read(source: FloatGraph) -> tuple[ir.Model, Statistics]:
            return graph.prepare(graph.load(source.graph / "model.onnx")), artifact.load(source.statistics.folder)

        unchanged = None
        if prepared.unchanged is not None:
            model, found = read(prepared.unchanged)
            unchanged = recipes.Unchanged(model=model, statistics=found)
        model, found = read(prepared)
        done = recipes.make(model, found, wanted, recipe, _tools(session, samples, checkpoint), unchanged)
        ir.save(done.model, folder / "model.onnx")
        facts = {"scheme": scheme, "recipe": recipe.name, **facts_of(done)}
        (folder / "quantize.json").write_text(json.dumps(facts), encoding="utf-8")

    return session.stage("quantize", f"{recipe.name} in the scheme {scheme}", inputs, make)


def facts_of(made: Made) -> dict[str, Any]:
    """An account of a quantized graph: plain JSON values."""
    return {
        "quantized": dict(made.quantized),
        "left_in_float": dict(made.left_in_float),
        "params": {name: list(values) for name, values in made.params.items()},
        "layers": asdict(made.report) if made.report is not None else None,
        "notes": dict(made.notes),
    }


def _half(session: Session, exported: Artifact, samples: tuple[Sample, ...], checkpoint: Artifact) -> Artifact:
    recipe = catalog.recipe(session.config.quantize.fp16_recipe)
    inputs = {
        "model": exported.digest,
        "recipe": asdict(recipe),
        **_calibration_inputs(session, samples, checkpoint),
    }

    def make(folder: Path) -> None:
        import onnx_ir as ir

        from edgetl.quantize import graph, recipes

        model = graph.prepare(graph.load(exported / "model.onnx"))
        done = recipes.make_half(model, recipe, _tools(session, samples, checkpoint))
        ir.save(done.model, folder / "model.onnx")
        facts = {"scheme": "float16", "recipe": recipe.name, **facts_of(done)}
        (folder / "half.json").write_text(json.dumps(facts), encoding="utf-8")

    return session.stage("half", f"the graph in float16, by {recipe.name}", inputs, make)
