"""The values that a report is made from: filled by the pipeline, rendered by :mod:`html`, :mod:`junit` and the others.

Every share is 0 to 1 and every latency is in milliseconds per call. A float that is not finite, or None, prints as a
dash. Speed-ups, drops in size and the figures of the summary are derived when the page is rendered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgetl.report.learning import Epoch as Epoch
from edgetl.report.learning import Figure as Figure
from edgetl.report.learning import Method as Method
from edgetl.report.learning import ParameterGroup as ParameterGroup
from edgetl.report.learning import SourceTask as SourceTask
from edgetl.report.learning import TrainingPhase as TrainingPhase
from edgetl.report.learning import Transfer as Transfer
from edgetl.report.learning import Weights as Weights
from edgetl.report.machine import Ceilings, Condition, Energy, Roofline
from edgetl.report.quantized import Calibration as Calibration
from edgetl.report.quantized import Fusion, LayerReport
from edgetl.report.quantized import OperatorCount as OperatorCount
from edgetl.report.quantized import Quantization as Quantization
from edgetl.report.quantized import TensorHistogram as TensorHistogram

EngineStatus = Literal["ready", "built", "build-on-device"]
Outcome = Literal["passed", "failed", "undecided", "waived", "not-run"]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A name and its value, for the small two-column tables."""

    name: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of the build."""

    published: bool
    """Whether the bundle was published."""
    reason: str
    """Why, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles of the time of one call, batch as in the environment."""

    p50_ms: float
    p90_ms: float | None
    """None, as p99_ms, where there were too few calls to speak of it."""
    p99_ms: float | None
    samples: int
    """Calls that count."""
    interval_ms: tuple[float, float] | None = None
    """95% interval of the median; None where it is not known."""
    p90_interval_ms: tuple[float, float] | None = None
    """95% interval of the 90th percentile; None where it is not known."""
    p99_interval_ms: tuple[float, float] | None = None
    """95% interval of the 99th percentile; None where it is not known."""
    p999_ms: float | None = None
    """None where there were too few calls to speak of it: 6,636 are enough."""
    p999_interval_ms: tuple[float, float] | None = None
    """95% interval of the 99.9th percentile; None where it is not known."""
    cold_ms: tuple[float, float, float] | None = None
    """Import of the library, load of the engine, first inference; None where they were not measured."""
    unstable: tuple[str, ...] = ()
    """Why the measurement should not be believed, a sentence each: the times or the machine did not hold still."""
    unstable_by_machine: tuple[str, ...] = ()
    """Those of :attr:`unstable` that are of the whole machine, whatever was measured."""
    energy: tuple[Energy, ...] = ()
    """Of one call, one per sensor; empty where no sensor was asked."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Something that engines are compared with: PyTorch eager, or the float graph on ONNX Runtime."""

    name: str
    """As it stands in tables and plots: "PyTorch eager", "ONNX Runtime fp32"."""
    score: float | None = None
    """The metric on the test split, as a share."""
    latency: Latency | None = None
    """Measured interleaved with the engines; None without a benchmark."""
    size_bytes: int | None = None
    """Size of its model file."""
    same_as: str = ""
    """:attr:`Engine.name` of the engine that is this baseline, so that it is drawn once; empty where none is."""


@dataclass(frozen=True, kw_only=True)
class Regression:
    """A class, or a value of a column of the manifest, and how an engine's answers on it changed."""

    column: str
    """"class", or the column."""
    value: str
    decisions: int
    """Of this class or value."""
    worse: int
    """That only the reference gets right."""
    better: int
    """That only the engine gets right."""
    drop: float
    """As a share of the decisions."""
    p_adjusted: float
    """How often chance alone would show so much anywhere among all classes and values."""
    regressed: bool = True
    """Whether that is rare enough to say that the engine is worse."""


