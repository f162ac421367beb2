from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgetl.data.manifest import Row, list_images, read_folder, read_manifest
from edgetl.errors import DataError, MissingExtraError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(folder: Path, text: str, *images: str) -> Path:
    touch(*(folder / name for name in images))
    path = folder / "m.csv"
    path.write_text(text, encoding="utf-8")
    return path


class TestFolder:
    def test_labels_are_folder_names_and_order_is_by_relative_path(self, tmp_path: Path) -> None:
        names = ["b/1.png", "a/z.JPG", "a/deep/er/x.jpeg", "a/10.bmp", "a/2.webp", "b/t.tif", "b/u.TIFF"]
        touch(*(tmp_path / name for name in names))
        rows = read_folder(tmp_path)
        assert [(row.label, str(row.path.relative_to(tmp_path))) for row in rows] == [
            ("a", "a/10.bmp"), ("a", "a/2.webp"), ("a", "a/deep/er/x.jpeg"), ("a", "a/z.JPG"),
            ("b", "b/1.png"), ("b", "b/t.tif"), ("b", "b/u.TIFF"),
        ]  # fmt: skip
        assert {(row.split, row.group) for row in rows} == {(None, None)}

    def test_hidden_and_other_files_are_ignored(self, tmp_path: Path) -> None:
        touch(*(tmp_path / n for n in ("a/1.png", "a/.2.png", "a/notes.txt", ".cache/1.png", "a/.x/3.png", "read.me")))
        assert [row.path.name for row in read_folder(tmp_path)] == ["1.png"]

    def test_a_symlink_loop_ends(self, tmp_path: Path) -> None:
        touch(tmp_path / "a/1.png", tmp_path / "b/2.png")
        (tmp_path / "a/self").symlink_to(tmp_path / "a")
        (tmp_path / "a/up").symlink_to(tmp_path)
        (tmp_path / "b/other").symlink_to(tmp_path / "a")
        names = [str(path.relative_to(tmp_path / "a")) for path in list_images(tmp_path / "a")]
        assert names == ["1.png", "up/b/2.png"]
        assert [row.path.name for row in read_folder(tmp_path)].count("2.png") >= 1

    def test_a_dangling_symlink_is_listed_not_dropped(self, tmp_path: Path) -> None:
        touch(tmp_path / "a/1.png")
        (tmp_path / "a/2.png").symlink_to(tmp_path / "gone.png")
        assert [row.path.name for row in read_folder(tmp_path)] == ["1.png", "2.png"]

    def test_unicode_and_blanks_in_names(self, tmp_path: Path) -> None:
        touch(tmp_path / "Öl & Essig/naïve 写真.png")
        assert read_folder(tmp_path)[0].label == "Öl & Essig"

    def test_a_relative_folder_gives_absolute_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path / "d/a/1.png")
        monkeypatch.chdir(tmp_path)
        assert read_folder(Path("d/../d"))[0].path == tmp_path / "d/a/1.png"

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ([], "is empty"),
            (["readme.txt"], "is empty"),
            (["a/1.png", "b/notes.txt"], "class 'b' has no image"),
            (["a/1.png", "stray.png"], "1 image lies beside the class folders, as 'stray.png'"),
            (["a/1.png", "a/2.HEIC"], r"2\.HEIC: images of the kind .heic are not read"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, files: list[str], message: str) -> None:
        touch(*(tmp_path / name for name in files))
        with pytest.raises(DataError, match=message):
            read_folder(tmp_path)

    def test_no_such_folder_and_not_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there is no folder"):
            read_folder(tmp_path / "nowhere")
        touch(tmp_path / "file")
        with pytest.raises(DataError, match="neither a folder nor a manifest"):
            read_folder(tmp_path / "file")


