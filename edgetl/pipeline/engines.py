"""The stages from the checkpoint to engines: export, calibration, quantization, compilation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from edgetl import backends, catalog
from edgetl.backends import tensorrt
from edgetl.backends import torch as torch_backend
from edgetl.backends.base import CompileRequest, EngineRecord
from edgetl.backends.checkpoint import read_deploy
from edgetl.benchmark import environment
from edgetl.config import Config, TargetEntry
from edgetl.data.dataset import Dataset, digest_of_samples
from edgetl.data.loader import Samples, batches
from edgetl.errors import ConfigError, MissingExtraError
from edgetl.numbers import counted
from edgetl.pipeline import tasks
from edgetl.pipeline.session import Session
from edgetl.runtime.preprocessing import Preprocessing
from edgetl.runtime.preprocessing.text import TextPreprocessing
from edgetl.runtime.runner import Runner, run_batch
from edgetl.specs import BatchRange, Precision, Target
from edgetl.store import Artifact, code_digest, versions_of

RUN_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "pillow", "numpy")
_EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "onnxslim", "onnx-ir")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An engine to make: one target in one precision."""

    target: Target
    precision: Precision
    entry: TargetEntry

    @property
    def name(self) -> str:
        """Target and precision, as in reports."""
        return f"{self.target.name} {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine that was made."""

    candidate: Candidate
    artifact: Artifact
    record: EngineRecord

    @property
    def size_bytes(self) -> int:
        """Of the files that it needs on the device."""
        return sum((self.artifact / name).stat().st_size for name in self.record.files)


def candidates(config: Config, only: tuple[str, ...] = (), *, folder: Path | None = None) -> list[Candidate]:
    """The engines that a configuration asks for.

    Args:
        config: The project's.
        only: Targets of the configuration to keep, by name or by file; all where empty.
        folder: Of edgetl.toml: a file may be named as it is there, too. None: relative to the working folder alone.

    Raises:
        ConfigError: A target is asked for a precision that it does not offer, or ``only`` names one that the
            configuration does not have.
        UnknownNameError: There is no such target.
    """
    names = [catalog.target(entry.device).name for entry in config.target]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"more than one [[target]] is called {', '.join(twice)}: a target's name is its file's stem",
            hint="rename your own target file",
        )
    kept = {_listed(text, config, names, folder) for text in only} or set(names)
    found = []
    for entry in config.target:
        target = catalog.target(entry.device)
        refused = [precision for precision in entry.precisions if precision not in target.precisions]
        if refused:
            raise ConfigError(
                f"the target {target.name} offers {', '.join(target.precisions)}, not {', '.join(refused)}",
                hint=f"edgetl targets {target.name}",
            )
        if target.name in kept:
            found += [
                Candidate(target=target, precision=precision, entry=entry)
                for precision in entry.precisions or target.precisions
            ]
    return found


def _listed(text: str, config: Config, names: list[str], folder: Path | None) -> str:
    """The name of the configuration's target that a text means: its name, or its file, from here or as it is written.

    Raises:
        ConfigError: The configuration lists no such target, whether there is one or not.
    """
    if text in names:
        return text
    file = Path(text).resolve() if "/" in text or text.endswith(".toml") else None
    listed = {
        Path(entry.device).resolve(): name
        for name, entry in zip(names, config.target, strict=True)
        if "/" in entry.device or entry.device.endswith(".toml")
    }
    for meant in (file, (folder / text).resolve() if file and folder else None):
        if meant in listed:
            return listed[meant]
    message = f"the project has no target {text}; it has {', '.join(names)}"
    if text in catalog.target_names() or (file and file.is_file()):
        raise ConfigError(
            f"{message}: --target chooses among the targets that edgetl.toml lists",
            hint=f'list it there: [[target]] with device = "{file or text}"',
        )
    if file:
        message = f"{message}; and there is no file {file}"
    raise ConfigError(message, hint=f"--target {names[0]}; `edgetl targets` lists what can stand under [[target]]")


