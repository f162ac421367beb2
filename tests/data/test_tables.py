from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.config import Data
from edgetl.data.dataset import UNLABELLED, Sample
from edgetl.data.tables import fit_table, load_rows, load_table, repeated, rows_digest, table_digest
from edgetl.errors import DataError, LeakError, MissingExtraError
from edgetl.pipeline.modalities import Tables
from edgetl.runtime.preprocessing.tables import Categorical, Numeric, TablePreprocessing

HEADER = ("age", "home", "income", "label", "split")
SIZES = (("train", 20), ("val", 7), ("test", 9))
Rows = list[list[str]]
Write = Callable[..., Path]


def people(count: int = 60, split: str | None = None) -> Rows:
    """Rows of which no two are alike: age, home, income (sometimes missing), label and split."""
    chance = random.Random(0)
    rows = []
    for number in range(count):
        part = split or ("test" if number % 5 == 0 else "val" if number % 5 == 1 else "train")
        income = "NA" if number % 7 == 3 and part == "train" else f"{1000 + number}.5"
        rows.append(
            [str(20 + number % 37), chance.choice(["own", "rent"]), income, "bad" if number % 3 else "good", part]
        )
    return rows


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER, name: str = "table.csv") -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return path

    return make


def data(manifest: Path | None = None, **more: Any) -> Data:
    return Data(task="table-classification", manifest=manifest, **more)


def refused(config: Data, *words: str, error: type[DataError] = DataError) -> None:
    with pytest.raises(error) as caught:
        load_table(config)
    text = f"{caught.value.message}\n{caught.value.hint}"
    for word in words:
        assert word in text, text


