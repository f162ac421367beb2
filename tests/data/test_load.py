from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgetl.config import Data
from edgetl.data.dataset import UNLABELLED
from edgetl.data.load import load_dataset, load_samples, samples_digest, source_digest
from edgetl.errors import DataError, ImageError, LeakError

Make = Callable[[dict[str, dict[str, int]]], Path]
BOTH = {"cat": 6, "dog": 8}


def folders(root: Path, **fields: object) -> Data:
    return Data.model_validate(
        {name: root / name for name in ("train", "val", "test") if (root / name).exists()} | fields
    )


def as_manifest(root: Path, rows: list[str], header: str = "path,label,split") -> Data:
    (root / "m.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return Data(manifest=root / "m.csv")


class TestFolders:
    def test_three_folders(self, make_folders: Make) -> None:
        seen: list[tuple[int, int]] = []
        root = make_folders({"train": BOTH, "val": {"cat": 2, "dog": 2}, "test": {"cat": 3, "dog": 3}})
        dataset = load_dataset(folders(root), progress=lambda *state: seen.append(state))
        assert dataset.classes == ("cat", "dog")
        assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [14, 4, 6]
        assert Counter(sample.label for sample in dataset.train) == {0: 6, 1: 8}
        assert dataset.train[0].raw == root / "train/cat/0.png" and seen[-1] == (24, 24)

    def test_val_comes_out_of_train(self, make_folders: Make) -> None:
        root = make_folders({"train": {"cat": 20, "dog": 30}, "test": BOTH})
        dataset = load_dataset(folders(root, val_fraction=0.2))
        assert Counter(sample.label for sample in dataset.val) == {0: 4, 1: 6}
        assert len(dataset.train) == 40 and not set(dataset.train) & set(dataset.val)
        assert load_dataset(folders(root, val_fraction=0.2)) == dataset
        assert load_dataset(folders(root, val_fraction=0.2, split_seed=1)).val != dataset.val

    def test_copies_inside_train_do_not_become_a_leak_into_val(self, make_folders: Make) -> None:
        root = make_folders({"train": {"cat": 10, "dog": 10}, "test": BOTH})
        for path in sorted((root / "train").rglob("*.png")):
            shutil.copy(path, path.with_name(f"copy-{path.name}"))
        dataset = load_dataset(folders(root, val_fraction=0.5))
        assert not {s.digest for s in dataset.train} & {s.digest for s in dataset.val}

    def test_a_moved_data_set_keeps_its_digest(self, make_folders: Make, tmp_path: Path) -> None:
        root = make_folders({"train": BOTH, "test": BOTH})
        before, source = load_dataset(folders(root)), source_digest(folders(root))
        moved = tmp_path / "moved"
        for name in ("train", "test"):
            shutil.copytree(root / name, moved / name)
        assert load_dataset(folders(moved)).digest() == before.digest()
        assert source_digest(folders(moved)) != source

    def test_classes_are_sorted_plainly_or_as_given(self, make_folders: Make) -> None:
        sizes = {"10": 2, "2": 2, "B": 2, "a": 2}
        root = make_folders({"train": sizes, "val": sizes, "test": sizes})
        assert load_dataset(folders(root)).classes == ("10", "2", "B", "a")
        given = load_dataset(folders(root, classes=("a", "B", "2", "10")))
        assert given.classes == ("a", "B", "2", "10") and given.train[0].label == 3

    @pytest.mark.parametrize(
        ("splits", "message"),
        [
            ({"train": {}, "test": BOTH}, "there is no folder"),
            ({"train": {"cat": 3}, "test": {"cat": 3}}, "only one class, 'cat'"),
            ({"train": BOTH, "test": {"cat": 3}}, "test has no sample of 1 of 2 classes: 'dog'"),
            ({"train": BOTH, "val": {"dog": 3}, "test": BOTH}, "val has no sample of 1 of 2 classes: 'cat'"),
            ({"train": BOTH, "test": {**BOTH, "dgo": 1}}, "test has the label 'dgo' .*did you mean 'dog'"),
            ({"train": {"cat": 1, "dog": 5}, "test": BOTH}, "val cannot be taken out of train: class 'cat'"),
        ],
    )
    def test_what_is_refused(self, make_folders: Make, splits: dict[str, dict[str, int]], message: str) -> None:
        root = make_folders(splits)
        with pytest.raises(DataError, match=message) as error:
            load_dataset(Data(train=root / "train", val=root / "val" if "val" in splits else None, test=root / "test"))
        assert error.value.exit_code == 3

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            (("cat", "dog", "cow"), "train has no sample of 1 of 3 classes: 'cow'"),
            (("cat", "dog", "cat"), "names 'cat' more than once"),
            (("cat", "cow"), "train has the label 'dog'"),
            (("cat",), "only one class"),
        ],
    )
    def test_given_classes_must_fit(self, make_folders: Make, classes: tuple[str, ...], message: str) -> None:
        with pytest.raises(DataError, match=message):
            load_dataset(folders(make_folders({"train": BOTH, "test": BOTH}), classes=classes))

    def test_an_empty_folder(self, make_folders: Make) -> None:
        root = make_folders({"test": BOTH})
        (root / "train").mkdir()
        with pytest.raises(DataError, match="train is empty"):
            load_dataset(folders(root))

    def test_a_truncated_and_an_oversized_image(self, make_folders: Make) -> None:
        root = make_folders({"train": BOTH, "test": BOTH})
        Image.effect_noise((64, 64), 50).save(root / "whole.jpg")
        (root / "train/cat/x.jpg").write_bytes((root / "whole.jpg").read_bytes()[:900])
        Image.new("RGB", (200, 100)).save(root / "test/dog/large.png")
        with pytest.raises(ImageError, match=r"(?s)2 of 30 images.*x\.jpg.*large\.png"):
            load_dataset(folders(root, max_pixels=10_000))

    def test_a_leak_saved_in_another_format(self, make_folders: Make) -> None:
        root = make_folders({"train": BOTH, "test": BOTH})
        Image.open(root / "train/cat/0.png").save(root / "test/dog/other.bmp")
        with pytest.raises(LeakError, match=r"(?s)train: .*train/cat/0\.png.*test: .*test/dog/other\.bmp"):
            load_dataset(folders(root))