def check_tools(config: Config, candidates: list[Candidate], *, exported: bool, compiled: bool) -> None:
    """Find out before hours of training what would stop the build after them.

    Args:
        config: The project's.
        candidates: What is asked for.
        exported: Whether the build goes as far as the ONNX graph.
        compiled: Whether it goes as far as engines.

    Raises:
        UnknownNameError: There is no such recipe.
        ConfigError: The recipe's file is not valid, or a target cannot take the data or the batch sizes.
        TargetError: A target's library is too old for a precision.
        MissingExtraError: A library is not installed.
    """
    for name, kinds in ((config.quantize.recipe, ("static", "dynamic")), (config.quantize.fp16_recipe, ("float16",))):
        found = catalog.recipe(name)
        if found.kind not in kinds:
            raise ConfigError(
                f"the recipe {found.name} is of kind {found.kind}; wanted is {' or '.join(kinds)}",
                hint="edgetl recipes",
            )
    _check_dynamic(config, candidates)
    _check_dla(config, candidates)
    _need("train", "fine-tuning", "torch", "torchvision", "timm", "safetensors")
    if exported:
        _need("export", "exporting to ONNX", "onnx", "onnx-ir", "onnxscript", "onnxslim", "safetensors")
        if backends.backend("onnxruntime").version() is None:
            raise MissingExtraError("onnxruntime", extra="ort", needed_for="checking and calibrating the ONNX graph")
    for candidate in candidates if compiled else ():
        _version(candidate)


def export(session: Session, dataset: Dataset, checkpoint: Artifact) -> Artifact:
    """The float graph, compared with PyTorch on real samples through ONNX Runtime."""
    from edgetl.export import onnx as export_stage

    config = session.config.export
    inputs = {
        "checkpoint": checkpoint.digest,
        "config": session.config_digest("export"),
        "checked_on": digest_of_samples(dataset.test[: config.batch.max]),
        "code": code_digest("export", "backends", "runtime", "data/loader.py", "pipeline/engines.py"),
        "versions": versions_of(*_EXPORT_PACKAGES, *RUN_PACKAGES),
    }

    def make(folder: Path) -> None:
        module, deploy = torch_backend.read_checkpoint(checkpoint.folder)
        exported = export_stage.export(
            module,
            folder / "model.onnx",
            batch=BatchRange(min=config.batch.min, max=config.batch.max),
            opset=config.opset,
            labels=() if deploy.embeds else deploy.classes,
            preprocessing=deploy.preprocessing,
            output=deploy.output.name,
            longest=longest(deploy.preprocessing) or 1,
        )
        count = min(len(dataset.test), max(config.batch.min, min(4, config.batch.max)))
        images, _ = next(batches(Samples(dataset.test, deploy.preprocessing), count))
        worst = 0.0
        with (
            torch_backend.TorchRunner(module, deploy.input, deploy.output) as torch_runner,
            open_graph(folder / "model.onnx") as runner,
        ):
            for size in {config.batch.min, count}:  # more than one size, or a frozen batch would go unseen
                expected = torch_runner.run({deploy.input.name: images[:size]})[deploy.output.name]
                got = run_batch(runner, images[:size], smallest=config.batch.min)
                worst = max(worst, export_stage.check(expected, got, tolerance=config.tolerance))  # type: ignore[arg-type]
        facts = {**asdict(exported), "max_abs_error": worst}
        (folder / "export.json").write_text(json.dumps(facts), encoding="utf-8")

    artifact = session.stage("export", "ONNX graph, compared with PyTorch", inputs, make)
    facts = json.loads((artifact / "export.json").read_text(encoding="utf-8"))
    session.reporter.note(
        f"{counted(facts['nodes'], 'node')}, operator set {facts['opset']}, "
        f"largest difference from PyTorch {facts['max_abs_error']:.1e}"
    )
    return artifact


