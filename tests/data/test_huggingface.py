from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetl.config import Config, Data
from edgetl.data.huggingface import is_saved, open_hub, open_saved
from edgetl.data.load import label_names, load_dataset, load_samples, source_digest
from edgetl.data.parts import Part
from edgetl.data.tables import fit_table, load_rows, load_table, table_digest
from edgetl.data.texts import load_text_samples, load_texts, texts_digest
from edgetl.errors import DataError, LeakError, MissingExtraError

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")

NAMES = ["dog", "cat"]


def png(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def images(first: int, count: int, *, label: str = "label", **columns: tuple[Any, list[Any]]) -> Any:
    """Images of dogs and cats in turn, with other columns (type, values)."""
    features = {"image": datasets.Image(), label: datasets.ClassLabel(names=NAMES)}
    values: dict[str, list[Any]] = {
        "image": [{"bytes": png(n), "path": f"{n}.png" if n % 3 else None} for n in range(first, first + count)],
        label: [n % 2 for n in range(first, first + count)],
    }
    features |= {name: kind for name, (kind, _) in columns.items()}
    values |= {name: listed for name, (_, listed) in columns.items()}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def saved(path: Path, data: Any, **options: Any) -> Path:
    (datasets.DatasetDict(data) if isinstance(data, dict) else data).save_to_disk(path, **options)
    return path


def refused(config: Data, *words: str, load: Any = load_dataset) -> None:
    with pytest.raises(DataError) as caught:
        load(config)
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert caught.value.exit_code == 3
    for word in words:
        assert word in text, text


class TestImages:
    def test_splits_and_classes_of_a_saved_dictionary(self, tmp_path: Path) -> None:
        path = saved(
            tmp_path / "d",
            {
                "train": images(0, 20),
                "validation": images(50, 4),
                "test": images(90, 6),
                "unsupervised": images(200, 2),
            },
            num_shards={"train": 3, "validation": 1, "test": 1, "unsupervised": 1},
        )
        assert is_saved(path) and is_saved(path / "train")
        dataset = load_dataset(Data(manifest=path))
        assert dataset.classes == ("dog", "cat")  # in ClassLabel's order
        assert [len(samples) for samples in dataset.splits().values()] == [20, 4, 6]
        parts = [sample.raw for sample in dataset.train]
        assert all(isinstance(part, Part) for part in parts) and len({part.file for part in parts}) == 3
        assert [part.read_bytes() for part in parts] == [png(n) for n in range(20)]
        assert [part.name for part in parts[:2]] == ["row 1.png", "row 2: 1.png"] and parts[0].suffix == ".png"
        assert [sample.label for sample in dataset.train] == [0, 1] * 10

    def test_one_folder_per_split_gives_the_same_data_set(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "d", {"train": images(0, 20), "test": images(90, 6)})
        both = load_dataset(Data(train=path / "train", test=path / "test"))
        assert both == load_dataset(Data(manifest=path)) and len(both.val) == 2
        refused(Data(train=path, test=path / "test"), "has several splits: train, test", str(path / "train"))

    def test_selected_and_shuffled_rows_are_those_that_were_saved(self, tmp_path: Path) -> None:
        path = saved(
            tmp_path / "d", {"train": images(0, 40).shuffle(seed=1).select(range(5, 25)), "test": images(90, 6)}
        )
        opened = open_saved(path)
        assert isinstance(opened, dict)
        data = opened["train"].data
        assert [raw.read_bytes() for raw in opened["train"].images()] == [
            row["bytes"] for row in data.cast_column("image", datasets.Image(decode=False))["image"]
        ]

    def test_batches_of_a_large_file_and_an_offset(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "d", images(0, 2500))
        opened = open_saved(path)
        assert not isinstance(opened, dict)
        found = opened.images()
        assert [found[n].read_bytes() for n in (0, 999, 1000, 1001, 2499)] == [
            png(n) for n in (0, 999, 1000, 1001, 2499)
        ]

    def test_another_label_column_and_groups(self, tmp_path: Path) -> None:
        group = (datasets.Value("string"), ["a", "a", "b", "b", None, None, *"ccdd"])
        path = saved(
            tmp_path / "d", {"train": images(0, 10, label="kind", group=group), "test": images(90, 6, label="kind")}
        )
        dataset = load_dataset(Data(manifest=path, label="kind", val_fraction=0.3))
        assert dataset.classes == ("dog", "cat")
        assert not {s.group for s in dataset.train if s.group} & {s.group for s in dataset.val}
        refused(Data(manifest=path), "column 'label' is missing; the columns are: image, kind, group", "label = ")
        refused(Data(manifest=path, label="kin"), "data.label names the column 'kin'", "did you mean 'kind'?")
        torn = saved(
            tmp_path / "t", {"train": images(0, 10, group=group), "test": images(90, 2, group=(group[0], ["a", None]))}
        )
        with pytest.raises(LeakError, match="'a' in train and test"):
            load_dataset(Data(manifest=torn))

    def test_several_labels(self, tmp_path: Path) -> None:
        kinds = datasets.List(datasets.ClassLabel(names=["y", "x", "never"]))
        listed = [[0], [1], [0, 1], []] * 3
        parts = {}
        for split, first in (("train", 0), ("test", 90)):
            parts[split] = images(first, 12, tags=(kinds, listed)).remove_columns("label")
        path = saved(tmp_path / "d", parts)
        dataset = load_dataset(Data(task="multi-label-images", manifest=path, label="tags"))
        assert dataset.classes == ("y", "x") and [s.label for s in dataset.test[:4]] == [(1, 0), (0, 1), (1, 1), (0, 0)]
        refused(
            Data(manifest=path, label="tags"),
            "6 rows are wrong",
            "row 3: label is ['y', 'x']: 2 classes",
            "row 4: label is empty",
        )

    def test_a_column_split_and_numbers_without_names(self, tmp_path: Path) -> None:
        data = images(0, 20, split=(datasets.Value("string"), (["train"] * 8 + ["test"] * 2) * 2))
        path = saved(tmp_path / "d", data.cast_column("label", datasets.Value("int64")))
        assert load_dataset(Data(manifest=path)).classes == ("0", "1")
        named = load_dataset(Data(manifest=path, classes=("dog", "cat")))
        assert named.classes == ("dog", "cat") and [s.label for s in named.test] == [0, 1] * 2
        wrong = images(0, 2, split=(datasets.Value("string"), ["train", "tets"]))
        refused(
            Data(manifest=saved(tmp_path / "w", wrong)),
            "1 row is wrong",
            "row 2: split is 'tets'; did you mean 'test'?",
        )
        refused(Data(manifest=saved(tmp_path / "n", images(0, 4))), "column 'split' is missing")

    def test_images_that_are_files(self, tmp_path: Path) -> None:
        for n in range(10):
            (tmp_path / f"{n}.png").write_bytes(png(n))
        paths = [str(tmp_path / f"{n}.png") for n in range(10)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
        table = pyarrow.table(
            {"image": pyarrow.array([{"bytes": None, "path": p} for p in paths], datasets.Image().pa_type),
             "label": pyarrow.array([0, 1] * 5)}
        )  # fmt: skip
        data = datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
        from datasets.arrow_writer import ArrowWriter

        (tmp_path / "d").mkdir()
        with ArrowWriter(features=features, path=str(tmp_path / "d/data.arrow")) as writer:
            writer.write_table(data.data.table)
            writer.finalize()
        read = datasets.Dataset.from_file(str(tmp_path / "d/data.arrow"))
        from edgetl.data.huggingface import Saved

        found = Saved("x", read).images()
        assert found == [Path(path) for path in paths]
        (tmp_path / "3.png").unlink()
        with pytest.raises(DataError, match=r"1 row is wrong:\n  row 4: there is no file '.*3\.png'"):
            Saved("x", read).images()

    def test_rows_without_an_image_or_a_label(self, tmp_path: Path) -> None:
        data = images(0, 6)
        rows = data.cast_column("image", datasets.Image(decode=False)).to_list()
        rows[2]["image"] = None
        lacking = datasets.Dataset.from_list(rows, features=data.features)
        both = {"train": lacking, "test": images(90, 4)}
        refused(Data(manifest=saved(tmp_path / "a", both)), "1 row is wrong", "row 3: it has no image")
        rows[2] = {**rows[1], "label": -1}
        rows[3]["label"] = None
        both["train"] = datasets.Dataset.from_list(rows, features=data.features)
        refused(
            Data(manifest=saved(tmp_path / "b", both)),
            "2 rows are wrong",
            "row 3: label is empty",
            "row 4: label is empty",
        )

    def test_columns_that_are_not_one_of_images(self, tmp_path: Path) -> None:
        mask = (datasets.Image(), [{"bytes": png(n), "path": None} for n in range(6)])
        two = saved(tmp_path / "two", {"train": images(0, 6, mask=mask), "test": images(90, 6, mask=mask)})
        refused(Data(manifest=two), "has 2 columns of images: image, mask", "remove_columns(['mask'])")
        none = saved(tmp_path / "none", {split: images(0, 6).remove_columns("image") for split in ("train", "test")})
        refused(Data(manifest=none), "has no column of images; its columns are label")

    def test_splits_that_lack(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "d", {"train": images(0, 6), "tset": images(9, 6)})
        refused(Data(manifest=path), "has no split 'test'; did you mean 'tset'?", "train_test_split")
        path = saved(
            tmp_path / "e",
            {"train": images(0, 6), "test": images(9, 6), "val": images(20, 2), "validation": images(30, 2)},
        )
        refused(Data(manifest=path), "has both 'validation' and 'val'")
        path = saved(tmp_path / "f", {"train": images(0, 6), "test": images(0, 0)})
        refused(Data(manifest=path), "no data set can be read there")

    def test_damaged_folders(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "d", {"train": images(0, 12), "test": images(90, 6)})
        file = next((path / "train").glob("*.arrow"))
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        refused(Data(manifest=path), str(path))
        file.write_bytes(b"x" * 100)
        refused(Data(manifest=path), "no data set can be read there")
        file.unlink()
        refused(Data(manifest=path), "no data set can be read there")
        (path / "train/state.json").write_text("{")
        refused(Data(manifest=path), "no data set can be read there")

    def test_compressed_arrow_files_are_told(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "d", {"train": images(0, 12), "test": images(90, 6)})
        file = next((path / "train").glob("*.arrow"))
        with pyarrow.OSFile(str(file), "rb") as source:
            table = pyarrow.ipc.open_stream(source).read_all()
        options = pyarrow.ipc.IpcWriteOptions(compression="lz4")
        with pyarrow.ipc.new_stream(str(file), table.schema, options=options) as writer:
            writer.write_table(table)
        refused(Data(manifest=path), f"{file}: its images are compressed", "save_to_disk")

    def test_digest_of_the_source_sees_images_labels_and_order_of_classes(self, tmp_path: Path) -> None:
        test = images(90, 6)
        path = saved(tmp_path / "d", {"train": images(0, 12), "test": test})
        first = source_digest(Data(manifest=path))
        assert source_digest(Data(manifest=path)) == first
        renamed = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES[::-1])})
        digests = {first}
        for train in (images(1, 12), images(0, 12).cast(renamed)):
            shutil.rmtree(path)
            digests.add(source_digest(Data(manifest=saved(path, {"train": train, "test": test}))))
        assert len(digests) == 3

    def test_samples_for_calibration_and_verification(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "d", images(0, 6))
        assert [sample.label for sample in load_samples(path, ("cat", "dog"))] == [1, 0] * 3
        assert {sample.label for sample in load_samples(path)} == {-1} and label_names(path) == ("cat", "dog")
        bare = saved(tmp_path / "b", images(0, 6).remove_columns("label"))
        assert {sample.label for sample in load_samples(bare, ("cat", "dog"))} == {-1}
        with pytest.raises(DataError, match="has several splits"):
            load_samples(saved(tmp_path / "s", {"train": images(0, 6), "test": images(9, 6)}))


