"""The stage that computes a frozen backbone's features, on the fastest engine of this machine that computes the same.

Two kinds of results are in the store. "feature-engine" is the choice, with the exported body of the network: made once
per backbone and input size, and then the same for every split, every data set and every resumed build. "features" are
the features of one split; the name of the engine is part of their key.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.backends.checkpoint import Deploy
from edgetl.benchmark import environment
from edgetl.config import Augment, Config
from edgetl.data.augment import AugmentedSamples
from edgetl.data.loader import Samples, batches
from edgetl.data.verify import threads as threads_of_decoding
from edgetl.errors import EdgetlError, ModelError, UsageError
from edgetl.finetune import features as stage
from edgetl.finetune.features import Extractor, RunnerExtractor, TorchExtractor
from edgetl.pipeline.session import Session
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.runtime.runner import Runner
from edgetl.specs import BatchRange
from edgetl.store import Artifact, code_digest, digest_of, file_digest, versions_of

if TYPE_CHECKING:
    from torch import nn

SMALL_FLOP = 2e11
"""Floating-point operations of all splits together below which eager PyTorch computes the features at once: on two
cores it takes some 15 seconds, and exporting a network takes as long. Counted, not timed, so that it is the same in
every run."""
BATCH = 32
"""Images per inference of an exported body; it is fixed, which lets more networks export and engines run faster."""

_COMPARED = 16
"""Real images of each split on which the engine's features are compared with eager PyTorch's."""

_BODY, _CHOICE = "body.onnx", "choice.json"
_OPSET = 20
_ENGINES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",)}
"""CPU engines beside eager PyTorch → the packages that bring each."""
_TORCH = ("torch", "timm", "torchvision", "numpy")
_EXPORTERS = ("onnx", "onnxscript", "onnxslim")
_CODE = ("finetune/features.py", "pipeline/features.py", "backends/torch.py", "backends/backbones.py", "runtime")
STAGES = ("feature-engine", "features")
"""Of the store: made while a head is trained, and never where that is there already."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Samples whose features are wanted."""

    name: str
    """For people: train, val."""
    digest: str
    """SHA-256 of everything that can change the batches: samples' content and labels, preprocessing, augmentation,
    seed, batch size."""
    count: int
    """Samples."""
    batches: Callable[[int], Iterable[stage.Batch]]
    """View → all samples in their order, as arrays (b, …) with labels (b, …). View v is every sample with
    the random changes of epoch v; without any there is one view."""
    views: int = 1


def split_of(name: str, samples: Samples, *, augment: Augment | None = None, seed: int = 0, views: int = 1) -> Split:
    """A split of images, as they are or in several views of random changes.

    Args:
        name: For people.
        samples: Decoded when features are computed.
        augment: Random changes, drawn per image; its mixup and cutmix are left out, because they change batches of
            images and not features. None: none.
        seed: Of the changes.
        views: Draws of the changes: view v has those of epoch v.

    Raises:
        UsageError: No view, or several without any change.
    """
    changed = augment is not None and augment.per_image
    if views < 1 or (views > 1 and not changed):
        raise UsageError(
            f"{views} views of '{name}' were asked for, {'with' if changed else 'without'} random changes of images",
            hint="views are at least 1, and 1 without [data.augment]",
        )
    content: dict[str, Any] = {
        "samples": [[sample.digest, sample.label] for sample in samples.samples],
        "preprocessing": samples.preprocessing.to_json(),
        "batch": BATCH,
    }
    if augment is None or not changed:
        return Split(
            name=name, digest=digest_of(content), count=len(samples), batches=lambda _: batches(samples, BATCH)
        )
    content["changes"] = [augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0}).model_dump(mode="json"), seed]
    changing = AugmentedSamples(samples, augment, seed)
    return Split(
        name=name,
        digest=digest_of(content),
        count=len(samples),
        batches=lambda view: _changed_batches(changing, view),
        views=views,
    )


