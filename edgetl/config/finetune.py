"""The tables of edgetl.toml that say how a network learns: ``[finetune]`` and ``[data.augment]``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from edgetl.config.section import Section


class Augment(Section):
    """Random changes of training images; never at validation, calibration or test. All off where left out."""

    flip: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of mirroring left and right."""
    vertical_flip: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of mirroring top and bottom."""
    crop: float = Field(default=1.0, gt=0.0, le=1.0)
    """Smallest share of the image's area that a random crop keeps; 1: no crop."""
    rotate: float = Field(default=0.0, ge=0.0, le=180.0)
    """Largest angle of a random rotation, in degrees, either way."""
    colour: float = Field(default=0.0, ge=0.0, le=1.0)
    """Strength of random changes of brightness, contrast, saturation and (a quarter as strong) hue."""
    noise: float = Field(default=0.0, ge=0.0, le=1.0)
    """Standard deviation of Gaussian noise, on the scale of pixels from 0 to 1."""
    erase: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of erasing a random rectangle (Zhong et al. 2017, arXiv:1708.04896)."""
    randaugment: int = Field(default=0, ge=0, le=30)
    """Magnitude of RandAugment with two operations (Cubuk et al. 2019, arXiv:1909.13719); 0: none."""
    mixup: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Alpha of MixUp (Zhang et al. 2017, arXiv:1710.09412); 0: none."""
    cutmix: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Alpha of CutMix (Yun et al. 2019, arXiv:1905.04899); 0: none. With mixup, either is drawn for every batch."""

    @property
    def per_image(self) -> bool:
        """Whether single images are changed at random."""
        return self != Augment(mixup=self.mixup, cutmix=self.cutmix)


class Phase(Section):
    """One phase of fine-tuning."""

    train: Literal["head", "all", "biases", "last-stages", "all-but-first", "names"]
    """What is trained, the head always among it but for names: the head alone, on cached features of the frozen
    backbone; every parameter; biases; the last stages; all but the first stages; parameters by pattern."""
    stages: int | None = Field(default=None, ge=1)
    """With last-stages, how many train; with all-but-first, how many are frozen. `edgetl inspect` lists them."""
    names: tuple[str, ...] = ()
    """With train = "names": patterns of parameter names, as "blocks.5.*"."""
    views: int = Field(default=1, ge=1)
    """With train = "head" and [data.augment]: random versions of every image whose features are cached; each epoch
    takes the next. MixUp and CutMix are left out there: a mixture of features is not the features of a mixture."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the training split, at most."""
    lr: float | None = Field(default=None, gt=0.0)
    """Peak learning rate. Left out: 1e-2 for the head alone, else 1e-3."""
    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    """Every stage has this share of the learning rate of the stage behind it; 1: all have the same."""
    schedule: Literal["constant", "step", "cosine", "one-cycle"] = "one-cycle"
    """How the learning rate goes: constant; times gamma every step_epochs; down a half cosine; or up and down one
    (Smith and Topin 2018, arXiv:1708.07120)."""
    warmup: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Share of the phase in which the learning rate rises. Left out: 0.3 with one-cycle, else 0."""
    step_epochs: float = Field(default=1.0, gt=0.0)
    """With schedule = "step": epochs between steps."""
    gamma: float = Field(default=0.1, gt=0.0, le=1.0)
    """With schedule = "step": what the learning rate is multiplied with at each step."""
    batchnorm: Literal["train", "frozen-statistics", "frozen"] = "frozen-statistics"
    """What BatchNorm does where its parameters are trained: learns as in training from scratch; learns scale and
    shift, but keeps its statistics (short fine-tuning loses less of the pretraining); or is left as it is."""
    loss: Literal["cross-entropy", "focal"] | None = None
    """As finetune.loss, in this phase alone. Left out, as with the next three: what [finetune] says."""
    focal_gamma: float | None = Field(default=None, ge=0.0)
    """As finetune.focal_gamma, in this phase alone."""
    label_smoothing: float | None = Field(default=None, ge=0.0, lt=1.0)
    """As finetune.label_smoothing, in this phase alone."""
    l1: float | None = Field(default=None, ge=0.0)
    """As finetune.l1, in this phase alone."""
    keep: Literal["best", "last"] = "best"
    """The weights of the best epoch on val, or those from before the phase where they are better than every epoch's; or
    of the last epoch, where val is too small to choose by."""
    patience: int = Field(default=5, ge=1)
    """Stop after this many epochs without a better validation result."""
    until: float | None = Field(default=None, gt=0.0, le=1.0)
    """Stop as soon as the validation result is at least this."""

    @model_validator(mode="after")
    def _complete(self) -> Phase:
        if (self.stages is not None) != (self.train in ("last-stages", "all-but-first")):
            raise ValueError(f'train = "{self.train}" {"goes without" if self.stages else "needs"} stages')
        if bool(self.names) != (self.train == "names"):
            raise ValueError(f'train = "{self.train}" {"goes without" if self.names else "needs"} names')
        if self.views > 1 and self.train != "head":
            raise ValueError(f'train = "{self.train}" caches no features: views are of train = "head"')
        return self

    @model_validator(mode="after")
    def _everything_counts(self) -> Phase:
        """Values that would change nothing were meant to change something."""
        usual = type(self).model_fields
        if self.train == "head":
            if self.batchnorm != usual["batchnorm"].default:
                raise ValueError(
                    f'train = "head" has no BatchNorm that batchnorm = "{self.batchnorm}" could be about: the head'
                    " learns on features of the frozen backbone"
                )
            if self.layer_decay != 1.0:
                raise ValueError(f'train = "head" trains one layer: layer_decay = {self.layer_decay} has no other one')
            if self.views > self.epochs:
                raise ValueError(f"views = {self.views} are cached, and epochs = {self.epochs} take one each")
        for name in ("step_epochs", "gamma"):
            value = getattr(self, name)
            if value != usual[name].default and self.schedule != "step":
                raise ValueError(f'{name} = {value} is of schedule = "step"; {self.schedule} has none')
        return self

    @property
    def peak_lr(self) -> float:
        """The learning rate, where none was given its default."""
        return self.lr or (1e-2 if self.train == "head" else 1e-3)


class Finetune(Section):
    """How the network is fine-tuned."""

    phases: tuple[Phase, ...] = (Phase(train="head", epochs=20), Phase(train="all", epochs=3))
    """Phases in their order; none exports the backbone with the head that it has."""
    batch_size: int = Field(default=64, ge=2)
    """Samples per step, of all processes together."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or stochastic gradient descent with momentum."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """With optimizer = "sgd"."""
    weight_decay: float = Field(default=1e-4, ge=0.0)
    """Decay of weights; biases and normalisation have none."""
    l1: float = Field(default=0.0, ge=0.0)
    """Weight of the sum of absolute weights in the loss; biases and normalisation have none."""
    loss: Literal["cross-entropy", "focal"] = "cross-entropy"
    """Cross-entropy, or focal loss (Lin et al. 2017, arXiv:1708.02002), which looks more at what is hard."""
    focal_gamma: float = Field(default=2.0, ge=0.0)
    """With loss = "focal": how much more."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Label smoothing of the cross-entropy."""
    verdict: Literal["off", "report", "require"] = "off"
    """Whether a build judges if transfer helped, against a linear probe and training from scratch: not; in its report;
    or as a gate, too. `edgetl train --verdict` always does."""
    verdict_seeds: int = Field(default=3, ge=3)
    """Trainings of each method for the verdict."""
    source_test: Path | None = None
    """Test split of the task that model.weights, the checkpoint of another run, was trained on: a folder, manifest or
    file, as data.test. With a verdict, the change on it is reported: what fine-tuning forgot."""
    max_forgetting: float | None = Field(default=None, gt=0.0, le=1.0)
    """With source_test, a gate: the drop on the source task that must be excluded, as a share (0.02 is two points); the
    interval's lower end must be above it. A build then judges whatever verdict says. Left out: no gate."""
    margin: float = Field(default=0.3, ge=0.0, lt=3.1)
    """Of face-verification: by how much the right person must be ahead in training."""
    margin_on: Literal["cosine", "angle"] = "cosine"
    """On cosines (CosFace, Wang et al. 2018, arXiv:1801.09414) or on angles (ArcFace, Deng et al. 2019,
    arXiv:1801.07698), in radians."""
    margin_scale: float = Field(default=16.0, gt=0.0)
    """Of face-verification: what cosines are multiplied by before the cross-entropy."""
    balance: Literal["none", "sampler", "loss", "smote"] = "none"
    """For classes of unequal size: draw from every class alike, or weigh the loss by 1 / (class size); of tables,
    synthetic rows between neighbours of a class (Chawla et al. 2002, arXiv:1106.1813), in train alone."""
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Dropout before the head, in phases that train more than the head: cached features pass by it. Left out: the
    backbone's own."""
    clip_norm: float | None = Field(default=None, gt=0.0)
    """Largest norm of the gradient of all parameters together. Left out: not clipped."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a step's samples are computed in, where they do not fit into memory together; validation takes as many
    at a time."""
    ema: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Decay per step of an exponential moving average of the weights, which is then validated and kept. Left out:
    the weights themselves are."""
    average_last: int = Field(default=1, ge=1)
    """Keep the mean of the weights after the last so many epochs (Izmailov et al. 2018, arXiv:1803.05407), where it
    validates at least as well as the best epoch; 1: no mean."""
    seed: int = 0
    """Seed of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the GPU where there is one, and says which it took."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What matrix products are computed in. auto: bf16 on a GPU that has it, fp16 on another, fp32 on a CPU."""
    compile: Literal["off", "measure"] = "off"
    """measure: time 20 steps with and without torch.compile on the way, and go on with the faster."""
    deterministic: bool = False
    """Only what gives the same result every time: on a GPU slower algorithms, and a frozen backbone's features from
    PyTorch, not from whichever engine was the fastest and differs from it in the last bits."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that decode images. Left out: none on a CPU, one per core up to 8 with a GPU."""
    log: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Where every epoch's loss and metric are written besides training.csv, which is always beside the checkpoint."""
    log_dir: Path = Path("logs")
    """Folder of these logs."""
    save_every_s: float = Field(default=60.0, gt=0.0)
    """Seconds between saves of the state that a killed training goes on from."""

    def of(self, phase: Phase) -> Finetune:
        """What holds in a phase: its own loss, focal_gamma, label_smoothing and l1, where it has them."""
        own = {name: getattr(phase, name) for name in ("loss", "focal_gamma", "label_smoothing", "l1")}
        return self.model_copy(update={name: value for name, value in own.items() if value is not None})

    @model_validator(mode="after")
    def _everything_counts(self) -> Finetune:
        """Values that would change nothing were meant to change something."""
        gamma, momentum = (type(self).model_fields[name].default for name in ("focal_gamma", "momentum"))
        focal = [self.of(phase).loss == "focal" for phase in self.phases]
        if self.focal_gamma != gamma and not any(focal):
            raise ValueError(f'focal_gamma = {self.focal_gamma} is of the focal loss: loss = "focal" is missing')
        for number, (phase, has) in enumerate(zip(self.phases, focal, strict=True), 1):
            if phase.focal_gamma is not None and not has:
                raise ValueError(f'focal_gamma of phase {number} is of the focal loss: loss = "focal" is missing')
        if self.momentum != momentum and self.optimizer != "sgd":
            raise ValueError(f'momentum = {self.momentum} is of optimizer = "sgd"; {self.optimizer} has none')
        if self.dropout and self.phases and all(phase.train == "head" for phase in self.phases):
            raise ValueError(f"dropout = {self.dropout} is of phases that train more than the head, and there is none")
        longest = max((phase.epochs for phase in self.phases), default=0)
        if self.average_last > max(1, longest):
            raise ValueError(f"average_last = {self.average_last} epochs are more than a phase has: {longest} at most")
        return self

    @model_validator(mode="after")
    def _gate_has_data(self) -> Finetune:
        if self.max_forgetting is not None and self.source_test is None:
            raise ValueError("max_forgetting is judged on the source task's test split: source_test is missing")
        return self
