"""The stage that computes features: its choice of an engine, its keys, and that every engine says the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for needed in ("onnx", "onnxscript", "onnxslim", "onnxruntime", "openvino"):
    pytest.importorskip(needed)
from torch import nn  # noqa: E402

from edgetl.backends.checkpoint import Deploy  # noqa: E402
from edgetl.config import Augment, Config, load  # noqa: E402
from edgetl.data.dataset import Sample  # noqa: E402
from edgetl.data.loader import Samples  # noqa: E402
from edgetl.errors import DataError, ModelError, TrainingError, UsageError  # noqa: E402
from edgetl.finetune import features as stage  # noqa: E402
from edgetl.finetune.features import RunnerExtractor, TorchExtractor, difference, read  # noqa: E402
from edgetl.pipeline import features as pipeline  # noqa: E402
from edgetl.pipeline.features import Split, backbone_digest, confirmed, extractors, features, flop, split_of  # noqa: E402
from edgetl.pipeline.session import Session, Silent, WouldRun  # noqa: E402
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner  # noqa: E402
from edgetl.runtime.preprocessing import ImagePreprocessing  # noqa: E402
from edgetl.store import Store, file_digest  # noqa: E402

SIDE, WIDTH = 32, 10
CONTRACT = ImagePreprocessing(height=SIDE, width=SIDE)
DEPLOY = Deploy(backbone="timm:small", classes=("a", "b", "c"), preprocessing=CONTRACT, config_digest="0")


def network(seed: int = 0, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, WIDTH),
    )  # fmt: skip
    module[1].running_var.uniform_(0.5, 2.0)
    module.add_module("head", nn.Linear(WIDTH, classes))
    return module


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, SIDE, SIDE), dtype=np.float32)


def noise(count: int = 40, views: int = 1, name: str = "train", digest: str = "0") -> Split:
    """Random images; the seed is the view."""

    def batches(view: int) -> Any:
        found, labels = images(count, view), np.arange(count) % 3
        return ((found[start : start + 16], labels[start : start + 16]) for start in range(0, count, 16))

    return Split(name=name, digest=digest, count=count, batches=batches, views=views)


def straight(module: nn.Sequential, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module.eval()[:-1](torch.from_numpy(inputs)).numpy()  # type: ignore[no-any-return]


@dataclass
class Told(Silent):
    """Remembers."""

    made: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def started(self, stage: str, what: str) -> None:
        self.made.append(stage)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def config(make_project: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load(make_project(tmp_path_factory.mktemp("features") / "project").config)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the engine for network(0) is chosen once; what needs another takes a folder of its own."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def session(config: Config, shared: Path) -> Session:
    return Session(config=config, store=Store(shared), reporter=Told())


@pytest.fixture
def alone(config: Config, tmp_path: Path) -> Session:
    return Session(config=config, store=Store(tmp_path / "store"), reporter=Told())


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported body of network(0)."""
    folder = tmp_path_factory.mktemp("body")
    with extractors(network(), DEPLOY, "head", folder):
        return folder / "body.onnx"


def facts_of(artifact: Any) -> dict[str, Any]:
    return json.loads((artifact / stage.FACTS).read_text())  # type: ignore[no-any-return]


# --- engines ---------------------------------------------------------------------------------------------------------


def test_every_engine_computes_what_eager_pytorch_does(tmp_path: Path) -> None:
    module = network()
    with extractors(module, DEPLOY, "head", tmp_path, threads=1) as (found, missing):
        assert [extractor.name for extractor in found] == ["torch", "onnxruntime", "openvino"]
        assert missing == {}
        for count in (1, 7, 32, 50):  # below, at and above the batch of the graph
            expected = straight(module, images(count))
            for extractor in found:
                assert difference(extractor(images(count)), expected) < 1e-5, (extractor.name, count)