class TestTexts:
    def test_texts_of_a_saved_dictionary(self, tmp_path: Path) -> None:
        kinds = datasets.Features(
            {"text": datasets.Value("string"), "mood": datasets.ClassLabel(names=["neg", "a pos"])}
        )
        parts = {
            split: datasets.Dataset.from_dict(
                {"text": [f" {split}\n{n} " for n in range(count)], "mood": [n % 2 for n in range(count)]},
                features=kinds,
            )
            for split, count in (("train", 40), ("test", 8))
        }
        path = saved(tmp_path / "d", parts)
        config = Data(task="text-classification", manifest=path, label="mood")
        dataset = load_texts(config)
        assert dataset.classes == ("neg", "a pos") and dataset.test[1].raw == " test\n1 " and len(dataset.val) == 4
        assert [
            s.label
            for s in load_text_samples(
                saved(tmp_path / "t", parts["test"].rename_column("mood", "label")), ("a pos", "neg")
            )
        ] == [1, 0] * 4
        before = texts_digest(config)
        moved = shutil.copytree(path, tmp_path / "moved")
        assert texts_digest(config.model_copy(update={"manifest": moved})) == before
        refused(
            Data(task="text-classification", manifest=path),
            "column 'label' is missing",
            'label = "NAME',
            load=load_texts,
        )
        sentences = saved(
            tmp_path / "s", {name: part.rename_column("text", "sentence") for name, part in parts.items()}
        )
        refused(
            Data(task="text-classification", manifest=sentences, label="mood"),
            "column 'text' is missing",
            "rename_column",
            load=load_texts,
        )
        plain = {name: part.cast_column("mood", datasets.Value("int64")) for name, part in parts.items()}
        config = Data(
            task="text-classification", manifest=saved(tmp_path / "p", plain), label="mood", classes=("no", "yes")
        )
        assert load_texts(config).classes == ("no", "yes")

    def test_wrong_rows_and_images_for_texts(self, tmp_path: Path) -> None:
        data = datasets.Dataset.from_dict({"text": ["x", None, " "], "label": ["a", "b", "a"]})
        path = saved(tmp_path / "d", {"train": data, "test": data})
        refused(
            Data(task="text-classification", manifest=path),
            "2 rows are wrong",
            "row 2: text is empty",
            "row 3: ",
            load=load_texts,
        )
        path = saved(tmp_path / "i", {"train": images(0, 4), "test": images(4, 4)})
        refused(Data(task="text-classification", manifest=path), "column 'text' is missing", load=load_texts)


