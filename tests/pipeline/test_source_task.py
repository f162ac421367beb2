"""The change on the source task, with real digits: 0 to 4 first, then 5 to 9, or the same digits again."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl import config as configuration
from edgetl.backends import torch as torch_backend
from edgetl.backends.checkpoint import Deploy
from edgetl.cli.app import run
from edgetl.data.dataset import Dataset
from edgetl.errors import ConfigError, DataError, EdgetlError, LeakError, ModelError
from edgetl.pipeline import judge, learning, source_task, transfer
from edgetl.pipeline.session import Session
from edgetl.store import Artifact, Store

FACES = Path(__file__).parents[3] / "shared" / "data" / "faces"
PROJECT = """
schema = 1
[project]
name = "digits"
[data]
manifest = "{manifest}"
image_size = {size}
[model]
backbone = "timm:test_efficientnet"
weights = "{weights}"
[finetune]
phases = [{phases}]
batch_size = 32
{more}
[[target]]
device = "x86-64-cpu"
"""
LEARN = '{ train = "all", epochs = 8, lr = 2e-2, batchnorm = "train" }'
TUNE = '{ train = "all", epochs = 3, lr = 3e-2, batchnorm = "train" }'


@pytest.fixture(scope="module")
def place(example: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, and the checkpoint of a network that knows 0 to 4."""
    folder = tmp_path_factory.mktemp("digits")
    shutil.copytree(example("digits").parent, folder / "example" / "data")
    digits(folder, "source.csv", "01234", {"train": (0, 60), "val": (0, 10), "test": (0, 40)})
    session = project(folder, "source", "source.csv", weights="none", phases=LEARN)
    _, dataset = learning.prepare_data(session)
    checkpoint, _ = learning.train(session, dataset)
    shutil.copytree(checkpoint.folder, folder / "checkpoint")
    digits(folder, "old.csv", "01234", {"test": (0, 40)})
    digits(folder, "target.csv", "56789", {"train": (0, 20), "val": (0, 6), "test": (0, 20)})
    digits(folder, "again.csv", "43210", {"train": (60, 100), "val": (10, 16), "test": (0, 20)})
    return folder