def test_a_network_that_cannot_be_exported_leaves_eager_pytorch(alone: Session) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = network()[:-1], nn.Linear(WIDTH, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            found = self.body(inputs)
            return self.head(torch.from_numpy(np.sort(found.numpy(), axis=1)))

    (artifact,) = features(alone, Odd().eval().requires_grad_(False), DEPLOY, [noise()], head="head", small_flop=0)
    facts = facts_of(artifact)
    assert facts["engine"] == "torch"
    assert set(facts["choice"]["refused"]) == {"onnxruntime", "openvino"}
    assert any("features not by openvino: PyTorch cannot export" in note for note in alone.reporter.notes)  # type: ignore[attr-defined]


def test_an_engine_with_other_weights_is_refused_for_the_reference(body: Path) -> None:
    """The graph is of network(0), the network is network(1)."""
    reference = TorchExtractor(network(1), "head")
    with OnnxRuntimeRunner(body, threads=1) as runner:
        wrong = RunnerExtractor("onnxruntime", runner)
        taken, facts = confirmed(wrong, reference, images(8))
        assert taken is reference
        assert "differ from PyTorch's by" in facts["refused"]["onnxruntime"]
        taken, facts = confirmed(wrong, TorchExtractor(network(0), "head"), images(8))
        assert taken is wrong
        assert facts["difference"] < 1e-5 and facts["compared_images"] == 8


def test_what_does_not_fit_a_gpu_is_told_and_not_computed_elsewhere() -> None:
    class Full(TorchExtractor):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            raise TrainingError("the GPU's memory does not hold 16 samples at a time", hint="a smaller batch")

    with pytest.raises(TrainingError, match="the GPU's memory"):
        confirmed(Full(network(0), "head"), TorchExtractor(network(0), "head"), images(8))


def test_a_graph_with_other_weights_in_the_store_never_becomes_features(
    alone: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the choice says, real images decide: here the graph is of another network from the start."""
    export = pipeline.extractors

    def others(module: nn.Module, *rest: Any, **named: Any) -> Any:
        return export(network(1), *rest, **named)

    monkeypatch.setattr(pipeline, "extractors", others)
    module = network(0)
    (artifact,) = features(alone, module, DEPLOY, [noise()], head="head", small_flop=0)
    facts, told = facts_of(artifact), alone.reporter
    found = read(artifact.folder)
    assert difference(found.values[0], straight(module, images(40))) < 1e-5
    if facts["choice"]["name"] != "torch":  # else eager PyTorch was the fastest of three wrong ones
        assert facts["engine"] == "torch" and set(facts["check"]["refused"]) == {facts["choice"]["name"]}
        assert any("by torch, not by" in note for note in told.notes)  # type: ignore[attr-defined]


# --- the stage -------------------------------------------------------------------------------------------------------


def test_the_choice_is_made_once_and_recorded(session: Session) -> None:
    module = network()
    first = features(session, module, DEPLOY, [noise(), noise(name="val", digest="1")], head="head", small_flop=0)
    again = features(session, module, DEPLOY, [noise(), noise(name="val", digest="1")], head="head", small_flop=0)
    told = session.reporter
    assert told.made == ["feature-engine", "features", "features"]  # type: ignore[attr-defined]
    assert [item.digest for item in first] == [item.digest for item in again]
    assert all(item.cached for item in again)
    facts = facts_of(first[0])
    assert set(facts["choice"]["images_per_s"]) == {"torch", "onnxruntime", "openvino"}
    assert facts["choice"]["name"] == max(facts["choice"]["images_per_s"].items(), key=lambda item: item[1])[0]
    assert facts["engine"] == facts["choice"]["name"]
    assert difference(read(first[0].folder).values[0], straight(module, images(40))) < 1e-5
    assert any(note.startswith(f"features by {facts['engine']} (images/s: torch ") for note in told.notes)  # type: ignore[attr-defined]


def test_new_data_reuse_the_choice_and_a_new_head_reuses_everything(session: Session) -> None:
    features(session, network(), DEPLOY, [noise(digest="new data")], head="head", small_flop=0)
    told = session.reporter
    assert told.made[-1:] == ["features"]  # type: ignore[attr-defined]
    told.made.clear()  # type: ignore[attr-defined]
    module = network()
    module.head = nn.Linear(WIDTH, 7)
    (artifact,) = features(session, module, DEPLOY, [noise(digest="new data")], head="head", small_flop=0)
    assert told.made == [] and artifact.cached  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", ["weights", "buffers", "samples", "views", "network"])
def test_what_changes_features_changes_the_key(alone: Session, change: str) -> None:
    module, deploy, split = network(), DEPLOY, noise()
    (before,) = features(alone, module, deploy, [split], head="head")
    with torch.no_grad():
        if change == "weights":
            module[0].weight[0, 0, 0, 0] += 1
        elif change == "buffers":
            module[1].running_mean[0] += 1
        elif change == "samples":
            split = noise(digest="others")
        elif change == "views":
            split = noise(views=2)
        else:
            deploy = replace(deploy, backbone="timm:other")
    (after,) = features(alone, module, deploy, [split], head="head")
    assert not after.cached and after.key != before.key


def test_small_work_and_a_preference_take_eager_pytorch_without_timing_anything(alone: Session) -> None:
    module = network()
    small = features(alone, module, DEPLOY, [noise()], head="head")
    preferred = features(alone, module, DEPLOY, [noise()], head="head", prefer="torch", small_flop=0)
    finetune = alone.config.finetune.model_copy(update={"deterministic": True})
    same = replace(alone, config=alone.config.model_copy(update={"finetune": finetune}))
    assert features(same, module, DEPLOY, [noise()], head="head", small_flop=0)[0].digest == small[0].digest
    assert alone.reporter.made == ["features"]  # type: ignore[attr-defined]
    assert small[0].digest == preferred[0].digest
    assert facts_of(small[0])["engine"] == "torch" and facts_of(small[0])["choice"] == {}


def test_two_stores_have_the_same_bits_with_eager_pytorch(alone: Session, config: Config, tmp_path: Path) -> None:
    other = Session(config=config, store=Store(tmp_path / "other"))
    mine, theirs = (features(place, network(), DEPLOY, [noise()], head="head") for place in (alone, other))
    assert mine[0].digest == theirs[0].digest
    assert file_digest(mine[0] / stage.FEATURES) == file_digest(theirs[0] / stage.FEATURES)


def test_views_are_kept_one_by_one(session: Session) -> None:
    module = network()
    (artifact,) = features(session, module, DEPLOY, [noise(views=3)], head="head", small_flop=0)
    values, labels = read(artifact.folder)
    assert values.shape == (3, 40, WIDTH) and len(labels) == 40
    for view in range(3):
        assert difference(values[view], straight(module, images(40, view))) < 1e-5


@pytest.mark.parametrize("damage", ["short", "changed", "gone"])
def test_damaged_features_are_made_again(alone: Session, damage: str) -> None:
    (before,) = features(alone, network(), DEPLOY, [noise()], head="head")
    path = before / stage.FEATURES
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if damage == "changed" else content[:-8])
    (after,) = features(alone, network(), DEPLOY, [noise()], head="head")
    assert not after.cached and after.digest == before.digest
    assert read(after.folder).values.shape == (1, 40, WIDTH)


def test_a_dry_run_computes_nothing(alone: Session) -> None:
    with pytest.raises(WouldRun) as stop:
        features(replace(alone, dry_run=True), network(), DEPLOY, [noise()], head="head", small_flop=0)
    assert stop.value.stage == "feature-engine"
    with pytest.raises(WouldRun) as stop:
        features(replace(alone, dry_run=True), network(), DEPLOY, [noise()], head="head")
    assert stop.value.stage == "features"


def test_the_network_stays_as_it_was(session: Session) -> None:
    module = network().train()
    before = backbone_digest(module, "head")
    features(session, module, DEPLOY, [noise(digest="untouched")], head="head", small_flop=0)
    assert backbone_digest(module, "head") == before
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_bad_input_is_named_and_leaves_nothing(alone: Session) -> None:
    module = network()
    with pytest.raises(UsageError, match="given were 0 and 'cpu'"):
        features(alone, module, DEPLOY, [], head="head")
    with pytest.raises(UsageError, match="'tpu'"):
        features(alone, module, DEPLOY, [noise()], head="head", device="tpu")
    with pytest.raises(ModelError, match="no module 'classifier'"):
        features(alone, module, DEPLOY, [noise()], head="classifier")
    with pytest.raises(DataError, match="no features to compute"):
        features(alone, module, DEPLOY, [noise(count=0)], head="head")
    with pytest.raises(DataError, match="hold 40 samples; 41"):
        features(alone, module, DEPLOY, [replace(noise(), count=41)], head="head")
    with torch.no_grad():
        module[0].weight[:] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinite"):
        features(alone, module, DEPLOY, [noise()], head="head")
    assert not (alone.store.root / "features").exists() and list((alone.store.root / "tmp").iterdir()) == []


def test_operations_are_those_of_the_layers() -> None:
    convolution, hidden = 2 * 8 * 3 * 3 * 3 * 15 * 15, 2 * 8 * WIDTH
    module = network().train()
    assert flop(module, "head", (3, SIDE, SIDE)) == convolution + hidden + 2 * WIDTH * 3  # with the head's
    assert module.training


# --- splits of images ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(shapes: Path) -> Samples:
    paths = sorted((shapes / "val").rglob("*.png"))
    found = tuple(
        Sample(raw=path, label=index % 3, digest=file_digest(path), group=None) for index, path in enumerate(paths)
    )
    return Samples(found, CONTRACT)


def test_a_split_without_changes_is_the_samples(samples: Samples, alone: Session) -> None:
    module = network()
    (artifact,) = features(alone, module, DEPLOY, [split_of("val", samples)], head="head")
    values, labels = read(artifact.folder)
    expected = straight(module, np.stack([image for image, _ in samples]))
    assert difference(values[0], expected) < 1e-5
    assert labels.tolist() == [label for _, label in samples]


def test_views_of_changed_images_are_those_of_the_epochs(samples: Samples, alone: Session) -> None:
    pytest.importorskip("torchvision")
    from edgetl.data.augment import AugmentedSamples

    module, augment = network(), Augment(flip=0.5, noise=0.1)
    split = split_of("val", samples, augment=augment, seed=3, views=2)
    (artifact,) = features(alone, module, DEPLOY, [split], head="head")
    values, _ = read(artifact.folder)
    changed = AugmentedSamples(samples, augment, 3)
    for view in range(2):
        pixels = np.stack([changed[view, index][0] for index in range(len(samples))])
        assert difference(values[view], straight(module, pixels)) < 1e-5
    assert difference(values[0], values[1]) > 1e-2


def test_the_digest_of_a_split_is_of_all_that_changes_it(samples: Samples) -> None:
    flip = Augment(flip=0.5)
    other = Samples(samples.samples, replace(CONTRACT, resize="stretch"))
    relabelled = Samples((replace(samples.samples[0], label=2), *samples.samples[1:]), CONTRACT)
    made = [
        split_of("a", samples),
        split_of("a", samples[:-1]),
        split_of("a", other),
        split_of("a", relabelled),
        split_of("a", samples, augment=flip),
        split_of("a", samples, augment=flip, seed=1),
        split_of("a", samples, augment=Augment(flip=0.6)),
    ]
    assert len({split.digest for split in made}) == len(made)
    same = [
        split_of("b", samples),
        split_of("a", samples, seed=9),
        split_of("a", samples, augment=Augment(mixup=0.2)),
        split_of("a", samples, augment=flip, views=4),
        split_of("a", samples, augment=flip.model_copy(update={"cutmix": 1.0})),
    ]
    assert [split.digest for split in same] == [made[i].digest for i in (0, 0, 0, 4, 4)]


@pytest.mark.parametrize(("views", "augment"), [(0, Augment(flip=0.5)), (2, None), (2, Augment(mixup=0.2))])
def test_views_without_changes_are_refused(samples: Samples, views: int, augment: Augment | None) -> None:
    with pytest.raises(UsageError, match="views of 'train' were asked for"):
        split_of("train", samples, augment=augment, views=views)