class TestManifests:
    def rows(self, make: Make) -> tuple[Path, list[str]]:
        root = make({"d": {"cat": 10, "dog": 10}})
        splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
        return root, [f"d/{c}/{n}.png,{c},{split}" for c in ("cat", "dog") for n, split in enumerate(splits)]

    def test_splits_from_the_column(self, make_folders: Make) -> None:
        dataset = load_dataset(as_manifest(*self.rows(make_folders)))
        assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [12, 4, 4]

    def test_val_left_out_keeps_groups_whole(self, make_folders: Make) -> None:
        root, rows = self.rows(make_folders)
        rows = [
            f"{row.replace('val', 'train')},{'' if 'test' in row else f'g{n % 10 // 2}'}" for n, row in enumerate(rows)
        ]
        dataset = load_dataset(as_manifest(root, rows, "path,label,split,group"))
        groups = [{s.group for s in split} for split in (dataset.train, dataset.val)]
        assert groups[1] and not groups[0] & groups[1]

    def test_a_group_in_two_given_splits(self, make_folders: Make) -> None:
        root, rows = self.rows(make_folders)
        with pytest.raises(LeakError, match=r"'p' in train and val and test"):
            load_dataset(as_manifest(root, [f"{row},p" for row in rows], "path,label,split,group"))

    def test_a_split_without_rows(self, make_folders: Make) -> None:
        root, rows = self.rows(make_folders)
        with pytest.raises(DataError, match="no row has the split 'test'"):
            load_dataset(as_manifest(root, [row for row in rows if "test" not in row]))

    def test_one_manifest_per_split(self, make_folders: Make) -> None:
        root, rows = self.rows(make_folders)
        for split in ("train", "test"):
            listed = [row.rsplit(",", 1)[0] for row in rows if row.endswith(split)]
            (root / f"{split}.csv").write_text("\n".join(["path,label", *listed]))
        config = Data(train=root / "train.csv", test=root / "test.csv", val_fraction=0.34)
        assert [len(split) for split in load_dataset(config).splits().values()] == [8, 4, 4]
        as_manifest(root, rows)
        with pytest.raises(DataError, match=r"line 8: split is 'val' in the manifest that was given as data\.train"):
            load_dataset(Data(train=root / "m.csv", test=root / "test.csv"))