@dataclass(frozen=True, kw_only=True)
class ParityFigures:
    """An engine's outputs against the PyTorch reference, on the same raw samples."""

    samples: int
    """Samples of the test split that were compared."""
    score: float
    """Of the engine, as a share."""
    agreement: float
    """Share of decisions on which engine and reference agree."""
    drop: float
    """Score of the reference minus that of the engine, as a share; negative where the engine is better."""
    drop_upper: float
    """Upper bound of the drop at the confidence of :attr:`Report.confidence`, as a share."""
    interval: tuple[float, float]
    """Two-sided interval of the drop at the same confidence, as shares."""
    detectable_drop: float
    """The smallest drop that these samples would probably have shown, as a share."""
    regressions: tuple[Regression, ...] = ()
    """Those on which the engine is worse, the likeliest first."""
    slices: tuple[Regression, ...] = ()
    """All that were looked at, the regressions among them."""
    max_abs_error: float
    """Largest absolute difference of any output value."""
    mean_abs_error: float
    """Mean absolute difference over all output values."""
    groups: int | None = None
    """In how many groups the test samples belong together, of which each counts as one; None: each is by itself."""
    cosine: float | None = None
    """Mean cosine between both output vectors of a sample; None in reports of builds that did not tell it."""
    sqnr_db: float
    """Signal-to-quantization-noise ratio of the outputs, in decibels."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The outcome of one condition that an engine must meet."""

    outcome: Outcome
    """waived: not met, but the build does not depend on it, since another precision of the target is shipped, or since
    the user lets an undecided one do. A budget that an UNSTABLE measurement meets is undecided, or waived."""
    message: str = ""
    """One sentence: what was compared with what; or why it did not run."""

    @property
    def refuses(self) -> bool:
        """Whether the build fails because of it."""
        return self.outcome in ("failed", "undecided")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of the latency of a target's shipped engine; None where there is none."""

    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One target and precision."""

    target: str
    backend: str
    provider: str
    """Execution provider or device, in the backend's own words."""
    precision: str
    status: EngineStatus
    """ready: ran here; built: complete, but it cannot run here; build-on-device: only its sources are in the bundle."""
    shipped: bool
    """Whether the bundle recommends this precision for the target."""
    reason: str = ""
    """Why it is not shipped, or why it could not run here; one clause."""
    size_bytes: int | None = None
    """Size of all files of the engine."""
    placement_share: float | None = None
    """Share of the nodes of the optimised graph that run on :attr:`placed_on`."""
    placement_provider: str = ""
    """The device that the share is of, where it is not :attr:`provider`: "DLA:0"."""
    fallback_allowed: bool = False
    """Whether the target lets the other nodes run elsewhere."""
    parity: ParityFigures | None = None
    """None where the engine did not run here."""
    latency: Latency | None = None
    """None where the engine was not timed."""
    budget: Budget = field(default_factory=Budget)
    parity_gate: Gate = Gate(outcome="not-run")
    budget_gate: Gate = Gate(outcome="not-run")

    @property
    def name(self) -> str:
        """Target and precision: unique in a report."""
        return f"{self.target} {self.precision}"

    @property
    def placed_on(self) -> str:
        """The provider or device that the engine was asked to run on."""
        return self.placement_provider or self.provider


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A confusion matrix on the test split."""

    name: str
    """Whose: "PyTorch eager", or an engine's name."""
    labels: tuple[str, ...]
    """Of the classes, in the order of the model's outputs."""
    counts: tuple[tuple[int, ...], ...]
    """Shape (classes, classes): rows are the true class, columns the predicted one."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of the data set."""

    name: str
    """train, val, test, calibration."""
    per_class: tuple[int, ...]
    """Samples per class, in the order of :attr:`Report.labels`; a sample may be of several."""
    samples: int