def digits(folder: Path, name: str, labels: str, keep: dict[str, tuple[int, int]]) -> Path:
    """A manifest of some digits: of every class and split the ones from a number to another."""
    data = folder / "example" / "data"
    with (data / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    seen: dict[tuple[str, str], int] = {}
    kept = []
    for row in rows:
        key = (row["split"], row["label"])
        seen[key] = seen.get(key, -1) + 1
        first, last = keep.get(row["split"], (0, 0))
        if row["label"] in labels and first <= seen[key] < last:
            kept.append(row)
    with (data / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    return data / name


def project(
    folder: Path, name: str, manifest: str, *, weights: str = "./checkpoint", phases: str = TUNE, more: str = "",
    size: int = 32,
) -> Session:  # fmt: skip
    path = folder / f"{name}.toml"
    values = {"manifest": f"example/data/{manifest}", "weights": weights, "phases": phases, "more": more, "size": size}
    path.write_text(PROJECT.format(**values), encoding="utf-8")
    return Session(config=configuration.load(path), store=Store(folder / "store"))


OLD = 'source_test = "example/data/old.csv"'


def source_of(session: Session) -> tuple[Dataset, source_task.SourceTask]:
    _, dataset = learning.prepare_data(session)
    found = source_task.read_source(session, dataset)
    assert found is not None
    return dataset, found


def test_other_classes_are_asked_with_the_head_that_was(place: Path) -> None:
    session = project(place, "target", "target.csv", more=OLD)
    found = judge(session.config, session.store, seeds=3).source
    assert found is not None and found.head == "source" and "own head was put back" in found.how
    change = found.forgetting
    assert (change.seeds, change.samples, found.metric) == (3, 200, "top-1")
    assert change.before > 0.8, "the source network knows its digits"
    assert change.upper < 0 and change.before - change.after > 0.2, "and forgets them over others"
    assert change.after == pytest.approx(np.mean(found.scores)) and len(set(found.scores)) > 1
    # Before: the source's network as it is. After: the fine-tuned body, and the old head, computed by hand.
    dataset, source = source_of(session)
    old, deploy = torch_backend.read_checkpoint(source.folder)
    inputs = torch.from_numpy(np.stack([deploy.preprocessing(sample.raw) for sample in source.samples]))
    labels = np.asarray([sample.label for sample in source.samples])
    with torch.inference_mode():
        assert float((old(inputs).argmax(1).numpy() == labels).mean()) == change.before
        checkpoint, _ = learning.train(session, dataset)
        tuned, _ = torch_backend.read_checkpoint(checkpoint.folder)
        features = tuned.forward_head(tuned.forward_features(inputs), pre_logits=True)
        assert float((old.classifier(features).argmax(1).numpy() == labels).mean()) == found.scores[0]
    # What is in verdict.json is what comes out again.
    kept = json.loads(next((place / "store").rglob("verdict.json")).read_text(encoding="utf-8"))
    assert transfer.read(kept).source == found


def test_a_body_that_never_moved_forgot_nothing(place: Path) -> None:
    session = project(place, "head", "target.csv", phases='{ train = "head", epochs = 3 }', more=OLD)
    found = judge(session.config, session.store, seeds=3).source
    assert found is not None and found.head == "source"
    assert (found.forgetting.change, found.forgetting.lower, found.forgetting.upper) == (0.0, 0.0, 0.0)
    # 200 samples that all stay as they were leave a drop of 1.88 points open, and no gate is passed below it.
    assert found.forgetting.largest_drop == pytest.approx(3.8415 / 203.8415, abs=1e-5)
    assert found.forgetting.refusal(0.02) is None
    assert "so few samples exclude no less" in str(found.forgetting.refusal(0.018))


def test_the_same_classes_are_asked_of_the_network_itself(place: Path) -> None:
    """Here in another order: outputs are brought into the source's."""
    session = project(place, "again", "again.csv", phases=LEARN.replace("8", "4"), more=OLD, size=40)
    order = 'image_size = 40\nclasses = ["4", "3", "2", "1", "0"]'
    path = place / "again.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("image_size = 40", order), encoding="utf-8")
    session = Session(config=configuration.load(path), store=session.store)
    found = judge(session.config, session.store, seeds=3).source
    assert found is not None and found.head == "own" and "answered as they are" in found.how
    dataset, source = source_of(session)
    checkpoint, _ = learning.train(session, dataset)
    tuned, deploy = torch_backend.read_checkpoint(checkpoint.folder)
    assert deploy.classes == ("4", "3", "2", "1", "0") and deploy.preprocessing.input_shape == (3, 40, 40)
    assert source.deploy.preprocessing.input_shape == (3, 32, 32)
    inputs = torch.from_numpy(np.stack([deploy.preprocessing(sample.raw) for sample in source.samples]))
    with torch.inference_mode():
        answers = [deploy.classes[index] for index in tuned(inputs).argmax(1)]
    right = [
        answer == source.deploy.classes[int(sample.label)]
        for answer, sample in zip(answers, source.samples, strict=True)
    ]
    assert float(np.mean(right)) == found.scores[0]
    assert found.scores[0] > 0.3, "better than chance: no class is mistaken for another's place"


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(each) for each in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_tells_and_the_gate_fails(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(place, "target", "target.csv")
    given = ("train", place / "target.toml", "--verdict", "--store", place / "store")
    source = ("--source-test", place / "example" / "data" / "old.csv")
    code, out, _ = cli(capsys, *given, *source)
    assert code == 0
    assert "something was forgotten: with 95% confidence the score on the source task falls by" in out
    assert "the source task has other classes" in out
    code, out, error = cli(capsys, *given, *source, "--max-forgetting", "0.05", "--json")
    assert code == 4
    assert "a drop of 5 points on the source task is not excluded" in error.replace("\n", " ")
    verdict = out.splitlines()[0]  # the second document is the error
    assert json.loads(verdict)["result"]["source"]["head"] == "source"
    code, out, _ = cli(capsys, *given)
    assert code == 0 and "source task" not in out


def test_the_gate_is_passed_where_the_drop_is_excluded(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(place, "head", "target.csv", phases='{ train = "head", epochs = 3 }', more=f"{OLD}\nmax_forgetting = 0.02")
    given = ("train", place / "head.toml", "--verdict", "--store", place / "store")
    assert cli(capsys, *given)[0] == 0
    assert cli(capsys, *given, "--max-forgetting", "0.01")[0] == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--source-test", "x"), "--source-test judges a verdict"),
        (("--max-forgetting", "0.1"), "--max-forgetting judges a verdict"),
        (("--verdict", "--max-forgetting", "0.1"), "source_test is missing"),
        (("--verdict", "--max-forgetting", "nan", "--source-test", "x"), "max_forgetting"),
        (("--verdict", "--max-forgetting", "0", "--source-test", "x"), "max_forgetting"),
    ],
)
def test_options_that_do_not_belong_together(
    arguments: tuple[str, ...], words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(place, "options", "target.csv")
    code, _, error = cli(capsys, "train", place / "options.toml", *arguments)
    assert code == 2 and words in error.replace("\n", " ")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"weights": "none"}, ConfigError, "model.weights is 'none'"),
        ({"weights": "hub"}, ConfigError, "model.weights is 'hub'"),
        ({"more": 'source_test = "nowhere"'}, DataError, "nowhere"),
        ({"more": 'source_test = "example/data/target.csv"'}, DataError, "'5' is not a class of the model"),
        ({"more": 'source_test = "unlabelled"'}, DataError, "has no labels of the source task: its classes are 0, 1"),
        ({"manifest": "again.csv", "more": 'source_test = "example/data/again.csv"'}, LeakError, "source_test"),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(
    change: dict[str, str], error: type[EdgetlError], words: str, place: Path
) -> None:
    picture = next((place / "example" / "data").rglob("*.png"))
    (place / "unlabelled").mkdir(exist_ok=True)
    shutil.copy(picture, place / "unlabelled" / "one.png")
    values: dict[str, Any] = {"manifest": "target.csv", "more": OLD, **change}
    session = project(place, "bad", values.pop("manifest"), **values)
    _, dataset = learning.prepare_data(session)
    with pytest.raises(error) as caught:
        source_task.read_source(session, dataset)
    assert words in caught.value.message
    assert caught.value.hint or error is DataError


@pytest.mark.parametrize(
    ("replaced", "words"),
    [
        (
            ("timm:test_efficientnet", "timm:test_resnet"),
            "and model.backbone is timm:test_resnet",
        ),
        (('manifest = "', 'task = "multi-label-images"\nmanifest = "'), "where a sample has one class"),
        (('manifest = "', 'task = "face-verification"\nmanifest = "'), "classifies images, and data.task is face"),
    ],
)
def test_networks_that_cannot_answer_for_each_other(replaced: tuple[str, str], words: str, place: Path) -> None:
    session = project(place, "other", "target.csv", more=OLD)
    _, dataset = learning.prepare_data(session)
    path = place / "other.toml"
    path.write_text(path.read_text(encoding="utf-8").replace(*replaced), encoding="utf-8")
    session = Session(config=configuration.load(path), store=session.store)
    with pytest.raises(ConfigError) as caught:
        source_task.read_source(session, dataset)
    assert words in caught.value.message and "source_test" in str(caught.value.hint)


@pytest.mark.skipif(not FACES.is_dir(), reason="the face photographs are not on this machine")
def test_faces_are_told_apart_by_the_network_itself(tmp_path: Path) -> None:
    people = sorted(FACES.iterdir())
    for name, first in (("one", 0), ("two", 14)):
        for split, some in (("train", people[first : first + 6]), ("val", people[first + 6 : first + 10])):
            for person in some:
                shutil.copytree(person, tmp_path / name / split / person.name)
        for person in people[first + 10 : first + 14]:
            shutil.copytree(person, tmp_path / name / "test" / person.name)
    for name, weights, more in (("one", "none", ""), ("two", "./first", 'source_test = "one/test"')):
        text = PROJECT.format(manifest="", weights=weights, phases=LEARN.replace("8", "2"), more=more, size=32)
        splits = "\n".join(f'{split} = "{name}/{split}"' for split in ("train", "val", "test"))
        text = text.replace('manifest = ""', f'task = "face-verification"\n{splits}')
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
        session = Session(config=configuration.load(tmp_path / f"{name}.toml"), store=Store(tmp_path / "store"))
        if name == "one":
            _, dataset = learning.prepare_data(session)
            shutil.copytree(learning.train(session, dataset)[0].folder, tmp_path / "first")
    found = judge(session.config, session.store, seeds=3).source
    assert found is not None and found.head == "own" and found.metric.startswith("TAR")
    assert found.forgetting.samples == 40 and found.forgetting.lower < found.forgetting.upper


def test_without_a_test_split_there_is_no_source_task(place: Path) -> None:
    session = project(place, "plain", "target.csv")
    _, dataset = learning.prepare_data(session)
    assert source_task.read_source(session, dataset) is None


def test_a_head_for_other_features_is_refused(place: Path, tmp_path: Path) -> None:
    """Which model.partial lets through to here: an MLP of another width."""
    from edgetl.backends import networks
    from edgetl.runtime.preprocessing.tables import Numeric, TablePreprocessing

    contract = TablePreprocessing(columns=(Numeric(name="a", mean=0.0, std=1.0, fill=0.0),))
    for width in (4, 8):
        options = {"width": width, "depth": 1}
        deploy = Deploy(
            backbone="tables:mlp", classes=("x", "y"), preprocessing=contract, config_digest="", options=options
        )
        (tmp_path / str(width)).mkdir()
        module = networks.build("tables:mlp", 2, contract, options=options)
        torch_backend.write_checkpoint(tmp_path / str(width), module, deploy)
    with pytest.raises(ModelError, match="takes 8 features, and the fine-tuned network has 4"):
        source_task._with_head(tmp_path / "4", tmp_path / "8")


@pytest.fixture
def tables(tmp_path: Path) -> Callable[..., Session]:
    """A source table and a target table; the source's checkpoint is trained on the first."""

    def write(columns: str) -> Session:
        def rows(names: str, count: int, label: tuple[str, str], seed: int) -> str:
            draw = np.random.default_rng(seed).normal(size=(count, len(names.split(","))))
            split = ["train"] * (count // 2) + ["val"] * (count // 4) + ["test"] * (count // 4)
            text = [
                ",".join([*(f"{value:.3f}" for value in row), label[int(row[0] > 0)], split[at]])
                for at, row in enumerate(draw)
            ]
            return "\n".join([f"{names},label,split", *text]) + "\n"

        (tmp_path / "source.csv").write_text(rows("a,b", 160, ("no", "yes"), 1), encoding="utf-8")
        (tmp_path / "target.csv").write_text(rows(columns, 160, ("good", "bad"), 2), encoding="utf-8")
        lines = (tmp_path / "source.csv").read_text(encoding="utf-8").splitlines()
        test = [line for line in lines[1:] if line.endswith("test")]
        (tmp_path / "old.csv").write_text("\n".join([lines[0], *test]) + "\n", encoding="utf-8")
        found: list[Session] = []
        for name, weights, more in (("source", "none", ""), ("target", "./first", 'source_test = "old.csv"')):
            text = PROJECT.format(manifest=f"{name}.csv", weights=weights, phases=LEARN, more=more, size=32)
            text = text.replace("image_size = 32", 'task = "table-classification"')
            text = text.replace("timm:test_efficientnet", "tables:mlp")
            (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
            session = Session(config=configuration.load(tmp_path / f"{name}.toml"), store=Store(tmp_path / "store"))
            if name == "source":
                _, dataset = learning.prepare_data(session)
                checkpoint: Artifact = learning.train(session, dataset)[0]
                shutil.copytree(checkpoint.folder, tmp_path / "first", dirs_exist_ok=True)
            found.append(session)
        return found[1]

    return write


def test_tables_with_the_same_columns(tables: Callable[..., Session]) -> None:
    session = tables("a,b")
    found = judge(session.config, session.store, seeds=3).source
    assert found is not None and found.metric == "AUC" and found.head == "source"
    assert found.forgetting.before > 0.9 and found.forgetting.samples == 40


def test_tables_with_other_columns_are_told_apart_before_training(tables: Callable[..., Session]) -> None:
    session = tables("a,c")
    with pytest.raises(DataError, match="cannot read the source task's rows: the row has no column 'c'"):
        judge(session.config, session.store, seeds=3)