class TestSourceDigest:
    def test_it_sees_content_names_labels_and_nothing_else(self, make_folders: Make) -> None:
        root = make_folders({"train": BOTH, "test": BOTH})
        config = folders(root)
        first = source_digest(config)
        (root / "train/notes.txt").touch()
        (root / "train/cat/0.png").touch()
        assert source_digest(config) == first
        (root / "train/cat/0.png").rename(root / "train/cat/00.png")
        second = source_digest(config)
        Image.new("RGB", (9, 9)).save(root / "train/cat/00.png")
        third = source_digest(config)
        (root / "train/cat/00.png").rename(root / "train/dog/00.png")
        assert len({first, second, third, source_digest(config)}) == 4

    def test_a_file_that_is_no_image_is_hashed_all_the_same(self, make_folders: Make) -> None:
        root = make_folders({"train": BOTH, "test": BOTH})
        (root / "train/cat/0.png").write_text("damaged")
        assert len(source_digest(folders(root))) == 64
        (root / "train/cat/1.png").unlink()
        (root / "train/cat/1.png").symlink_to(root / "gone")
        with pytest.raises(DataError, match=r"cannot read .*1\.png"):
            source_digest(folders(root))

    def test_the_split_and_the_group_of_a_manifest_count(self, make_folders: Make) -> None:
        root = make_folders({"d": {"cat": 2}})
        texts = [
            "0.png,cat,train,\n1.png,cat,test,",
            "0.png,cat,test,\n1.png,cat,train,",
            "0.png,cat,train,g\n1.png,cat,test,",
        ]
        digests = set()
        for text in texts:
            (root / "d/cat/m.csv").write_text("path,label,split,group\n" + text)
            digests.add(source_digest(Data(manifest=root / "d/cat/m.csv")))
        assert len(digests) == 3


class TestLoadSamples:
    def test_a_flat_or_nested_folder_is_unlabelled(self, make_folders: Make) -> None:
        root = make_folders({"flat": {"": 3}, "nested": {"day1": 2, "day2": 2}})
        assert [s.label for s in load_samples(root / "flat", ("cat", "dog"))] == [UNLABELLED] * 3
        assert [s.label for s in load_samples(root / "nested", ("cat", "dog"))] == [UNLABELLED] * 4
        assert len({s.digest for s in load_samples(root / "nested")}) == 4

    def test_class_folders_give_labels(self, make_folders: Make) -> None:
        root = make_folders({"c": {"dog": 2, "cat": 1}})
        assert [s.label for s in load_samples(root / "c", ("dog", "cat", "cow"))] == [1, 0, 0]
        assert [s.label for s in load_samples(root / "c")] == [UNLABELLED] * 3

    def test_a_manifest_with_and_without_labels(self, make_folders: Make) -> None:
        root = make_folders({"c": {"dog": 2}})
        path = root / "m.csv"
        path.write_text("path\nc/dog/0.png\nc/dog/1.png\n")
        assert [s.label for s in load_samples(path, ("cat", "dog"))] == [UNLABELLED] * 2
        path.write_text("path,label\nc/dog/0.png,dog\nc/dog/1.png,\n")
        assert [s.label for s in load_samples(path, ("cat", "dog"))] == [1, UNLABELLED]
        path.write_text("path,label\nc/dog/0.png,dgo\n")
        with pytest.raises(DataError, match="'dgo' is not a class of the model; did you mean 'dog'"):
            load_samples(path, ("cat", "dog"))

    def test_what_is_refused(self, make_folders: Make) -> None:
        root = make_folders({"mixed": {"dog": 1, "dgo": 1}})
        with pytest.raises(DataError, match="'dgo' is not a class"):
            load_samples(root / "mixed", ("cat", "dog"))
        (root / "empty").mkdir()
        with pytest.raises(DataError, match="is empty: it has no images"):
            load_samples(root / "empty")
        with pytest.raises(DataError, match="there is no folder"):
            load_samples(root / "gone")
        with pytest.raises(ImageError, match="pixels"):
            load_samples(root / "mixed", max_pixels=20)

    def test_its_digest_sees_content_and_classes(self, make_folders: Make) -> None:
        root = make_folders({"c": {"dog": 2, "cat": 1}})
        first = samples_digest(root / "c", ("cat", "dog"))
        assert first == samples_digest(root / "c", ("cat", "dog")) != samples_digest(root / "c")
        Image.new("RGB", (3, 3)).save(root / "c/dog/0.png")
        assert samples_digest(root / "c", ("cat", "dog")) != first


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, edgetl.data.load, edgetl.data.loader, edgetl.data.examples.digits; "
        "print(sorted({'torch', 'torchvision', 'pyarrow', 'mlxtend', 'onnx'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