@dataclass(frozen=True, kw_only=True)
class LeakCheck:
    """Whether the same content stands in two splits."""

    method: str
    """What was compared, as "SHA-256 of the file's bytes"."""
    pairs: int
    """Pairs of samples with the same content in different splits."""


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """The data set."""

    splits: tuple[Split, ...]
    leak_check: LeakCheck | None = None
    """None where it did not run."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine that the build and its benchmark ran on."""

    cpu: str
    cores: int | None
    """Processors that the process may use."""
    threads: int | None
    """Threads per engine in the benchmark."""
    system: str
    """Operating system and kernel."""
    gpu: str | None
    """Name of the GPU; None where there is none."""
    load_average: float | None
    """Load average over one minute when the benchmark began; None without a benchmark."""
    libraries: tuple[Fact, ...] = ()
    """Library and version."""
    batch_size: int = 1
    """Samples per timed call."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """The times of single calls of one engine or baseline."""

    name: str
    """:attr:`Engine.name`, or :attr:`Baseline.name`."""
    times_ms: tuple[float, ...]
    """Ascending, the smallest and the largest among them; of many calls, some at even distances in rank."""
    samples: int
    """Calls that were timed."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a key of the configuration stands."""

    key: str
    """Dotted, as "parity.max_drop"; within the table of a target "target.budget"."""
    target: str = ""
    """The target whose table it is; empty for keys of the project."""
    line: int
    """In :attr:`Report.config_file`, from 1."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page. A part that is None or empty is left out of it."""

    project: str
    version: str
    edgetl_version: str
    created: str
    """ISO 8601, with the zone."""
    config_digest: str
    """SHA-256 of the configuration, in hexadecimal."""
    verdict: Verdict
    signed_by: str | None
    """Fingerprint of the key that signed the bundle; None where it is unsigned."""
    reference: Baseline
    """PyTorch eager: the model that everything is compared with."""
    fp32: Baseline | None = None
    """The exported float graph on ONNX Runtime; None where it was not run."""
    backbone: str = ""
    """As in the configuration: "timm:tf_efficientnet_lite0"."""
    test_samples: int
    """Samples of the test split: they decide how many decimals of a score mean something."""
    metric: str = "top-1"
    """What scores are, in words: top-1, AUC, mAP …"""
    figures: tuple[Figure, ...] = ()
    """Of PyTorch, beside the metric."""
    max_drop: float
    """Largest drop of the metric that the parity gate accepts, as a share."""
    confidence: float
    """Of the upper bound of the drop, as a share."""
    sequential: bool = False
    """Whether each engine was given samples only until its parity was decided: ``parity.sequential``."""
    engines: tuple[Engine, ...]
    confusions: tuple[Confusion, ...] = ()
    start: Weights | None = None
    """What training took over from pretrained weights."""
    training: tuple[TrainingPhase, ...] = ()
    calibration: Calibration | None = None
    quantizations: tuple[Quantization, ...] = ()
    fusions: tuple[Fusion, ...] = ()
    """Of the int8 engines of which it is known."""
    layers: tuple[LayerReport, ...] = ()
    """One per quantized graph."""
    data: DataSummary | None = None
    preprocessing: tuple[Fact, ...] = ()
    """The preprocessing contract."""
    labels: tuple[str, ...] = ()
    """Classes in the order of the model's outputs."""
    transfer: Transfer | None = None
    """Whether transfer helped; None where it was not judged."""
    environment: Environment | None = None
    distributions: tuple[Distribution, ...] = ()
    """Of what was timed, where single times were kept."""
    conditions: tuple[Condition, ...] = ()
    """Of the benchmark; empty where sensors were not read."""
    ceilings: tuple[Ceilings, ...] = ()
    """By device; empty where they were not measured."""
    rooflines: tuple[Roofline, ...] = ()
    """Of what was timed; empty without ceilings."""
    task: str = ""
    """As in the configuration: "image-classification"."""
    dataset: str = ""
    """What the model learned from: a data set's name on the hub, or the name of its folder or file."""
    dataset_id: str = ""
    """Its id on the Hugging Face hub; empty where it is not from there."""
    weights: str = ""
    """What training began with, as in the configuration; a file's name without its folder."""
    config_file: str = ""
    """Path of the configuration in its repository, with "/"; its bare name where there is none."""
    settings: tuple[Setting, ...] = ()
    """Lines of the keys that decide about gates."""

    @property
    def bundle(self) -> str:
        """Name of the bundle's folder."""
        return f"{self.project}-{self.version}"