def split_of_arrays(name: str, arrays: NDArray[np.float32], labels: NDArray[np.int64]) -> Split:
    """A split of inputs that are there already.

    Args:
        name: For people.
        arrays: (n, …), preprocessed.
        labels: (n,).
    """
    content = [hashlib.sha256(np.ascontiguousarray(each).tobytes()).hexdigest() for each in (arrays, labels)]
    return Split(
        name=name,
        digest=digest_of([content, list(arrays.shape), BATCH]),
        count=len(labels),
        batches=lambda _: ((arrays[at : at + BATCH], labels[at : at + BATCH]) for at in range(0, len(labels), BATCH)),
    )


def features(
    session: Session,
    module: nn.Module,
    deploy: Deploy,
    splits: Sequence[Split],
    *,
    head: str,
    device: str = "cpu",
    prefer: Literal["fastest", "torch"] = "fastest",
    threads: int | None = None,
    small_flop: float = SMALL_FLOP,
) -> tuple[Artifact, ...]:
    """The features of splits, computed where they are not there yet.

    Args:
        session: Its store keeps them, as the stages "feature-engine" and "features".
        module: The network, on the CPU, with the head that will be trained; it is not changed.
        deploy: Of its checkpoint.
        splits: Whose features.
        head: Name of the head among the network's modules.
        device: cpu; or cuda, where PyTorch on the GPU computes them and no other engine is tried.
        prefer: torch: eager PyTorch, whatever is faster, for results that are bit-identical between machines' stores
            and not only within one; so it is with finetune.deterministic, too.
        threads: Of ONNX Runtime and OpenVINO; None: their choice. PyTorch's are left as they are.
        small_flop: See :data:`SMALL_FLOP`.

    Returns:
        Per split a folder for :func:`edgetl.finetune.features.read`; its digest is that of features and labels alone,
        without how long they took.

    Raises:
        UsageError: No split, or a device that is neither.
        ModelError: The head is not one that takes (n, width), or features are not finite.
        TrainingError: The GPU's memory does not hold the network, or a batch of images.
        DataError: See :func:`edgetl.finetune.features.write`.
    """
    if not splits or device not in ("cpu", "cuda"):
        raise UsageError(f"features need a split and a device, cpu or cuda; given were {len(splits)} and '{device}'")
    shape = deploy.preprocessing.input_shape
    backbone = {"network": deploy.backbone, "weights": backbone_digest(module, head), "input": list(shape)}
    images = sum(split.count * split.views for split in splits)
    alone = device == "cuda" or prefer == "torch" or session.config.finetune.deterministic
    # Engines are tried for images alone: their bodies have inputs of one size.
    if not alone and isinstance(deploy.preprocessing, ImagePreprocessing):
        alone = flop(module, head, deploy.preprocessing.input_shape) * images < small_flop
    else:
        alone = True
    chosen = None if alone else _choose(session, module, deploy, backbone, head, threads)
    with _Opened(module, head, device, chosen, threads) as opened:
        return tuple(_features_of(session, split, backbone, opened) for split in splits)


def made_with(config: Config) -> dict[str, Any]:
    """What features depend on beside network, samples and chance: for the key of a result that is trained on them.

    Their own digest would be more exact, but takes the network and the features to be there, only to find out that
    nothing is to be done.
    """
    return _made_with("torch" if config.finetune.deterministic else "any")


def _made_with(engine: str) -> dict[str, Any]:
    """Of code and packages, what features by an engine depend on; by PyTorch they need no exporter."""
    if engine.startswith("torch"):
        return {"code": code_digest(*_CODE, "data"), "versions": versions_of(*_TORCH, "pillow")}
    engines = _ENGINES.get(engine) or itertools.chain(*_ENGINES.values())
    return {
        "code": code_digest(*_CODE, "data", "export"),
        "versions": versions_of(*_TORCH, "pillow", *engines, *_EXPORTERS),
    }