class TestLoading:
    def test_rows_are_canonical_json(self, write: Write) -> None:
        dataset = load_table(data(write(people())))
        assert dataset.classes == ("bad", "good")
        assert {name: len(samples) for name, samples in dataset.splits().items()} == {
            "train": 36,
            "val": 12,
            "test": 12,
        }
        assert dataset.test[0].raw == '{"age":20,"home":"rent","income":1000.5}'
        assert dataset.test[0].label == 1
        assert any(json.loads(str(sample.raw))["income"] is None for sample in dataset.train)
        assert len({sample.digest for samples in dataset.splits().values() for sample in samples}) == 60

    def test_columns_and_rows_may_come_in_any_order(self, write: Write) -> None:
        rows = people()
        first = load_table(data(write(rows)))
        swapped = [[row[3], row[4], row[2], row[0], row[1]] for row in reversed(rows)]
        header = ("label", "split", "income", "age", "home")
        second = load_table(data(write(swapped, header, "swapped.csv")))
        assert {sample.digest for sample in first.train} == {sample.digest for sample in second.train}
        assert (
            fit_table(data(Path("x")), first.train).columns[1:] == fit_table(data(Path("x")), second.train).columns[1:]
        )

    def test_one_file_per_split_is_the_same_data_set(self, write: Write) -> None:
        rows = people()
        whole = load_table(data(write(rows)))
        paths = {
            split: write([row[:4] for row in rows if row[4] == split], HEADER[:4], f"{split}.csv")
            for split in ("train", "val", "test")
        }
        assert load_table(data(**paths)) == whole

    def test_parquet_is_the_same_data_set(self, write: Write, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        rows = people()
        columns: dict[str, list[Any]] = {name: [row[place] for row in rows] for place, name in enumerate(HEADER)}
        columns["age"] = [int(value) for value in columns["age"]]
        columns["income"] = [None if value == "NA" else float(value) for value in columns["income"]]
        parquet.write_table(pyarrow.table(columns), tmp_path / "table.parquet")
        assert load_table(data(tmp_path / "table.parquet")) == load_table(data(write(rows)))

    def test_true_and_nan_of_parquet(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        table = {
            "member": [True, False, True, False, True, False],
            "x": [1.5, float("nan"), 2.0, 3.0, 1.0, 2.5],
            "label": [1, 0, 1, 0, 1, 0],
            "split": ["train"] * 4 + ["test"] * 2,
        }
        parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
        dataset = load_table(data(tmp_path / "t.parquet", val_fraction=0.5))
        rows = [json.loads(str(sample.raw)) for sample in (*dataset.train, *dataset.val)]
        assert sorted((row["member"], str(row["x"])) for row in rows) == [
            ("false", "3"), ("false", "None"), ("true", "1.5"), ("true", "2"),
        ]  # fmt: skip
        assert dataset.classes == ("0", "1")

    def test_numbers_can_be_names(self, write: Write) -> None:
        dataset = load_table(data(write(people()), categorical=("age",)))
        assert json.loads(str(dataset.test[0].raw))["age"] == "20"

    @pytest.mark.parametrize("mark", ["", "NA", "NaN", "null", "None", "?", "  "])
    def test_marks_of_missing_values(self, write: Write, mark: str) -> None:
        rows = people()
        rows[2][1] = rows[2][2] = mark
        sample = load_table(data(write(rows))).train[0]
        assert sample.raw == '{"age":22,"home":null,"income":null}'

    def test_classes_in_the_given_order(self, write: Write) -> None:
        dataset = load_table(data(write(people()), classes=("good", "bad")))
        assert dataset.classes == ("good", "bad") and dataset.test[0].label == 0

    def test_progress_ends_with_everything(self, write: Write) -> None:
        calls: list[tuple[int, int]] = []
        load_table(data(write(people())), progress=lambda done, total: calls.append((done, total)))
        assert calls[-1] == (60, 60)

    def test_ignored_columns_are_not_in_a_row(self, write: Write) -> None:
        dataset = load_table(data(write(people()), ignore=("income",)))
        assert set(json.loads(str(dataset.train[0].raw))) == {"age", "home"}


class TestVal:
    def test_it_is_a_seeded_part_of_train(self, write: Write) -> None:
        path = write([row for row in people() if row[4] != "val"])
        first, again, other = (load_table(data(path, split_seed=seed, val_fraction=0.3)) for seed in (0, 0, 1))
        assert first == again != other
        assert len(first.val) + len(first.train) == 36
        assert not {sample.digest for sample in first.val} & {sample.digest for sample in first.train}

    def test_rows_that_show_what_missing_means_stay_in_train(self, write: Write) -> None:
        rows = [row for row in people() if row[4] != "val"]
        for row in rows:
            row[2] = "5" if row[2] == "NA" else row[2]
        victims = [place for place, row in enumerate(rows) if row[4] == "train"]
        for place in victims[:12]:
            changed = [list(row) for row in rows]
            changed[place][2] = "NA"
            dataset = load_table(data(write(changed), val_fraction=0.5))
            contract = fit_table(data(Path("x")), dataset.train)
            assert any('"income":null' in str(sample.raw) for sample in dataset.train)
            for sample in (*dataset.train, *dataset.val, *dataset.test):
                assert np.isfinite(contract(sample.raw)).all()

    def test_groups_stay_together(self, write: Write) -> None:
        rows = [[*row, str(number // 6)] for number, row in enumerate(people(split="train"))]
        rows += [[*row, ""] for row in people(90)[60:]]
        for row in rows[60:]:
            row[4] = "test"
        dataset = load_table(data(write(rows, (*HEADER, "group")), val_fraction=0.3))
        assert {sample.group for sample in dataset.test} == {None}
        groups = [{sample.group for sample in samples} for samples in (dataset.train, dataset.val)]
        assert not groups[0] & groups[1] and groups[1]
        assert "group" not in str(dataset.train[0].raw)


class TestCopies:
    def test_a_copy_between_splits_is_a_leak_where_rows_are_unique(self, write: Write) -> None:
        rows = people()
        rows.append([*rows[2][:4], "test"])
        refused(data(write(rows)), '{"age":22', "same content in two splits", error=LeakError)

    def test_equal_values_with_another_label_are_no_copy(self, write: Write) -> None:
        rows = people()
        rows.append([*rows[2][:3], "good", "test"])
        assert rows[2][3] == "bad"
        assert repeated(load_table(data(write(rows)))) == {"val": 0, "test": 1}

    def test_equal_rows_are_honest_where_train_itself_has_them(self, write: Write) -> None:
        rows = [[age, home, label, split] for split in ("train", "val", "test") for age in "12" for home in "ab"
                for label in ("x", "y")]  # fmt: skip
        dataset = load_table(data(write(rows, ("age", "home", "label", "split"))))
        assert repeated(dataset) == {"val": 8, "test": 8}

    def test_calibration_rows_that_are_equal_to_rows_of_test(self, write: Write) -> None:
        """Where rows repeat, that is chance, unless the rows are those of test altogether."""
        header = ("age", "home", "label", "split")
        rows = [[str(n % 4), "ab"[n % 3 % 2], "xy"[n % 2], split] for split, count in SIZES for n in range(count)]
        dataset = load_table(data(write(rows, header)))
        contract = fit_table(data(Path("x")), dataset.train)

        def check(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
            path = write(rows, header, "own.csv")
            Tables().check_calibration(load_rows(path, contract, dataset.classes), dataset)

        check([row[:2] for row in rows[5:17]], header[:2])  # other people with the same few values
        check(rows[:16], header)
        check([row for row in rows if row[3] == "train"], header)
        for names in ({"test"}, {"val"}, {"val", "test"}, {"train", "val", "test"}):
            own = [row for row in reversed(rows) if row[3] in names]
            listed = " and ".join(name for name in ("train", "val", "test") if name in names)
            with pytest.raises(
                LeakError, match=f"the {len(own)} rows for calibration are those of {listed}, one"
            ) as raised:
                check(own, header)
            assert raised.value.hint is not None and "leave out quantize.data" in raised.value.hint
            with pytest.raises(LeakError):
                check([row[:2] for row in own], header[:2])

    def test_calibration_rows_that_stand_in_test_where_rows_are_unique(self, write: Write) -> None:
        dataset = load_table(data(write(people())))
        contract = fit_table(data(Path("x")), dataset.train)
        rows = [row[:4] for row in people()]

        def check(*rows: Sequence[str]) -> None:
            path = write(rows, HEADER[: len(rows[0])], "own.csv")
            Tables().check_calibration(load_rows(path, contract, dataset.classes), dataset)

        assert people()[5][3:] == ["bad", "test"]
        check(*rows[2:5], [*rows[5][:3], "good"])  # another person
        for own in (rows[5], rows[5][:3], rows[6][:3]):
            with pytest.raises(LeakError, match="1 pair of samples with the same content in two splits"):
                check(rows[2][: len(own)], own)

    def test_groups_between_splits_are_a_leak(self, write: Write) -> None:
        rows = [[*row, "one" if number in (0, 2) else ""] for number, row in enumerate(people())]
        refused(data(write(rows, (*HEADER, "group"))), "'one' in train and test", error=LeakError)


def changed(place: int, column: int, value: str) -> Rows:
    rows = people()
    rows[place][column] = value
    return rows


class TestBadTables:
    def test_files(self, write: Write, tmp_path: Path) -> None:
        refused(data(tmp_path / "none.csv"), "none.csv is not there", ".csv or .parquet")
        refused(data(tmp_path), "is a folder")
        (tmp_path / "table.xlsx").write_bytes(b"x")
        refused(data(tmp_path / "table.xlsx"), "is no table")
        (tmp_path / "bad.parquet").write_bytes(b"x")
        refused(data(tmp_path / "bad.parquet"), "not valid Parquet")
        (tmp_path / "latin.csv").write_bytes("größe,label,split\n".encode("latin-1"))
        refused(data(tmp_path / "latin.csv"), "not UTF-8")
        (tmp_path / "empty.csv").write_bytes(b"")
        refused(data(tmp_path / "empty.csv"), "is empty")
        refused(data(write([])), "a header and no rows")

    def test_parquet_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "table.parquet").write_bytes(b"x")
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
        with pytest.raises(MissingExtraError):
            load_table(data(tmp_path / "table.parquet"))

    def test_unreadable_rows_are_all_named_by_line(self, write: Write) -> None:
        rows = people()
        rows[3] = rows[3][:2]
        rows[9] = [*rows[9], "more"]
        refused(data(write(rows)), "2 rows are wrong", "line 5: 2 values for 5 columns", "line 11: 6 values")

    def test_headers(self, write: Write) -> None:
        refused(data(write(people(), ("", *HEADER[1:]))), "column 1 has no name", "data.ignore")
        refused(data(write(people(), ("home", *HEADER[1:]))), "'home' stands there twice")
        refused(data(write(people(), (*HEADER[:4], "spilt"))), "column 'split' is missing", "'spilt'")
        refused(data(write(people()), label="lable"), "'lable'", "'label'")
        refused(data(write(people()), ignore=("hme",)), "data.ignore", "'hme'", "'home'")
        refused(data(write(people()), categorical=("hme",)), "data.categorical", "'hme'")
        refused(data(write(people()), ignore=("label",)), "which is the label")
        refused(data(write(people()), ignore=("home",), categorical=("home",)), "both name 'home'")
        refused(data(write(people()), ignore=("age", "home", "income")), "no column that the network could learn")
        refused(data(write([["a;b"]], ("age;label",)), label="label"), "split")

    def test_columns_that_differ_between_splits(self, write: Write) -> None:
        train = write(people(split="train"), HEADER, "train.csv")
        short = [[row[0], row[2], row[3]] for row in people(split="test")]
        refused(
            data(train=train, test=write(short, ("age", "income", "label"), "test.csv")), "test has no column 'home'"
        )
        more = [[*row, "1"] for row in people(split="test")]
        test = write(more, (*HEADER, "more"), "test.csv")
        refused(data(train=train, test=test), "'more'", "train does not have", "ignore = ['more']")

    def test_an_extra_column_of_test_can_be_ignored(self, write: Write) -> None:
        train = write(people(90, "train")[:60], HEADER, "train.csv")
        rows = [[*row, "1"] for row in people(90, "test")[60:]]
        test = write(rows, (*HEADER, "more"), "test.csv")
        assert len(load_table(data(train=train, test=test, ignore=("more",))).test) == 30

    def test_splits(self, write: Write) -> None:
        refused(data(write(changed(7, 4, "tset"))), "line 9: split is 'tset', not train or val or test")
        refused(data(write(people(split="train"))), "no row has the split 'test'")
        train = write(people(split="val"), HEADER, "train.csv")
        refused(data(train=train, test=train), "split is 'val', not train")

    def test_labels(self, write: Write) -> None:
        refused(data(write(changed(4, 3, ""))), "line 6: the label is missing")
        refused(data(write(changed(5, 3, "god"))), "line 7: the label 'god' is not a class", "'good'")
        refused(data(write(people()), classes=("good",)), "two different classes are needed")
        refused(data(write(people()), classes=("good", "good")), "two different classes are needed")
        refused(data(write(people()), classes=("good", "bad", "ugly")), "train has no row of 1 of 3 classes: 'ugly'")
        refused(data(write([[*row[:3], "good", row[4]] for row in people()])), "two different classes", "'good'")
        rows = [row for row in people() if row[4] != "test" or row[3] == "bad"]
        refused(data(write(rows)), "test has no row of 1 of 2 classes: 'good'")

    def test_a_missing_mark_can_be_a_class(self, write: Write) -> None:
        rows = [[*row[:3], "None" if row[3] == "bad" else "good", row[4]] for row in people()]
        refused(data(write(rows)), "the classes are 'good'")
        assert load_table(data(write(rows), classes=("None", "good"))).classes == ("None", "good")

    def test_columns_that_say_nothing(self, write: Write) -> None:
        refused(data(write([[row[0], "?", *row[2:]] for row in people()])), "'home' has no value in train", "ignore")

    def test_a_typing_error_does_not_make_names_of_numbers(self, write: Write) -> None:
        refused(data(write(changed(8, 0, "3O"))), "'age' holds numbers, but for 1 of 36 values: line 10: '3O'")
        assert load_table(data(write(changed(8, 0, "3O")), categorical=("age",)))
        refused(data(write(changed(8, 0, "inf"))), "line 10: 'inf'")
        refused(data(write(changed(8, 2, "1,000"))), "line 10: '1,000'")
        refused(data(write(changed(8, 2, "1e999"))), "line 10", "too large a number")

    def test_text_among_the_numbers_of_test(self, write: Write) -> None:
        refused(data(write(changed(5, 0, "old"))), "line 7: column 'age' is 'old', where train has numbers")

    def test_a_number_that_only_test_lacks(self, write: Write) -> None:
        refused(data(write(changed(5, 0, ""))), "line 7: column 'age' is missing, and it never was in train")

    def test_too_many_names(self, write: Write) -> None:
        rows = [[row[0], f"street {number}", *row[2:]] for number, row in enumerate(people(150))]
        refused(data(write(rows)), "'home' has 90 different values", "may have 64", "ignore = ['home']")

    def test_names_that_are_written_otherwise_in_test(self, write: Write) -> None:
        rows = [[row[0], row[1].title() if row[4] == "test" else row[1], *row[2:]] for row in people()]
        refused(data(write(rows)), "'home' has no value that train has", "'Rent'")


class TestFitting:
    def test_it_is_fitted_on_train_alone(self, write: Write) -> None:
        rows = people()
        config = data(write(rows))
        contract = fit_table(config, load_table(config).train)
        train = [row for row in rows if row[4] == "train"]
        ages, incomes = ([float(row[place]) for row in train if row[place] != "NA"] for place in (0, 2))
        age, home, income = contract.columns
        assert age == Numeric(name="age", mean=np.mean(ages), std=np.std(np.sort(ages)), fill=np.median(ages))
        assert home == Categorical(name="home", values=("own", "rent"))
        assert isinstance(income, Numeric) and income.missing and income.mean == pytest.approx(np.mean(incomes))
        other = [row if row[4] == "train" else [str(9 * int(row[0])), *row[1:]] for row in rows]
        config = data(write(other))
        assert fit_table(config, load_table(config).train) == contract

    def test_train_becomes_standard(self, write: Write) -> None:
        config = data(write(people()))
        dataset = load_table(config)
        contract = fit_table(config, dataset.train)
        values = np.stack([contract(sample.raw) for sample in dataset.train])
        assert values[:, 0].mean() == pytest.approx(0.0, abs=1e-6) and values[:, 0].std() == pytest.approx(
            1.0, abs=1e-5
        )
        assert set(np.unique(values[:, 1:3])) == {0.0, 1.0}
        flags = values[:, contract.features.index("income is missing")]
        assert flags.sum() == sum('"income":null' in str(sample.raw) for sample in dataset.train) > 0

    def test_constant_columns_are_left_out_and_recorded(self, write: Write) -> None:
        rows = [["5" if row[4] == "train" else "6", *row[1:]] for row in people()]
        config = data(write(rows), ignore=("home",))
        dataset = load_table(config)
        contract = fit_table(config, dataset.train)
        assert contract.features == ("income", "income is missing")
        assert {entry.name: entry.reason for entry in contract.ignored} == {
            "age": "the same in every row of train: 5",
            "group": "rows that belong together",
            "home": "data.ignore",
            "label": "the label",
            "split": "how rows are split",
        }
        assert contract(dataset.test[0].raw).shape == (2,)

    def test_one_value_that_is_sometimes_missing_is_kept_for_its_flag(self) -> None:
        rows = [Sample('{"x":5}', 0, None, "a"), Sample('{"x":null}', 1, None, "b")]
        contract = fit_table(data(Path("x")), rows)
        assert [contract(sample.raw).tolist() for sample in rows] == [[0.0, 0.0], [0.0, 1.0]]

    @pytest.mark.parametrize(
        ("values", "message"),
        [(["null", "null"], "'x' has no value"), (["1", "1"], "no column is left"), (["1e308", "-1e308"], "too large")],
    )
    def test_what_cannot_be_fitted(self, values: list[str], message: str) -> None:
        rows = [Sample(f'{{"x":{value}}}', 0, None, value) for value in values]
        with pytest.raises(DataError, match=message):
            fit_table(data(Path("x")), rows)


class TestLooseRows:
    @pytest.fixture
    def contract(self, write: Write) -> TablePreprocessing:
        config = data(write([["5", *row] for row in people()], ("same", *HEADER)))
        return fit_table(config, load_table(config).train)

    def test_they_are_the_rows_of_the_data_set(self, write: Write, contract: TablePreprocessing) -> None:
        rows = [["5", *row] for row in people()]
        dataset = load_table(data(write(rows, ("same", *HEADER))))
        test = write([row[:5] for row in rows if row[5] == "test"], ("same", *HEADER[:4]), "test.csv")
        assert load_rows(test, contract, dataset.classes) == dataset.test
        assert {sample.label for sample in load_rows(test, contract)} == {UNLABELLED}

    def test_they_need_no_label_and_no_column_that_is_not_used(
        self, write: Write, contract: TablePreprocessing
    ) -> None:
        path = write([row[:3] for row in people()], HEADER[:3], "loose.csv")
        assert {sample.label for sample in load_rows(path, contract, ("bad", "good"))} == {UNLABELLED}

    @pytest.mark.parametrize(
        ("header", "rows", "words"),
        [
            (("age", "home"), [["3", "own"]], ("no column 'income'",)),
            (("age", "home", "income", "hat"), [["3", "own", "1", "x"]], ("'hat'", "not trained with")),
            (("age", "home", "income"), [["3", "own", "1"], ["old", "own", "1"]], ("line 3: column 'age' is 'old'",)),
            (("age", "home", "income"), [["", "own", "1"]], ("line 2: column 'age' is missing", "never was in train")),
            (("age", "home", "income", "label"), [["3", "own", "1", "god"]], ("line 2: the label 'god'", "'good'")),
            (("age", "home", "income", "label"), [["3", "own", "1", ""]], ("line 2: the label is missing",)),
        ],
    )
    def test_bad_rows_are_named(
        self, write: Write, contract: TablePreprocessing, header: Sequence[str], rows: Rows, words: tuple[str, ...]
    ) -> None:
        with pytest.raises(DataError) as caught:
            load_rows(write(rows, header, "loose.csv"), contract, ("bad", "good"))
        for word in words:
            assert word in caught.value.message, caught.value.message


class TestDigest:
    def test_it_changes_with_any_byte_and_with_the_split_of_a_file(self, write: Write) -> None:
        path = write(people())
        first = table_digest(data(path))
        assert first == table_digest(data(write(people(), name="elsewhere.csv")))
        assert first != table_digest(data(train=path, test=path)) != table_digest(data(train=path, val=path, test=path))
        path.write_bytes(path.read_bytes() + b"\n")
        assert table_digest(data(path)) != first

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot read"):
            table_digest(data(tmp_path / "none.csv"))
        with pytest.raises(DataError, match="cannot read"):
            rows_digest(tmp_path)
