"""Tasks: what goes in (images, texts, tables) and what is to come out, for the stages that must know.

A task is a modality with an objective. Everything else in the pipeline deals with arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgetl import metrics
from edgetl.backends import networks
from edgetl.config import Config, Finetune
from edgetl.data.dataset import Dataset
from edgetl.errors import ConfigError
from edgetl.pipeline.modalities import Images, Modality, Tables, Texts

_OF_FACES = ("margin", "margin_on", "margin_scale")

Objective = Literal["one-label", "several-labels", "embedding"]


@dataclass(frozen=True)
class Task:
    """What a model learns."""

    name: str
    modality: Modality
    objective: Objective

    @property
    def embeds(self) -> bool:
        """Whether the network puts out embeddings, and not one logit per class."""
        return self.objective == "embedding"


TASKS = {
    task.name: task
    for task in (
        Task("image-classification", Images(), "one-label"),
        Task("multi-label-images", Images(several=True), "several-labels"),
        Task("text-classification", Texts(), "one-label"),
        Task("table-classification", Tables(), "one-label"),
        Task("face-verification", Images(), "embedding"),
    )
}


def task_of(config: Config) -> Task:
    """The task of a configuration, when its other fields fit it.

    Raises:
        ConfigError: They do not.
    """
    task = TASKS[config.data.task]
    family = config.model.backbone.partition(":")[0]
    if networks.KINDS[family] != task.modality.kind:
        fitting = ", ".join(f"{name}:…" for name, kind in networks.KINDS.items() if kind == task.modality.kind)
        raise ConfigError(
            f"model.backbone is '{config.model.backbone}', and data.task is {task.name}",
            hint=f"backbones for it are {fitting}",
        )
    metric = config.data.metric
    if metric is not None and metric not in metrics.allowed_metrics(task.name):
        raise ConfigError(
            f"data.metric is {metric}; {task.name} can be measured in {', '.join(metrics.allowed_metrics(task.name))}"
        )
    if metric == "macro-f1" and config.data.decision != "largest":
        raise ConfigError(
            f'data.metric = "macro-f1" goes by the most probable class, and data.decision is {config.data.decision}',
            hint='decision = "largest", or metric = "auc"',
        )
    if config.data.decision != "largest" and task.objective != "one-label":
        raise ConfigError(
            f"data.decision is {config.data.decision}; {task.name} finds its thresholds on val by itself",
            hint='leave out data.decision, or data.decision = "largest"',
        )
    if task.modality.kind != "image" and config.data.augment != type(config.data.augment)():
        raise ConfigError(f"[data.augment] changes images; data.task is {task.name}", hint="leave out [data.augment]")
    _check_training(task, config)
    return task


def check_classes(config: Config, classes: int) -> None:
    """What can be said of a configuration as soon as its classes are known: before hours of training.

    Args:
        config: Of the project.
        classes: How many the data have.

    Raises:
        ConfigError: ``data.decision`` is a rule for two classes, and there are others.
    """
    rule = config.data.decision
    if rule != "largest" and classes != 2:
        raise ConfigError(
            f'data.decision = "{rule}" is for two classes; there are {classes}', hint='decision = "largest"'
        )


def _check_training(task: Task, config: Config) -> None:
    """What [finetune] says must have a meaning for the task: nothing is left out in silence.

    Raises:
        ConfigError: It has none.
    """
    finetune, augment = config.finetune, config.data.augment
    several = task.objective == "several-labels"
    if several and finetune.balance == "sampler":
        raise ConfigError(
            f'finetune.balance = "sampler" needs samples of one class; data.task is {task.name}',
            hint='balance = "loss"',
        )
    if finetune.balance == "smote" and task.modality.kind != "table":
        raise ConfigError(
            f'finetune.balance = "smote" draws synthetic rows of tables; data.task is {task.name}',
            hint='balance = "loss"' if several else 'balance = "sampler" or "loss"',
        )
    if task.embeds and (augment.mixup or augment.cutmix):
        raise ConfigError("MixUp and CutMix mix classes; face-verification has none", hint="leave them out")
    if not task.embeds:
        usual = Finetune()
        given = [name for name in _OF_FACES if getattr(finetune, name) != getattr(usual, name)]
        if given:
            raise ConfigError(
                f"finetune.{given[0]} is of face-verification; data.task is {task.name}", hint=f"leave out {given[0]}"
            )
    for number, phase in enumerate(finetune.phases, 1):
        if phase.views > 1 and not augment.per_image:
            raise ConfigError(
                f"phase {number} has {phase.views} views of every image, and nothing changes an image at random",
                hint="[data.augment], or leave out views",
            )


def metric_of(config: Config) -> metrics.Metric:
    """What validation and parity measure."""
    return metrics.metric(config.data.metric or metrics.default_metric(config.data.task))


def outputs_of(config: Config, dataset: Dataset) -> tuple[str, ...]:
    """Names of the network's outputs while it trains: the classes; of an embedding, the people of train."""
    if not TASKS[config.data.task].embeds:
        return dataset.classes
    return dataset.classes[: 1 + max(sample.present[0] for sample in dataset.train)]