def backbone_digest(module: nn.Module, head: str) -> str:
    """SHA-256 of a network's parameters and buffers without its head's: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not name.startswith(f"{head}."):
            array = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
            digest.update(array.reshape(-1).view(_bytes()).numpy().tobytes())
    return digest.hexdigest()


def flop(module: nn.Module, head: str, input_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one image's features, as PyTorch counts them: two per multiply-add."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    training = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            stage.body_of(module.eval(), head)(torch.zeros(1, *input_shape))
    finally:
        for part, mode in training.items():
            part.training = mode
    return int(counter.get_total_flops())


@contextlib.contextmanager
def extractors(
    module: nn.Module, deploy: Deploy, head: str, folder: Path, *, threads: int | None = None
) -> Iterator[tuple[list[Extractor], dict[str, str]]]:
    """Eager PyTorch and every CPU engine that is installed here, opened on the exported body; closed at the end.

    Args:
        module: On the CPU.
        deploy: Of its checkpoint.
        head: Name of the head.
        folder: Where ``body.onnx`` is written: float32 (32, 3, H, W) → (32, width).
        threads: See :func:`features`.

    Yields:
        The extractors, eager PyTorch first, and engine → why it is not among them.
    """
    import copy

    contract = _images(deploy)
    found: list[Extractor] = [TorchExtractor(module, head)]
    missing = {name: "not installed" for name, packages in _ENGINES.items() if not any(versions_of(*packages).values())}
    here = [name for name in _ENGINES if name not in missing]
    if here:
        from edgetl.export import onnx as export_stage

        try:
            export_stage.export(
                copy.deepcopy(stage.body_of(module, head)),
                folder / _BODY,
                batch=BatchRange(min=BATCH, max=BATCH),
                opset=_OPSET,
                labels=(),  # features belong to no classes
                preprocessing=contract,
            )
        except EdgetlError as error:
            missing.update(dict.fromkeys(here, error.message))
            here = []
    with contextlib.ExitStack() as stack:
        for name in here:
            try:
                runner = stack.enter_context(_open(name, folder / _BODY, threads))
            except EdgetlError as error:
                missing[name] = error.message
            else:
                found.append(RunnerExtractor(name, runner))
        yield found, missing


def confirmed(chosen: Extractor, reference: Extractor, images: stage.Images) -> tuple[Extractor, dict[str, Any]]:
    """The chosen extractor, where it computes the reference's features of real images, too; else the reference.

    The choice is made on noise, before there are data. This is the check that counts: on the first batch.

    Returns:
        The extractor to use, and for the record what was compared.
    """
    if chosen is reference:
        return reference, {}
    expected = reference(images)
    if isinstance(chosen, TorchExtractor):
        chosen(images)  # what does not fit a GPU is told: the processor would take hours instead, and nobody would know
    try:
        differs = stage.fastest([chosen], images, expected, rounds=1).differences[chosen.name]
    except ModelError as error:
        return reference, {"refused": {chosen.name: error.message}}
    return chosen, {"difference": differs, "compared_with": reference.name, "compared_images": len(images)}


def _choose(
    session: Session, module: nn.Module, deploy: Deploy, backbone: dict[str, Any], head: str, threads: int | None
) -> Artifact:
    contract = _images(deploy)
    inputs = {
        "backbone": backbone,
        "machine": [environment.cpu_name(), environment.usable_cores(), threads],
        "code": code_digest(*_CODE, "export"),
        "versions": versions_of(*_TORCH, *itertools.chain(*_ENGINES.values()), *_EXPORTERS),
    }

    def make(folder: Path) -> None:
        noise = np.random.default_rng(0).standard_normal((BATCH, *contract.input_shape), dtype=np.float32)
        with extractors(module, deploy, head, folder, threads=threads) as (candidates, missing):
            choice = stage.fastest(candidates, noise, candidates[0](noise))
        if choice.name not in _ENGINES:
            (folder / _BODY).unlink(missing_ok=True)
        facts = replace(choice, refused={**missing, **choice.refused}).to_json()
        (folder / _CHOICE).write_text(json.dumps(facts) + "\n", encoding="utf-8")

    artifact = session.stage("feature-engine", "time engines for the frozen backbone", inputs, make)
    facts = json.loads((artifact / _CHOICE).read_text(encoding="utf-8"))
    speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in facts["images_per_s"].items())
    session.reporter.note(f"features by {facts['name']} (images/s: {speeds})")
    for name, reason in facts["refused"].items():
        session.reporter.note(f"features not by {name}: {reason}")
    return artifact


class _Opened:
    """The chosen engine and eager PyTorch, made when the first split needs them."""

    def __init__(self, module: nn.Module, head: str, device: str, chosen: Artifact | None, threads: int | None) -> None:
        self._module, self._head, self._device = module, head, device
        self._chosen, self._threads = chosen, threads
        self._stack = contextlib.ExitStack()
        self.facts: dict[str, Any] = {}
        """Of the choice; empty where there was none."""
        if chosen:
            self.facts = json.loads((chosen / _CHOICE).read_text(encoding="utf-8"))
        self.name: str = self.facts.get("name", "torch" if device == "cpu" else f"torch-{device}")

    @cached_property
    def reference(self) -> Extractor:
        """Eager PyTorch on the CPU."""
        return TorchExtractor(self._module, self._head)

    @cached_property
    def extractor(self) -> Extractor:
        """The one that computes the features."""
        if self._device == "cuda":
            return TorchExtractor(self._module, self._head, device=self._device)
        if self._chosen is None or self.name not in _ENGINES:
            return self.reference
        runner = self._stack.enter_context(_open(self.name, self._chosen / _BODY, self._threads))
        return RunnerExtractor(self.name, runner)

    def __enter__(self) -> _Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _features_of(session: Session, split: Split, backbone: dict[str, Any], opened: _Opened) -> Artifact:
    inputs = {
        "backbone": backbone,
        "samples": split.digest,
        "count": split.count,
        "views": split.views,
        "engine": opened.name,
        "gpu": environment.gpu_names() if opened.name == "torch-cuda" else [],
        **_made_with(opened.name),
    }

    def make(folder: Path) -> None:
        stream = itertools.chain.from_iterable(split.batches(view) for view in range(split.views))
        first = list(itertools.islice(stream, 1))
        extractor = opened.extractor
        checked: dict[str, Any] = {}
        if first:
            extractor, checked = confirmed(extractor, opened.reference, first[0][0][:_COMPARED])
        for name, reason in checked.get("refused", {}).items():
            session.reporter.note(f"features of {split.name} by {extractor.name}, not by {name}: {reason}")
        stage.write(
            folder,
            itertools.chain(first, stream),
            extractor,
            count=split.count,
            views=split.views,
            facts={"choice": opened.facts, "check": checked},
            progress=session.progress,
            what=f"features of {split.name}",
        )

    views = f", {split.views} views" if split.views > 1 else ""
    artifact = session.stage("features", f"features of {split.name} by {opened.name}{views}", inputs, make)
    content = {name: file_digest(artifact / name) for name in (stage.FEATURES, stage.LABELS)}
    return replace(artifact, digest=digest_of(content))


def _changed_batches(samples: AugmentedSamples, view: int) -> Iterator[stage.Batch]:
    """All samples of a view in their order; threads decode and change those of one batch."""
    with ThreadPoolExecutor(threads_of_decoding(), thread_name_prefix="edgetl-views") as pool:
        for start in range(0, len(samples), BATCH):
            keys = [(view, index) for index in range(start, min(start + BATCH, len(samples)))]
            pairs = list(pool.map(samples.__getitem__, keys))
            yield np.stack([image for image, _ in pairs]), np.asarray([label for _, label in pairs], dtype=np.int64)


def _open(name: str, model: Path, threads: int | None) -> Runner:
    if name == "openvino":
        from edgetl.runtime.openvino import OpenVinoRunner

        return OpenVinoRunner(model, inference_precision="f32", threads=threads)
    from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(model, threads=threads)


def _images(deploy: Deploy) -> ImagePreprocessing:
    assert isinstance(deploy.preprocessing, ImagePreprocessing)  # engines are tried for images alone
    return deploy.preprocessing


def _bytes() -> Any:
    import torch

    return torch.uint8