class TestCsv:
    def test_columns_in_any_order_with_others_beside_them(self, tmp_path: Path) -> None:
        text = '\ufefflabel, split ,note,group,path\ncat,train,x,g1,sub/1.png\n\n dog ,test,"a,\nb",,2.png\n'
        rows = read_manifest(write(tmp_path, text, "sub/1.png", "2.png"))
        assert rows == [
            Row(tmp_path / "sub/1.png", "cat", "train", "g1", "line 2"),
            Row(tmp_path / "2.png", "dog", "test", None, "line 4"),
        ]

    def test_absolute_paths_are_kept(self, tmp_path: Path) -> None:
        touch(tmp_path / "else/1.png")
        path = write(tmp_path, f"path,label,split\n{tmp_path}/else/1.png,a,val\n")
        assert read_manifest(path)[0].path == tmp_path / "else/1.png"

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("1.png,,train", "line 3: label is empty"),
            (",a,train", "line 3: path is empty"),
            ("1.png,a,", "line 3: split is empty"),
            ("1.png,a,tran", "line 3: unknown split 'tran'; did you mean 'train'?"),
            ("1.png,a,holdout", "line 3: unknown split 'holdout'; known: train, val, test"),
            ("1.png,a,Train", "line 3: unknown split 'Train'"),
            ("gone.png,a,train", "line 3: there is no file 'gone.png'"),
            (".,a,train", "line 3: there is no file '.'"),
            ("0.png,a,train", "line 3: duplicate path '0.png', already on line 2"),
            ("./x/../0.png,b,test", "line 3: duplicate path './x/../0.png', already on line 2"),
            ("1.png,a", "line 3: 2 values for 3 columns"),
            ("1.png,a,train,more", "line 3: 4 values for 3 columns"),
        ],
    )
    def test_a_wrong_row_is_named_by_line(self, tmp_path: Path, row: str, message: str) -> None:
        path = write(tmp_path, f"path,label,split\n0.png,a,train\n{row}\n", "0.png", "1.png")
        with pytest.raises(DataError) as error:
            read_manifest(path)
        assert message in error.value.message and str(path) in error.value.message
        assert "1 row is wrong" in error.value.message and error.value.exit_code == 3

    def test_all_wrong_rows_are_counted_and_twenty_named(self, tmp_path: Path) -> None:
        path = write(tmp_path, "path,label,split\n" + "".join(f"{i}.png,a,train\n" for i in range(50)))
        with pytest.raises(DataError) as error:
            read_manifest(path)
        assert "50 rows are wrong" in error.value.message and "30 more" in error.value.message
        assert error.value.message.count("there is no file") == 20

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("path,lable,split", "column 'label' is missing; did you mean 'lable'?"),
            ("file,kind,split", "column 'path' is missing; the columns are: file, kind, split"),
            ("path,label", "column 'split' is missing"),
            ("path,label,split,groups", "unknown column 'groups'; did you mean 'group'?"),
            ("path,label,split,label", "column 'label' stands there twice"),
            ("", "column 'path' is missing; the columns are: none"),
        ],
    )
    def test_a_wrong_header(self, tmp_path: Path, header: str, message: str) -> None:
        with pytest.raises(DataError) as error:
            read_manifest(write(tmp_path, header + "\n0.png,a,train,x\n", "0.png"))
        assert message in error.value.message

    def test_no_rows_no_file_wrong_encoding_open_quote(self, tmp_path: Path) -> None:
        path = write(tmp_path, "path,label,split\n\n")
        with pytest.raises(DataError, match="a header and no rows"):
            read_manifest(path)
        with pytest.raises(DataError, match="there is no manifest"):
            read_manifest(tmp_path / "none.csv")
        path.write_bytes("path,label,split\nä.png,a,train\n".encode("latin-1"))
        with pytest.raises(DataError, match="not UTF-8"):
            read_manifest(path)
        path.write_text('path,label,split\n"0.png,a,train\n')
        with pytest.raises(DataError, match="not valid CSV"):
            read_manifest(path)

    def test_a_nul_byte_is_an_error_of_the_data(self, tmp_path: Path) -> None:
        with pytest.raises(DataError):
            read_manifest(write(tmp_path, "path,label,split\n0\0.png,a,train\n"))


class TestParquet:
    def write(self, target: Path, /, **columns: list[object]) -> Path:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), target)
        return target

    def test_as_csv_with_numbers_as_labels(self, tmp_path: Path) -> None:
        touch(tmp_path / "1.png", tmp_path / "2.png")
        path = self.write(
            tmp_path / "m.parquet",
            path=["1.png", "2.png"], label=[7, 8], split=["train", "test"], group=["g", None], other=[1.0, 2.0],
        )  # fmt: skip
        assert read_manifest(path) == [
            Row(tmp_path / "1.png", "7", "train", "g", "row 1"),
            Row(tmp_path / "2.png", "8", "test", None, "row 2"),
        ]

    def test_wrong_rows_and_columns(self, tmp_path: Path) -> None:
        touch(tmp_path / "1.png")
        path = self.write(tmp_path / "m.parquet", path=["1.png", "2.png"], label=[None, "a"], split=["train", "train"])
        with pytest.raises(DataError, match=r"(?s)row 1: label is empty.*row 2: there is no file '2\.png'"):
            read_manifest(path)
        path = self.write(tmp_path / "n.parquet", path=["1.png"], labels=["a"], split=["train"])
        with pytest.raises(DataError, match="did you mean 'labels'"):
            read_manifest(path)

    def test_not_parquet(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        (tmp_path / "m.parquet").write_bytes(b"path,label\n")
        with pytest.raises(DataError, match="not valid Parquet"):
            read_manifest(tmp_path / "m.parquet")

    def test_without_pyarrow_the_extra_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "m.parquet").touch()
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingExtraError) as error:
            read_manifest(tmp_path / "m.parquet")
        assert error.value.hint == "pip install 'edgetl[train]'" and error.value.exit_code == 8


def test_paths_keep_their_symlinks(tmp_path: Path) -> None:
    touch(tmp_path / "real/a/1.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_folder(tmp_path / "link")[0].path == tmp_path / "link/a/1.png"
