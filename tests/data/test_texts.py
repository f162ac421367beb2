from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.config import Data
from edgetl.data.dataset import UNLABELLED, Dataset
from edgetl.data.texts import (
    PAD,
    load_text_samples,
    load_texts,
    text_samples_digest,
    texts_digest,
    train_tokenizer,
)
from edgetl.errors import DataError, LeakError, MissingExtraError, UsageError

Rows = list[dict[str, Any]]


def some(count: int = 20, **fields: str) -> Rows:
    """Texts of two classes, a fifth of them test."""
    return [
        {"text": f"text {n}", "label": "ab"[n % 2], "split": "test" if n % 10 < 2 else "train", **fields}
        for n in range(count)
    ]


def config(path: Path, **fields: Any) -> Data:
    return Data(task="text-classification", manifest=path, **fields)


def as_csv(path: Path, rows: Rows) -> Path:
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_json_lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_parquet(path: Path, rows: Rows) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


WRITERS = {"csv": as_csv, "jsonl": as_json_lines, "parquet": as_parquet}


class TestFiles:
    @pytest.mark.parametrize("kind", WRITERS)
    def test_texts_stay_as_they_are(self, tmp_path: Path, kind: str) -> None:
        odd = ['He said: "no, never"\nand left\u2028.', "  blanks around  ", "写真, tab\there", "x" * 200_000]
        rows = [*some(), *({"text": text, "label": " a ", "split": "train"} for text in odd)]
        dataset = load_texts(config(WRITERS[kind](tmp_path / f"m.{kind}", rows)))
        everything = [sample for samples in dataset.splits().values() for sample in samples]
        assert {sample.raw for sample in everything} == {row["text"] for row in rows}
        assert dataset.classes == ("a", "b") and all(sample.group is None for sample in everything)
        assert Dataset.from_json(json.loads(json.dumps(dataset.to_json()))) == dataset

    def test_all_formats_give_the_same_data_set(self, tmp_path: Path) -> None:
        rows = [{**row, "group": f"g{n // 5}", "id": n} for n, row in enumerate(some(40))]
        for row in rows:
            row["split"] = "test" if row["group"] < "g2" else "train"
        found = {load_texts(config(write(tmp_path / f"m.{kind}", rows))) for kind, write in WRITERS.items()}
        assert len(found) == 1
        dataset = found.pop()
        assert {sample.group for sample in dataset.test} == {"g0", "g1"}
        assert not {s.group for s in dataset.val} & {s.group for s in dataset.train}

    def test_the_digest_is_that_of_the_text(self, tmp_path: Path) -> None:
        import hashlib

        for sample in load_texts(config(as_csv(tmp_path / "m.csv", some()))).train:
            assert isinstance(sample.raw, str)
            assert sample.digest == hashlib.sha256(sample.raw.encode()).hexdigest()

    def test_val_is_taken_or_given(self, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        path = as_csv(tmp_path / "m.csv", some(100))
        dataset = load_texts(config(path, val_fraction=0.25), progress=lambda *state: seen.append(state))
        assert Counter(sample.label for sample in dataset.val) == {0: 10, 1: 10} and len(dataset.train) == 60
        assert seen == [(100, 100)] and load_texts(config(path, val_fraction=0.25)) == dataset
        given = [*some(100), {"text": "v", "label": "a", "split": "val"}, {"text": "w", "label": "b", "split": "val"}]
        assert [s.raw for s in load_texts(config(as_csv(path, given))).val] == ["v", "w"]

    def test_a_file_per_split(self, tmp_path: Path) -> None:
        rows = some(40)
        parts = {name: [row for row in rows if row["split"] == name] for name in ("train", "test")}
        for row in parts["test"]:
            del row["split"]
        paths = {
            "train": as_csv(tmp_path / "a.csv", parts["train"]),
            "test": as_json_lines(tmp_path / "b.jsonl", parts["test"]),
        }
        both = Data(task="text-classification", **paths)
        dataset = load_texts(both)
        assert len(dataset.test) == 8 and len(dataset.train) + len(dataset.val) == 32
        swapped = Data(task="text-classification", train=paths["test"], test=paths["train"])
        with pytest.raises(DataError, match=r"line 2: split is 'train' in the file that was given as data\.test"):
            load_texts(swapped)
        assert texts_digest(both) != texts_digest(swapped)

    def test_classes_as_given(self, tmp_path: Path) -> None:
        path = as_csv(tmp_path / "m.csv", some())
        assert load_texts(config(path, classes=("b", "a"))).classes == ("b", "a")
        with pytest.raises(DataError, match=r"train has the label 'b' \(line 5\), which is not a class"):
            load_texts(config(path, classes=("a", "c")))
        with pytest.raises(DataError, match="names 'a' more than once"):
            load_texts(config(path, classes=("a", "b", "a")))

    def test_numbers_are_labels_too(self, tmp_path: Path) -> None:
        rows = [{**row, "label": "ab".index(row["label"])} for row in some()]
        assert load_texts(config(as_json_lines(tmp_path / "m.jsonl", rows))).classes == ("0", "1")

    def test_digest_of_the_files(self, tmp_path: Path) -> None:
        path = as_csv(tmp_path / "m.csv", some())
        before = texts_digest(config(path))
        moved = tmp_path / "moved.csv"
        moved.write_bytes(path.read_bytes())
        assert texts_digest(config(moved)) == before and text_samples_digest(moved) == text_samples_digest(path)
        moved.write_bytes(path.read_bytes() + b"more,a,train\n")
        assert texts_digest(config(moved)) != before and text_samples_digest(moved) != text_samples_digest(path)
        with pytest.raises(DataError, match="there is no file"):
            texts_digest(config(tmp_path / "gone.csv"))


class TestBadFiles:
    def test_rows_are_named_by_the_line_where_they_begin(self, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_text(
            'text,label,split\n"two\nlines",a,train\n,a,train\n" \n",b,train\nx,,test\ny,a,tset\nz,a\n',
            encoding="utf-8",
        )
        with pytest.raises(DataError) as error:
            load_texts(config(tmp_path / "m.csv"))
        assert error.value.exit_code == 3
        assert error.value.message.endswith(
            "m.csv: 5 rows are wrong:\n  line 4: text is empty\n  line 5: text is empty: it is blank\n"
            "  line 7: label is empty\n  line 8: unknown split 'tset'; did you mean 'test'?\n"
            "  line 9: 2 values for 3 columns"
        )

    def test_rows_of_json_lines(self, tmp_path: Path) -> None:
        lines = ['{"text": 3, "label": "a"}', "nonsense", "[]", '{"label": "a"}', '{"text": "\\ud800", "label": "a"}']
        lines += ['{"text": "x", "label": true}', '{"text": "x", "label": 1.5}', "", '{"text": "ok", "label": "a"}']
        (tmp_path / "m.jsonl").write_text("\n".join(lines), encoding="utf-8")
        with pytest.raises(DataError) as error:
            load_text_samples(tmp_path / "m.jsonl")
        found = [line.split(":")[0].strip() for line in error.value.message.splitlines()[1:]]
        assert found == [f"line {number}" for number in range(1, 8)]

    def test_many_wrong_rows_are_counted(self, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_text("text,label,split\n" + ",a,train\n" * 30, encoding="utf-8")
        with pytest.raises(DataError, match=r"30 rows are wrong[\s\S]*… and 10 more"):
            load_texts(config(tmp_path / "m.csv"))

    @pytest.mark.parametrize("kind", ["csv", "jsonl"])
    def test_not_utf8(self, tmp_path: Path, kind: str) -> None:
        content = {"csv": "text,label,split\nschön,a,train\n", "jsonl": '{"text": "schön", "label": "a"}\n'}[kind]
        (tmp_path / f"m.{kind}").write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match="not UTF-8"):
            load_texts(config(tmp_path / f"m.{kind}"))
        (tmp_path / f"m.{kind}").write_bytes(content.encode("utf-16"))
        with pytest.raises(DataError):
            load_texts(config(tmp_path / f"m.{kind}"))

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("m.csv", "", "column 'text' is missing"),
            ("m.csv", "texts,label,split\nx,a,train\n", "column 'text' is missing; did you mean 'texts'"),
            ("m.csv", "text,label,split,text\nx,a,train,y\n", "column 'text' stands there twice"),
            ("m.csv", "text,label,split,groups\nx,a,train,1\n", "did you mean 'group'"),
            ("m.csv", "text,label,split\n", "is empty: it has no rows"),
            ("m.csv", 'text,label,split\nok,a,train\n"x,a,train\n', "line 3: not valid CSV"),
            ("m.jsonl", "", "is empty: it has no rows"),
            ("m.parquet", "PAR1", "not valid Parquet"),
            ("m.txt", "x", "is not a table of texts"),
        ],
    )
    def test_damaged_files(self, tmp_path: Path, name: str, content: str, message: str) -> None:
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow")
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            load_texts(config(tmp_path / name))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"there is no file .*m\.csv"):
            load_texts(config(tmp_path / "m.csv"))
        (tmp_path / "m.csv").mkdir()
        with pytest.raises(DataError, match="there is no file"):
            load_texts(config(tmp_path / "m.csv"))

    def test_classes_that_are_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "m.csv"
        one = [{**row, "label": "a"} for row in some()]
        with pytest.raises(DataError, match="only one class, 'a'"):
            load_texts(config(as_csv(path, one)))
        lacking = [row for row in some() if row["split"] == "train" or row["label"] == "a"]
        with pytest.raises(DataError, match="test has no text of 1 of 2 classes: 'b'"):
            load_texts(config(as_csv(path, lacking)))
        with pytest.raises(DataError, match="no row has the split 'test'"):
            load_texts(config(as_csv(path, [{**row, "split": "train"} for row in some()])))

    def test_a_text_in_train_and_test(self, tmp_path: Path) -> None:
        rows = [*some(), {"text": "text 0", "label": "a", "split": "train"}]
        with pytest.raises(LeakError, match=r"1 pair of samples with the same content[\s\S]*text 0"):
            load_texts(config(as_csv(tmp_path / "m.csv", rows)))

    def test_a_group_in_train_and_test(self, tmp_path: Path) -> None:
        with pytest.raises(LeakError, match="1 group stands in two splits"):
            load_texts(config(as_csv(tmp_path / "m.csv", some(group="one"))))

    def test_copies_inside_train_do_not_become_a_leak_into_val(self, tmp_path: Path) -> None:
        rows = some(60)
        rows += [row for row in rows if row["split"] == "train"]
        dataset = load_texts(config(as_csv(tmp_path / "m.csv", rows), val_fraction=0.5))
        assert not {s.digest for s in dataset.train} & {s.digest for s in dataset.val}


