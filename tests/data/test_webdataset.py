from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgetl.config import Data, load
from edgetl.data.load import label_names, load_dataset, load_samples, source_digest
from edgetl.data.parts import Part
from edgetl.data.webdataset import find_shards, is_shards, read_shards
from edgetl.errors import DataError, ImageError, MissingExtraError

Members = Sequence[tuple[str, bytes | str]]


def png(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def shard(path: Path, members: Members, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def some(first: int, count: int, kind: str = "cls") -> list[tuple[str, bytes | str]]:
    """Images of the classes cat and dog in turn."""
    members: list[tuple[str, bytes | str]] = []
    for number in range(first, first + count):
        name = ("cat", "dog")[number % 2]
        label = json.dumps({"label": name}) if kind == "json" else name
        members += [(f"{number:06}.png", png(number)), (f"{number:06}.{kind}", label)]
    return members


def labels(path: Path, *classes: str, **options: Any) -> list[str | None]:
    return [row.label for row in read_shards(path, classes, **options)]


def refused(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(DataError) as caught:
        read_shards(path, **options)
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert caught.value.exit_code == 3
    for word in words:
        assert word in text, text


class TestNames:
    def test_one_a_folder_a_glob_and_braces_are_the_same(self, tmp_path: Path) -> None:
        pytest.importorskip("braceexpand")
        folder = tmp_path / "[odd] {1,2} *"
        shards = [shard(folder / "s" / f"train-{n:03}.tar", some(n * 4, 4)) for n in (2, 0, 1)]
        for pattern in (
            "s",
            "s/train-*.tar",
            "s/train-{000..002}.tar",
            "s/train-00[0-2].tar",
            "{s,t}/train-{000..002}.tar",
        ):
            if pattern.startswith("{s"):
                for path in shards:
                    shard(folder / "t" / path.name, some(0, 2))
            assert is_shards(folder / pattern), pattern
            found = find_shards(folder / pattern)
            assert found[:3] == sorted(shards) and len(found) == (6 if pattern.startswith("{s") else 3), pattern
        assert find_shards(shards[0]) == [shards[0]]
        (folder / "s" / ".hidden").mkdir()
        (folder / "s" / "README.md").touch()
        assert find_shards(folder / "s") == sorted(shards)

    def test_what_is_no_shard(self, tmp_path: Path) -> None:
        (tmp_path / "cat").mkdir()
        (tmp_path / "a*.csv").touch()
        (tmp_path / "empty").mkdir()
        for name in ("cat", "a*.csv", "nowhere", "m.csv", "empty", "images*"):
            assert not is_shards(tmp_path / name), name

    def test_wrong_patterns(self, tmp_path: Path) -> None:
        pytest.importorskip("braceexpand")
        one = shard(tmp_path / "s/a-0.tar", some(0, 4))
        refused(tmp_path / "s/a-{0..1}.tar", f"there is no shard {tmp_path}/s/a-1.tar")
        refused(tmp_path / "s/b-*.tar", "no shard matches", str(tmp_path / "s"))
        refused(tmp_path / "none/b-*.tar", "no shard matches", f"the folder that is there is {tmp_path}")
        refused(tmp_path / "s/b.tar", "there is no shard")
        refused(tmp_path / "s/a-{0,0}.tar", "names the shard a-0.tar twice")
        if sys.version_info < (3, 13):  # from there on, ** inside a name is *
            refused(tmp_path / "s/**.tar", "s/**.tar cannot be used")
        (tmp_path / "s/._a-1.tar").touch()
        assert find_shards(tmp_path / "s/*.tar") == [one]

    def test_an_archive_beside_images_makes_no_shards_of_a_folder(self, make_folders: Any) -> None:
        root = make_folders({"train": {"cat": 6, "dog": 6}, "test": {"cat": 2, "dog": 2}, "flat": {"": 3}})
        for name in ("train", "test", "flat"):
            (root / name / "download.tar").touch()
        assert len(load_dataset(Data(train=root / "train", test=root / "test")).test) == 4
        assert len(load_samples(root / "flat")) == 3

    def test_braces_without_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "braceexpand", None)
        with pytest.raises(MissingExtraError) as error:
            find_shards(tmp_path / "a-{0..1}.tar")
        assert error.value.hint == "pip install 'edgetl[data]'"

    def test_a_pattern_in_the_configuration_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "edgetl.toml").write_text(
            'schema = 1\n[project]\nname = "x"\n[data]\ntrain = "s/a-{000000..000009}.tar"\ntest = "../t/b-*.tar"\n'
            '[[target]]\ndevice = "x86-64-cpu"\n'
        )
        data = load(tmp_path).data
        assert data.train == tmp_path / "s/a-{000000..000009}.tar" and str(data.test).endswith("../t/b-*.tar")


class TestReading:
    @pytest.mark.parametrize("kind", ["cls", "txt", "json"])
    def test_images_and_labels_in_their_order(self, tmp_path: Path, kind: str) -> None:
        path = shard(tmp_path / "a.tar", some(0, 6, kind))
        rows = read_shards(path)
        assert [row.label for row in rows] == ["cat", "dog"] * 3
        assert [row.raw.read_bytes() for row in rows] == [png(n) for n in range(6)]
        assert str(rows[1].raw) == rows[1].where == f"{path}: 000001.png" and isinstance(rows[0].raw, Part)

    def test_the_webdataset_writer_and_its_reader(self, tmp_path: Path) -> None:
        webdataset = pytest.importorskip("webdataset")
        with webdataset.ShardWriter(str(tmp_path / "t-%06d.tar"), maxcount=4, verbose=0) as writer:
            for n in range(10):
                writer.write({"__key__": f"dir.x/k{n:03}", "png": png(n), "cls": n % 3, "json": {"group": n // 2}})
        rows = read_shards(tmp_path / "t-{000000..000002}.tar")
        theirs = webdataset.WebDataset(str(tmp_path / "t-{000000..000002}.tar"), shardshuffle=False)
        assert [row.raw.read_bytes() for row in rows] == [sample["png"] for sample in theirs]
        assert [row.label for row in rows] == [str(n % 3) for n in range(10)]
        assert [row.group for row in rows] == [str(n // 2) for n in range(10)]

    def test_numbers_are_indices_where_no_class_is_named_so(self, tmp_path: Path) -> None:
        path = shard(
            tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", "1\n"), ("2.png", png(2)), ("2.json", '{"label":0}')]
        )
        assert labels(path) == ["1", "0"]
        assert labels(path, "cat", "dog") == ["dog", "cat"]
        assert labels(path, "dog", "1") == ["1", "dog"]
        odd = shard(tmp_path / "b.tar", [("1.png", png(1)), ("1.cls", "007"), ("2.png", png(2)), ("2.cls", "9" * 5000)])
        assert labels(odd, "a", "b") == ["007", "9" * 5000]
        assert labels(path, "cat") == ["1", "cat"]  # which is no class: told by who checks labels

    def test_several_labels(self, tmp_path: Path) -> None:
        path = shard(
            tmp_path / "a.tar",
            [("1.png", png(1)), ("1.json", '{"label": ["b", 0]}'), ("2.png", png(2)), ("2.cls", "a; b"),
             ("3.png", png(3)), ("3.cls", "1;0"), ("4.png", png(4)), ("4.json", '{"label": []}'),
             ("5.png", png(5)), ("5.cls", "")],
        )  # fmt: skip
        assert labels(path, "a", "b", several=True) == ["b;a", "a;b", "b;a", None, None]
        refused(
            path, "3 samples are wrong", "1: label is ['b', 0]: 2 classes", "4: label is empty", "5: label is empty"
        )

    def test_the_strongest_label_wins_and_groups(self, tmp_path: Path) -> None:
        members = [
            ("a.jpg", png(1)),
            ("a.json", '{"label": "j", "group": "g"}'),
            ("a.txt", "a photo of"),
            ("a.cls", "c"),
        ]
        row = read_shards(shard(tmp_path / "a.tar", members))[0]
        assert (row.label, row.group) == ("c", "g")
        row = read_shards(shard(tmp_path / "b.tar", members[:-1]))[0]
        assert row.label == "j"

    def test_keys_end_at_the_first_dot_and_case_of_kinds_does_not_matter(self, tmp_path: Path) -> None:
        members = [
            ("./d.e/x.photo.JPG", png(1)),
            ("./d.e/x.CLS", "a"),
            ("f/x.png", png(2)),
            ("f/x.cls", "b"),
            ("f/.x.png", b""),
            ("LICENSE", ""),
        ]
        assert labels(shard(tmp_path / "a.tar", members)) == ["a", "b"]

    @pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_long_and_odd_names_in_every_format(self, tmp_path: Path, format_: int) -> None:
        name = "d" * 90 + "/" + ("x" * 60 if format_ == tarfile.USTAR_FORMAT else "写真 " * 60)
        with tarfile.open(tmp_path / "a.tar", "w", format=format_) as archive:
            for kind, content in (("png", png(1)), ("cls", b"a")):
                info = tarfile.TarInfo(f"{name}.{kind}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        row = read_shards(tmp_path / "a.tar")[0]
        assert row.raw.read_bytes() == png(1) and row.where.endswith(f"{name}.png")

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.binary(max_size=1500), min_size=1, max_size=6))
    def test_bytes_come_back_whatever_they_are(self, contents: list[bytes]) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            members: list[tuple[str, bytes | str]] = []
            for number, content in enumerate(contents):
                members += [(f"{number}.jpg", content), (f"{number}.cls", "x")]
            rows = read_shards(shard(Path(folder) / "a.tar", members))
            assert [row.raw.read_bytes() for row in rows] == contents


class TestWrongSamples:
    @pytest.mark.parametrize(
        ("members", "words"),
        [
            ([("2.cls", "a")], "2: no image among its members (.cls)"),
            ([("2.png", b"x")], "2: no label: it has no .cls"),
            ([("2.png", b"x"), ("2.cls", " \n")], "2: label is empty"),
            ([("2.png", b"x"), ("2.cls", b"\xff")], "2: 2.cls is not UTF-8"),
            ([("2.png", b"x"), ("2.cls", b"a" * (1 << 20) + b"a")], "2.cls has 1,048,577 bytes, which is no label"),
            ([("2.png", b"x"), ("2.jpg", b"x"), ("2.cls", "a")], "2: 2 images (.png, .jpg, .cls)"),
            ([("2.a.png", b"x"), ("2.b.png", b"x"), ("2.cls", "a")], "a name goes to its first dot"),
            ([("2.png", b"x"), ("2.png", b"x"), ("2.cls", "a")], "2.png: is there twice"),
            ([("1.png", b"x"), ("1.cls", "a")], "1.png: members of the sample '1' do not stand together"),
            ([("2.gif", b"x"), ("2.cls", "a")], "2.gif: images of the kind .gif are not read"),
            ([("2.png", b"x"), ("2.json", "{")], "2: .json is not valid JSON"),
            ([("2.png", b"x"), ("2.json", "[1]")], "2: .json is not a JSON object"),
            ([("2.png", b"x"), ("2.json", '{"label": 1.5}')], "2: label is 1.5; it should be a name or a whole number"),
            ([("2.png", b"x"), ("2.json", '{"label": true}')], "2: label is True"),
            ([("2.png", b"x"), ("2.json", '{"label": {"a": 1}}')], "2: label is {'a': 1}"),
            ([("2.png", b"x"), ("2.json", '{"label": null}')], "2: label is empty"),
            ([("2.png", b"x"), ("2.json", '{"label": "a", "group": [1]}')], "2: group is [1]"),
        ],
    )  # fmt: skip
    def test_each(self, tmp_path: Path, members: Members, words: str) -> None:
        path = shard(
            tmp_path / "a.tar",
            [
                ("0.png", b"x"),
                ("0.cls", "a"),
                ("1.png", b"x"),
                ("1.cls", "a"),
                ("5.png", b""),
                ("5.cls", "b"),
                *members,
            ],
        )
        refused(path, str(path), words)

    def test_all_are_told_at_once(self, tmp_path: Path) -> None:
        path = shard(tmp_path / "a.tar", [(f"{n}.png", b"x") for n in range(30)])
        refused(path, "30 samples are wrong", "… and 10 more")
        assert labels(path, needs_label=False) == [None] * 30

    def test_a_list_with_odd_names(self, tmp_path: Path) -> None:
        path = shard(tmp_path / "a.tar", [("0.png", b"x"), ("0.json", '{"label": ["a;b", "c"]}')])
        refused(path, "label has the name 'a;b'", several=True)

    def test_links_sparse_files_and_devices(self, tmp_path: Path) -> None:
        for kind, words in (
            (tarfile.SYMTYPE, "a link to '0.png'"),
            (tarfile.LNKTYPE, "a link"),
            (tarfile.FIFOTYPE, "not a plain"),
        ):
            path = shard(tmp_path / "a.tar", some(0, 2))
            with tarfile.open(path, "a") as archive:
                info = tarfile.TarInfo("2.png")
                info.type, info.linkname = kind, "0.png"
                archive.addfile(info)
            refused(path, f"2.png: {words}")
        with (tmp_path / "2.png").open("wb") as file:
            file.truncate(1 << 22)
            file.seek(1 << 21)
            file.write(b"x")
        if os.system(f"tar -C {tmp_path} --sparse -cf {tmp_path}/s.tar 2.png 2>/dev/null") == 0:
            refused(tmp_path / "s.tar", "2.png: stored as a sparse file")


class TestDamagedArchives:
    def test_compressed(self, tmp_path: Path) -> None:
        for mode, suffix in (("w:gz", ".tar.gz"), ("w:bz2", ".tar.bz2"), ("w:xz", ".tar.xz"), ("w:gz", ".tgz")):
            path = shard(tmp_path / suffix[1:] / f"a{suffix}", some(0, 4), mode)
            for given_as in (path, path.parent, path.parent / f"*{suffix}"):
                if is_shards(given_as):
                    refused(given_as, f"{path} is compressed", f"< a{suffix} > a-plain.tar")
            assert is_shards(path) and is_shards(path.parent)
        path.rename(tmp_path / "b.tar")
        refused(tmp_path / "b.tar", "is compressed", "gunzip <")

    def test_empty_and_no_archive(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").touch()
        refused(tmp_path / "a.tar", "is empty: 0 bytes")
        refused(shard(tmp_path / "b.tar", []), "is empty: it has no images")
        refused(shard(tmp_path / "c.tar", [("README", "x")]), "is empty: it has no images")
        (tmp_path / "d.tar").write_bytes(b"x" * 5000)
        refused(tmp_path / "d.tar", "is no tar archive")
        (tmp_path / "e.tar").mkdir()
        refused(tmp_path / "e.tar" / "x.tar", "there is no shard")

    def test_cut_anywhere_is_never_a_smaller_data_set(self, tmp_path: Path) -> None:
        whole = shard(tmp_path / "a.tar", some(0, 3)).read_bytes()
        end = len(whole.rstrip(b"\0"))
        path = tmp_path / "b.tar"
        for length in [*range(0, end + 400, 128), *range(512, end, 512)]:
            path.write_bytes(whole[:length])
            refused(path, str(path))

    def test_damage_in_the_middle_and_two_archives_in_a_file(self, tmp_path: Path) -> None:
        one = shard(tmp_path / "a.tar", some(0, 3)).read_bytes()
        second = next(row for row in read_shards(tmp_path / "a.tar") if "000001" in row.where).raw.offset - 512
        (tmp_path / "b.tar").write_bytes(one[:second] + b"garbage!" * 64 + one[second + 512 :])
        refused(tmp_path / "b.tar", f"cut or damaged behind byte {second:,}")
        (tmp_path / "c.tar").write_bytes(one[:second] + bytes(512) + one[second + 512 :])
        refused(tmp_path / "c.tar", "more follows")
        (tmp_path / "d.tar").write_bytes(one + one)
        refused(tmp_path / "d.tar", "more follows", "tar --concatenate")


class TestDataSets:
    def config(self, root: Path, **fields: Any) -> Data:
        shard(root / "train-0.tar", some(0, 12))
        shard(root / "train-1.tar", some(12, 12))
        shard(root / "test.tar", some(100, 8))
        return Data(train=root / "train-*.tar", test=root / "test.tar", **fields)

    def test_it_is_split_and_digested(self, tmp_path: Path) -> None:
        config = self.config(tmp_path / "one", val_fraction=0.25)
        dataset = load_dataset(config)
        assert dataset.classes == ("cat", "dog") and [len(s) for s in dataset.splits().values()] == [18, 6, 8]
        before = source_digest(config)
        shard(tmp_path / "one/test.tar", [("x.cls", "cat"), ("x.png", png(999)), *some(100, 8)])
        assert source_digest(config) != before
        assert load_dataset(self.config(tmp_path / "two", val_fraction=0.25)).digest() == dataset.digest()

    def test_a_member_that_moved_is_seen(self, tmp_path: Path) -> None:
        config = self.config(tmp_path)
        before = source_digest(config)
        shard(tmp_path / "test.tar", [(".x", b"y"), *some(100, 8)])
        assert source_digest(config) != before

    def test_a_damaged_image_is_named(self, tmp_path: Path) -> None:
        config = self.config(tmp_path)
        shard(tmp_path / "test.tar", [*some(100, 4), ("bad.png", b"nonsense"), ("bad.cls", "cat")])
        with pytest.raises(ImageError, match=r"test\.tar: bad\.png: this is not an image"):
            load_dataset(config)

    def test_unknown_labels_and_missing_classes(self, tmp_path: Path) -> None:
        config = self.config(tmp_path, classes=("cat", "dog", "cow"))
        with pytest.raises(DataError, match="train has no sample of 1 of 3 classes: 'cow'"):
            load_dataset(config)
        with pytest.raises(
            DataError, match=r"train has the label 'dog' \(.*train-0.tar: 000001.png\), which is not a class"
        ):
            load_dataset(config.model_copy(update={"classes": ("cat", "cow")}))

    def test_shards_as_a_manifest_are_refused(self, tmp_path: Path) -> None:
        path = shard(tmp_path / "a.tar", some(0, 4))
        with pytest.raises(DataError, match=r"data\.manifest is .*a\.tar, which does not say which split"):
            load_dataset(Data(manifest=path))

    def test_samples_for_calibration_and_verification(self, tmp_path: Path) -> None:
        path = shard(tmp_path / "a.tar", [*some(0, 2), ("9.png", png(9))])
        assert [s.label for s in load_samples(path, ("dog", "cat"))] == [1, 0, -1]
        assert [s.label for s in load_samples(path)] == [-1] * 3
        assert label_names(path) == ("cat", "dog")
        with pytest.raises(DataError, match="'cat' is not a class of the model"):
            load_samples(path, ("dog", "cow"))

    def test_people_and_sets_of_classes(self, tmp_path: Path) -> None:
        faces = [
            (f"{n}.{kind}", png(n) if kind == "png" else f"p{n % 6}") for n in range(24) for kind in ("png", "cls")
        ]
        more = [
            (f"{n}.{kind}", png(n) if kind == "png" else f"q{n % 3}") for n in range(50, 62) for kind in ("png", "cls")
        ]
        train, test = shard(tmp_path / "f.tar", faces), shard(tmp_path / "g.tar", more)
        dataset = load_dataset(Data(task="face-verification", train=train, test=test, val_fraction=0.34))
        assert [len({s.label for s in samples}) for samples in dataset.splits().values()] == [4, 2, 3]
        listed = [["a"], ["b"], ["a", "b"], []] * 4
        both = [(f"{n}.{kind}", png(n) if kind == "png" else json.dumps({"label": names}))
                for n, names in enumerate(listed) for kind in ("png", "json")]  # fmt: skip
        other = [(name, png(90 + int(name[:-4])) if name.endswith("png") else data) for name, data in both]
        config = Data(
            task="multi-label-images", train=shard(tmp_path / "m.tar", both), test=shard(tmp_path / "n.tar", other)
        )
        assert [s.label for s in load_dataset(config).test[:4]] == [(1, 0), (0, 1), (1, 1), (0, 0)]
        samples = load_samples(config.test or tmp_path, ("b", "a"), several=True)
        assert [s.label for s in samples[:4]] == [(0, 1), (1, 0), (1, 1), (0, 0)]
        with pytest.raises(DataError, match="'b' is not a class of the model"):
            load_samples(config.test or tmp_path, ("a", "c"), several=True)
        assert {s.label for s in load_samples(config.test or tmp_path)} == {-1}
