"""Training: one phase on a network, with early stopping and the best weights restored.

One loop for a CPU, a GPU and several of them. Everything random in it is a function of the seed and the step, so that
a training that was killed goes on as if it had not been.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from edgetl.backends.backbones import Stage
from edgetl.backends.torch import cuda_available
from edgetl.config import Finetune, Phase
from edgetl.errors import DataError, ProviderError, not_imported
from edgetl.finetune import logs
from edgetl.finetune.feeding import readers_alive
from edgetl.finetune.groups import Group
from edgetl.finetune.memory import enough_on_gpu, kept_between_steps
from edgetl.finetune.parts import at_once
from edgetl.finetune.phases import Data, Epoch, Place, Progress, Score
from edgetl.finetune.trainer import Trainer
from edgetl.metrics import metric as metric_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

_ON_CPU = 'finetune.device = "cpu"'


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """What one phase came to."""

    train: str
    epochs: tuple[Epoch, ...]
    best_epoch: int
    """The epoch whose weights were kept; 0: those from before the phase, which were better than every epoch's or
    already as good as they should become."""
    metric: str
    """What decided, by its name in :mod:`edgetl.metrics`."""
    best_val_score: float
    device: str
    images_per_s: float
    """Of training steps, without validation."""
    trained: int
    """Number of parameters that were trained."""
    precision: str
    processes: int
    groups: tuple[Group, ...]
    """Of parameters that learned alike: by stage, and by whether they decay."""
    optimizer: str
    loss: str
    """cross-entropy or focal; with several labels or embeddings, the form of it that is theirs."""
    focal_gamma: float | None
    """None: another loss than focal."""
    label_smoothing: float
    l1: float
    """Weight of the sum of absolute weights in the loss; biases and normalisation have none."""
    dropout: float | None
    """Before the head; None: the backbone's own, and none where the head alone is trained."""
    averaged: int = 0
    """The kept weights are the mean after so many last epochs; 0: of one epoch."""
    compiled: dict[str, float] = field(default_factory=dict)
    """Seconds for 20 steps as they are and with torch.compile, where that was measured."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def pick_device(asked: str) -> str:
    """The device of ``finetune.device``: cpu or cuda.

    Raises:
        ProviderError: cuda was asked for and is not there.
    """
    if asked == "cuda" and not cuda_available():
        raise ProviderError("finetune.device is cuda, and PyTorch sees no CUDA device", hint="edgetl doctor")
    return "cuda" if asked != "cpu" and cuda_available() else "cpu"


def pick_workers(asked: int | None, device: str) -> int:
    """Processes that decode images: with a GPU one per core up to 8; on a CPU they would take its cores."""
    if asked is not None:
        return asked
    return min(8, os.cpu_count() or 1) if device == "cuda" else 0


def pick_precision(asked: str, device: str) -> str:
    """What matrix products are computed in, for ``finetune.precision``: fp32, bf16 or fp16.

    Raises:
        ProviderError: The device has no such precision.
    """
    import torch

    if asked == "fp16" and device == "cpu":
        raise ProviderError("finetune.precision is fp16, which PyTorch trains on a GPU alone", hint='"bf16" or "fp32"')
    if asked != "auto":
        return asked
    if device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def train_phase(
    module: nn.Module,
    data: Data,
    phase: Phase,
    finetune: Finetune,
    stages: Sequence[Stage],
    *,
    seed: int,
    place: Place | None = None,
    metric: Score | None = None,
    progress: Progress | None = None,
) -> PhaseResult:
    """Train a network in place.

    Args:
        module: A classifier. On return it has the best weights, in eval mode, on the CPU.
        data: Training and validation samples.
        phase: What is trained, and how long.
        finetune: How; where the phase has a loss and regularisation of its own, those.
        stages: Of the network; see :func:`edgetl.backends.backbones.stages`.
        seed: Of everything random.
        place: Device, workers, and where the state is kept.
        metric: Decides which epoch is best, and when to stop; None: top-1.
        progress: Called with what is being done, how much is done, and of how much.

    Raises:
        MissingExtraError: torch or accelerate is not installed.
        TrainingError: The loss or weights became NaN or infinite, memory of the GPU ran out, or a process that reads
            samples died.
        ModelError: The phase selects nothing, or a BatchNorm is to learn from one value per channel.
        DataError: There is no sample to learn from, or samples hold NaN.
    """
    try:
        import accelerate  # noqa: F401 - asked for here, where its absence can be explained
        import torch  # noqa: F401
    except ImportError as error:
        raise not_imported(error, error.name or "torch", extra="train", needed_for="fine-tuning") from None
    if not len(data.labels) or not len(data.val_labels):
        raise DataError("training needs at least one sample in train and in val")
    place, finetune = place or Place(), finetune.of(phase)
    precision = pick_precision(finetune.precision, place.device)
    accelerator = _accelerator(place.device, precision, finetune)
    with enough_on_gpu(f"the network of {_millions(module)} million parameters", hint=_ON_CPU):
        trainer = Trainer(module, data, phase, finetune, stages, seed=seed, place=place, accelerator=accelerator)
    trainer.metric, trainer.progress = metric or metric_of("top1"), progress
    trainer.on_epoch = logs.opened(accelerator, phase, finetune, run=place.run, metric=trainer.metric.name)
    sure = finetune.deterministic and place.device == "cuda"
    kept = kept_between_steps() if place.device == "cpu" else nullcontext()
    at_a_time = at_once(finetune, accelerator.num_processes)
    with _deterministic(sure), _own_random_numbers(), _threads(place.threads), kept, readers_alive():
        try:
            with enough_on_gpu(f"{at_a_time} samples at a time", hint=_smaller_parts(phase, finetune, at_a_time)):
                trainer.run()
        finally:
            for tracker in accelerator.trackers:  # end_training would end the group of processes, too
                tracker.finish()
            accelerator.free_memory()
    module.to("cpu").eval()
    return PhaseResult(
        train=phase.train,
        epochs=tuple(trainer.history),
        best_epoch=trainer.best_epoch,
        metric=trainer.metric.name,
        best_val_score=trainer.best,
        device=place.device,
        images_per_s=trainer.images_per_s,
        trained=sum(parameter.numel() for name, parameter in module.named_parameters() if name in trainer.chosen),
        precision=precision,
        processes=accelerator.num_processes,
        groups=trainer.groups,
        optimizer=finetune.optimizer,
        loss=finetune.loss,
        focal_gamma=finetune.focal_gamma if finetune.loss == "focal" else None,
        label_smoothing=finetune.label_smoothing,
        l1=finetune.l1,
        dropout=None if phase.train == "head" else finetune.dropout,
        averaged=trainer.averaged,
        compiled=trainer.compiled,
    )


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f}"


def _smaller_parts(phase: Phase, finetune: Finetune, at_a_time: int) -> str:
    """What to change where so many samples at a time are too many for a GPU."""
    if at_a_time <= (2 if phase.batchnorm == "train" else 1):  # one may be too few for BatchNorm
        return f"smaller inputs or a smaller backbone; or {_ON_CPU}"
    same = "" if phase.batchnorm == "train" else ", with the same result"
    return (
        f"finetune.accumulate = {2 * finetune.accumulate} computes a step in smaller parts{same}; or a smaller"
        " finetune.batch_size"
    )


def _accelerator(device: str, precision: str, finetune: Finetune) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Its state is the process's own, and it refuses another precision than the first one.
    AcceleratorState._reset_state(reset_partial_state=int(os.environ.get("WORLD_SIZE", "1")) == 1)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=logs.installed(finetune.log),
        project_dir=str(finetune.log_dir) if finetune.log else None,
    )


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Algorithms that give the same result every time, for as long as it is open."""
    import torch

    if not wanted:
        yield
        return
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads of PyTorch, for as long as it is open."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Leave the caller's random numbers as they were."""
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