class TestSamples:
    def test_labelled_or_not(self, tmp_path: Path) -> None:
        path = as_csv(tmp_path / "m.csv", some(4))
        assert [sample.label for sample in load_text_samples(path, ("b", "a"))] == [1, 0, 1, 0]
        assert {sample.label for sample in load_text_samples(path)} == {UNLABELLED}
        with pytest.raises(DataError, match="line 2: 'a' is not a class of the model"):
            load_text_samples(path, ("b", "c"))

    def test_texts_alone(self, tmp_path: Path) -> None:
        path = as_json_lines(tmp_path / "m.jsonl", [{"text": "one"}, {"text": "two", "label": "b"}])
        assert [(s.raw, s.label) for s in load_text_samples(path, ("a", "b"))] == [("one", UNLABELLED), ("two", 1)]


class TestTokenizer:
    TEXTS = ("The tea was good, the tea was Bad", "bad tea\nbad", "naïve CAFÉ tea", "cafe\u0301 café") * 3

    def test_the_same_texts_give_the_same_tokenizer(self, tmp_path: Path) -> None:
        """Also in another process, with another seed of its hashes and another number of threads."""
        here = train_tokenizer(self.TEXTS, 60)
        (tmp_path / "texts.json").write_text(json.dumps(self.TEXTS), encoding="utf-8")
        code = (
            "import json, sys; from edgetl.data.texts import train_tokenizer\n"
            "print(train_tokenizer(json.load(open(sys.argv[1])), 60), end='')"
        )
        for seed, threads in (("1", "1"), ("2", "2")):
            there = subprocess.run(
                [sys.executable, "-c", code, str(tmp_path / "texts.json")],
                capture_output=True,
                text=True,
                check=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "PYTHONIOENCODING": "utf-8"},
            )
            assert there.stdout == here

    def test_it_ignores_case_and_ways_to_write_accents(self) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        made = tokenizers.Tokenizer.from_str(train_tokenizer(self.TEXTS, 80))
        assert made.encode("Café  TEA\n").ids == made.encode("cafe\u0301 tea").ids
        assert made.token_to_id("[PAD]") == PAD and made.encode("").tokens == ["[CLS]"]
        assert made.encode("Tea, tea").tokens == ["[CLS]", "▁tea", "▁,", "▁tea"]
        assert "[UNK]" in made.encode("写").tokens and made.get_vocab_size() <= 80

    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.integers(4, 50))
    def test_no_text_breaks_it(self, texts: list[str], vocabulary: int) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        made = tokenizers.Tokenizer.from_str(train_tokenizer(texts, vocabulary))
        assert made.get_vocab_size() <= vocabulary
        for text in texts:
            assert PAD not in made.encode(text).ids

    def test_too_small_or_empty(self) -> None:
        with pytest.raises(UsageError, match="a vocabulary of 3"):
            train_tokenizer(self.TEXTS, 3)
        with pytest.raises(DataError, match="no text to learn"):
            train_tokenizer([], 100)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pyarrow"):
        load_texts(config(tmp_path / "m.parquet"))