def compile_engine(session: Session, checkpoint: Artifact, candidate: Candidate, graph: Artifact) -> Engine:
    """Make the engine, or what its device needs to make it."""
    backend = backends.backend(candidate.target.backend)
    version = _version(candidate)
    batch = BatchRange(min=session.config.export.batch.min, max=session.config.export.batch.max)
    length = longest(read_deploy(checkpoint.folder).preprocessing)
    inputs = {
        "graph": graph.digest,
        "longest": length,
        "target": asdict(candidate.target),
        "precision": candidate.precision,
        "batch": asdict(batch),
        "version": version,
        "gpu": environment.gpu_names(),
        "not_here": backend.why_not_here(candidate.target, candidate.precision),
        "code": code_digest("backends", "runtime", "pipeline/engines.py"),
    }

    def make(folder: Path) -> None:
        backend.compile(
            CompileRequest(
                model=graph / "model.onnx",
                folder=folder,
                target=candidate.target,
                precision=candidate.precision,
                batch=batch,
                longest=length,
            )
        )

    artifact = session.stage("compile", candidate.name, inputs, make)
    return Engine(candidate=candidate, artifact=artifact, record=EngineRecord.read(artifact.folder))


def longest(preprocessing: Preprocessing) -> int | None:
    """Largest size of a dimension of the input that differs between samples; None where none does."""
    return preprocessing.max_length if isinstance(preprocessing, TextPreprocessing) else None


def _check_dynamic(config: Config, candidates: list[Candidate]) -> None:
    """Refuse int8 with scales of the moment for an engine that has none."""
    from edgetl.quantize import schemes

    recipe = catalog.recipe(config.quantize.recipe)
    without = [
        candidate.target.name
        for candidate in candidates
        if candidate.precision == "int8" and not schemes.scheme(candidate.target.scheme).dynamic
    ]
    if recipe.kind == "dynamic" and without:
        raise ConfigError(
            f"quantize.recipe is {recipe.name}, which is dynamic; int8 for {', '.join(without)} is not",
            hint='leave "int8" out of the precisions of that target, or recipe = "int8-mse"',
        )


def _check_dla(config: Config, candidates: list[Candidate]) -> None:
    """Refuse before anything is trained what a deep-learning accelerator does not take."""
    batch, there = config.export.batch, [each for each in candidates if each.target.dla_core is not None]
    for name in (each.target.name for each in there):
        if batch.min != batch.max:
            raise ConfigError(
                f"export.batch is {batch.min} to {batch.max}; {name} is a DLA, which takes one batch size",
                hint="write batch = { min = 1, max = 1 } under [export]",
            )
        if tasks.task_of(config).modality.kind == "text":
            raise ConfigError(
                f"data.task is {config.data.task}; {name} is a DLA, which has no dynamic shapes, and texts have no"
                " fixed length",
                hint="take a target without dla_core: the module's GPU",
            )
    for each in there:
        if backends.backend(each.target.backend).why_not_here(each.target, each.precision) is not None:
            tensorrt.refuse_old(each.target, each.precision)


def _need(extra: str, what: str, *packages: str) -> None:
    """Refuse to begin where a package of an extra is not installed; nothing is imported to find out."""
    for package, version in versions_of(*packages).items():
        if not version:
            raise MissingExtraError(package, extra=extra, needed_for=what)


def _version(candidate: Candidate) -> str | None:
    """Version of the library that compiles for a target; None where it is only needed on the device."""
    backend = backends.backend(candidate.target.backend)
    version = backend.version()
    if version is None and not candidate.target.built_on_device:
        raise MissingExtraError(
            backend.name, extra=backend.extra, needed_for=f"building for the target {candidate.target.name}"
        )
    return version


def open_graph(model: Path, *, provider: str = "CPUExecutionProvider", frugal: bool = False) -> Runner:
    """A plain ONNX file on an execution provider of ONNX Runtime, where every session of it computes the same."""
    from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(model, provider=provider, repeatable=True, frugal=frugal)