class TestTables:
    def table(self, first: int, count: int, **more: list[Any]) -> Any:
        values = {
            "age": [20 + n for n in range(first, first + count)],
            "home": [("own", None, "rent")[n % 3] for n in range(count)],
            "income": [n / 2 if n % 5 else None for n in range(first, first + count)],
            "kind": [n % 2 for n in range(count)],
        } | more
        return datasets.Dataset.from_dict(values).cast_column("kind", datasets.ClassLabel(names=["good", "bad"]))

    def test_it_is_the_table_that_a_csv_file_gives(self, tmp_path: Path) -> None:
        parts = {"train": self.table(0, 60), "validation": self.table(100, 12), "test": self.table(200, 12)}
        path = saved(tmp_path / "d", parts)
        config = Data(task="table-classification", manifest=path, label="kind")
        dataset = load_table(config)
        assert dataset.classes == ("good", "bad") and dataset.train[1].raw == '{"age":21,"home":null,"income":0.5}'
        named = {"train": "train", "validation": "val", "test": "test"}
        lines = ["age,home,income,kind,split"]
        for split, part in parts.items():
            for row in part.to_list():
                cells = [
                    str(row["age"]),
                    row["home"] or "",
                    "" if row["income"] is None else str(row["income"]),
                    ("good", "bad")[row["kind"]],
                ]
                lines.append(",".join([*cells, named[split]]))
        (tmp_path / "t.csv").write_text("\n".join(lines))
        same = load_table(
            Data(task="table-classification", manifest=tmp_path / "t.csv", label="kind", classes=("good", "bad"))
        )
        assert same == dataset
        rows = [
            json.loads(line) | {}
            for line in (json.dumps(dict(zip(lines[0].split(","), line.split(","), strict=True))) for line in lines[1:])
        ]
        (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        assert (
            load_table(
                Data(task="table-classification", manifest=tmp_path / "t.jsonl", label="kind", classes=("good", "bad"))
            )
            == dataset
        )
        contract = fit_table(config, dataset.train)
        assert [s.label for s in load_rows(path / "test", contract, dataset.classes)] == [0, 1] * 6
        assert table_digest(config) == table_digest(config)

    def test_what_is_no_table(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "i", {"train": images(0, 4), "test": images(4, 4)})
        refused(
            Data(task="table-classification", manifest=path), "column 'image' is of the type Image", load=load_table
        )
        listed = [[1]] * 6
        path = saved(tmp_path / "l", {"train": self.table(0, 6, more=listed), "test": self.table(9, 6, more=listed)})
        refused(
            Data(task="table-classification", manifest=path, label="kind"),
            "6 rows are wrong",
            "[1] stands where",
            load=load_table,
        )


class TestHub:
    def test_the_name_and_where_it_stands(self) -> None:
        for name in ("mnist", "user/name", "user/name:config", "user/na.me@main", "user/name:config@v1.0"):
            assert Data(hub=name).hub == name
        for name in ("", "a/b/c", "user name", "user/name:", "user/name@", "https://x/y"):
            with pytest.raises(ValueError, match="hub"):
                Data(hub=name)
        for fields in ({"manifest": "m.csv"}, {"train": "a", "test": "b"}):
            with pytest.raises(ValueError, match="give either manifest, or train and test, or hub"):
                Data.model_validate({"hub": "a/b", **fields})
        with pytest.raises(ValueError, match="with hub, the splits are those of the data set"):
            Data(hub="a/b", test=Path("x"))
        assert "hub" in str(Config.model_json_schema()["$defs"]["Data"]["properties"])

    def test_a_folder_of_that_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "user/name").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match="there is a file or folder 'user/name' here"):
            open_hub("user/name:x@main")

    def test_offline_it_comes_from_the_cache_or_the_error_says_what_to_do(self, tmp_path: Path) -> None:
        """What a download leaves in the cache, made without one; in a process that is offline."""
        source = tmp_path / "parquet"
        source.mkdir()
        for split, first, count in (("train", 0, 12), ("test", 90, 6)):
            images(first, count).to_parquet(source / f"{split}.parquet")
        files = {split: str(source / f"{split}.parquet") for split in ("train", "test")}
        code = f"""
import os, sys
import datasets
cache = sys.argv[1]
datasets.load_dataset("parquet", data_files={files!r}, cache_dir=cache)
where = os.path.join(cache, "user___animals")
os.rename(os.path.join(cache, "parquet"), where)
os.rename(os.path.join(where, os.listdir(where)[0]), os.path.join(where, "default"))
for folder, _, names in os.walk(where):
    for name in names:
        os.rename(os.path.join(folder, name), os.path.join(folder, name.replace("parquet-", "animals-")))
from edgetl.config import Data
from edgetl.data.load import load_dataset
from edgetl.errors import DataError
found = load_dataset(Data(hub="user/animals"))
print(found.classes, len(found.train), len(found.val), len(found.test), type(found.train[0].raw).__name__)
for name in ("user/nothing", "user/animals:other"):
    try:
        load_dataset(Data(hub=name))
    except DataError as error:
        print(error.message.replace(chr(10), " "), "|", error.hint)
"""
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(tmp_path / "cache"),
            "HF_HOME": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "cache")],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        first, *others = done.stdout.strip().splitlines()
        assert first == "('dog', 'cat') 10 2 6 Part"
        assert len(others) == 2
        for line, name in zip(others, ("user/nothing", "user/animals:other"), strict=True):
            assert line.startswith(f"data.hub = '{name}': ") and "save_to_disk" in line


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "d", images(0, 4))
    monkeypatch.setitem(sys.modules, "datasets", None)
    for call in (lambda: load_samples(path), lambda: open_hub("a/b")):
        with pytest.raises(MissingExtraError) as error:
            call()
        assert error.value.hint == "pip install 'edgetl[data]'"
