from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import DataError, ModelError
from edgetl.runtime.preprocessing import from_json
from edgetl.runtime.preprocessing.tables import Categorical, Ignored, Numeric, TablePreprocessing, read_row

AGE = Numeric(name="Age", mean=40.0, std=10.0, fill=38.0)
HOME = Categorical(name="Home", values=("own", "rent"))
INCOME = Numeric(name="Income", mean=100.0, std=50.0, fill=90.0, missing=True)
JOB = Categorical(name="Job", values=("fixed", "free"), missing=True)
CONTRACT = TablePreprocessing(columns=(AGE, HOME, INCOME, JOB), ignored=(Ignored(name="id", reason="data.ignore"),))
ROW = {"Age": 50, "Home": "rent", "Income": 150.0, "Job": "fixed"}
DELETE = object()


def row(**changes: Any) -> str:
    values = {**ROW, **changes}
    return json.dumps({name: value for name, value in values.items() if value is not DELETE})


class TestVectors:
    def test_every_feature_has_a_name_and_a_place(self) -> None:
        assert CONTRACT.features == (
            "Age", "Home = own", "Home = rent", "Income", "Income is missing", "Job = fixed", "Job = free",
            "Job is missing",
        )  # fmt: skip
        assert CONTRACT.input_shape == (8,)
        vector = CONTRACT(row())
        assert vector.dtype == np.float32
        assert vector.tolist() == [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]

    def test_a_missing_number_is_filled_and_flagged(self) -> None:
        assert CONTRACT(row(Income=None)).tolist()[3:5] == [np.float32(-0.2), 1.0]

    def test_a_missing_name_has_a_place_of_its_own_where_train_had_one(self) -> None:
        assert CONTRACT(row(Job=None)).tolist()[5:] == [0.0, 0.0, 1.0]
        assert CONTRACT(row(Home=None)).tolist()[1:3] == [0.0, 0.0]

    def test_an_unknown_name_is_all_zeros(self) -> None:
        assert CONTRACT(row(Job="none", Home="boat")).tolist() == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]

    def test_whole_numbers_and_booleans_can_be_names(self) -> None:
        contract = TablePreprocessing(columns=(Categorical(name="x", values=("1", "true")),))
        assert contract('{"x": 1}').tolist() == [1.0, 0.0]
        assert contract('{"x": true}').tolist() == [0.0, 1.0]

    @pytest.mark.parametrize(("age", "expected"), [(1e300, 8.0), (-1e300, -8.0), (10**30, 8.0), (40, 0.0)])
    def test_wild_numbers_are_cut_off(self, age: float, expected: float) -> None:
        assert CONTRACT(row(Age=age))[0] == expected

    def test_a_tiny_deviation_does_not_overflow(self) -> None:
        contract = TablePreprocessing(columns=(Numeric(name="x", mean=0.0, std=5e-324, fill=0.0),))
        assert contract('{"x": 1e308}').tolist() == [8.0]

    def test_ignored_columns_may_be_there(self) -> None:
        assert CONTRACT(row(id={"any": "thing"})).tolist() == CONTRACT(row()).tolist()

    def test_files_bytes_and_text_are_alike(self, tmp_path: Path) -> None:
        path = tmp_path / "row.json"
        path.write_bytes(b"\xef\xbb\xbf" + row().encode())
        assert CONTRACT(path).tolist() == CONTRACT(row().encode()).tolist() == CONTRACT(row()).tolist()

    def test_the_order_of_keys_does_not_matter(self) -> None:
        assert CONTRACT(json.dumps(dict(reversed(ROW.items())))).tolist() == CONTRACT(row()).tolist()

    def test_batches_are_stacked(self) -> None:
        assert CONTRACT.together([CONTRACT(row()), CONTRACT(row(Age=1))]).shape == (2, 8)

    def test_ten_thousand_rows_take_about_a_second(self) -> None:
        columns = [Numeric(name=f"n{i}", mean=1.0, std=2.0, fill=0.0, missing=True) for i in range(16)]
        names = [Categorical(name=f"c{i}", values=tuple(map(str, range(30)))) for i in range(6)]
        contract = TablePreprocessing(columns=(*columns, *names))
        text = json.dumps({f"n{i}": i + 0.5 for i in range(16)} | {f"c{i}": "7" for i in range(6)})
        began = time.process_time()
        for _ in range(1000):
            contract(text)
        assert time.process_time() - began < 0.5


class TestBadRows:
    @pytest.mark.parametrize(
        ("raw", "words"),
        [
            (row(Age=DELETE), ("no column 'Age'",)),
            (row(Age=DELETE, Job=DELETE), ("'Age', 'Job'",)),
            (row(age=3), ("'age'", "not trained with")),
            (row(Age="50"), ("'Age'", "must be a number", "'50'")),
            (row(Age=True), ("'Age'", "must be a number", "true")),
            (row(Age=[1]), ("'Age'", "a list")),
            (row(Age={}), ("'Age'", "an object")),
            (row(Age=None), ("'Age' is missing", "never was in train")),
            (row(Home=1.5), ("'Home'", "must be a text", "1.5")),
            (row(Home=[]), ("'Home'", "a list")),
            (row(Age=float("nan")), ("'Age'", "NaN or infinity")),
            (row(Income=float("inf")), ("'Income'", "NaN or infinity")),
            (row(Age=7).replace("7", "1e999"), ("'Age'", "not a finite number")),
            (row(Age=7).replace("7", "9" * 400), ("'Age'", "not a finite number")),
            (row(Age=7).replace("7", "9" * 5000), ("not JSON",)),
            (row(Age=[float("nan")]), ("'Age'", "a list")),
            ('{"Age": 1, "Age": 2}', ("'Age' stands there twice",)),
            ("[1, 2]", ("not a JSON object", "a list")),
            ("NaN", ("not a JSON object", "NaN")),
            ("3", ("not a JSON object", "3")),
            ("", ("not JSON",)),
            ("{", ("not JSON",)),
            ("[" * 100_000, ("not JSON",)),
            (b"\xff\xfe", ("not UTF-8",)),
        ],
    )
    def test_the_message_names_it(self, raw: str | bytes, words: tuple[str, ...]) -> None:
        with pytest.raises(DataError) as caught:
            CONTRACT(raw)
        for word in words:
            assert word in caught.value.message, caught.value.message

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"cannot read .*row\.json"):
            CONTRACT(tmp_path / "row.json")
        with pytest.raises(DataError, match="cannot read"):
            CONTRACT(tmp_path)

    def test_the_hint_says_what_is_ignored(self) -> None:
        with pytest.raises(DataError) as caught:
            CONTRACT(row(other=1))
        assert caught.value.hint == "leave it out; ignored are: id"

    @given(
        st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=4)
    )
    def test_any_value_gives_finite_numbers_or_a_named_column(self, value: Any) -> None:
        for name in ROW:
            try:
                vector = CONTRACT(row(**{name: value}))
            except DataError as error:
                assert name in error.message
            else:
                assert np.isfinite(vector).all()

    @given(st.text())
    def test_any_text_gives_an_error_or_a_row(self, text: str) -> None:
        try:
            assert isinstance(read_row(text), dict)
        except DataError as error:
            assert error.message


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COLUMNS = st.lists(
    st.builds(
        Numeric,
        name=st.text(max_size=5),
        mean=NUMBERS,
        std=st.floats(min_value=1e-300, max_value=1e300),
        fill=NUMBERS,
        missing=st.booleans(),
    )
    | st.builds(
        Categorical,
        name=st.text(max_size=5),
        values=st.lists(st.text(max_size=3), min_size=1, unique=True).map(tuple),
        missing=st.booleans(),
    ),
    min_size=1,
    unique_by=lambda column: column.name,
)


class TestJson:
    @given(COLUMNS)
    def test_the_round_trip_keeps_everything(self, columns: list[Numeric | Categorical]) -> None:
        contract = TablePreprocessing(columns=tuple(columns), clip=5.0)
        again = from_json(json.loads(json.dumps(contract.to_json())))
        assert again == contract
        assert again.digest() == contract.digest()

    def test_every_field_is_in_the_digest(self) -> None:
        others = (
            TablePreprocessing(columns=CONTRACT.columns),
            TablePreprocessing(columns=CONTRACT.columns[:-1], ignored=CONTRACT.ignored),
            TablePreprocessing(columns=CONTRACT.columns[::-1], ignored=CONTRACT.ignored),
            TablePreprocessing(columns=CONTRACT.columns, ignored=CONTRACT.ignored, clip=9.0),
        )
        assert len({CONTRACT.digest(), *(other.digest() for other in others)}) == 5

    def test_it_can_be_pickled_after_use(self) -> None:
        CONTRACT(row())
        again = pickle.loads(pickle.dumps(CONTRACT))
        assert again == CONTRACT and hash(again) == hash(CONTRACT)
        assert again(row()).tolist() == CONTRACT(row()).tolist()

    @pytest.mark.parametrize(
        "change",
        [
            {"columns": DELETE},
            {"columns": []},
            {"columns": {}},
            {"columns": ["Age"]},
            {"columns": [None]},
            {"columns": [{"name": "x"}]},
            {"columns": [{"name": "x", "mean": 0.0, "std": 0.0, "fill": 0.0}]},
            {"columns": [{"name": "x", "mean": 0.0, "std": -1.0, "fill": 0.0}]},
            {"columns": [{"name": "x", "mean": float("nan"), "std": 1.0, "fill": 0.0}]},
            {"columns": [{"name": "x", "mean": 10**400, "std": 1.0, "fill": 0.0}]},
            {"columns": [{"name": "x", "mean": "0", "std": 1.0, "fill": 0.0}]},
            {"columns": [{"name": "x", "mean": True, "std": 1.0, "fill": 0.0}]},
            {"columns": [{"name": 3, "mean": 0.0, "std": 1.0, "fill": 0.0}]},
            {"columns": [{"name": "x", "mean": 0.0, "std": 1.0, "fill": 0.0, "missing": 1}]},
            {"columns": [{"name": "x", "mean": 0.0, "std": 1.0, "fill": 0.0, "more": 1}]},
            {"columns": [{"name": "x", "values": []}]},
            {"columns": [{"name": "x", "values": ["a", "a"]}]},
            {"columns": [{"name": "x", "values": ["a", 1]}]},
            {"columns": [{"name": "x", "values": ["a", []]}]},
            {"columns": [{"name": "x", "values": "ab"}]},
            {"columns": [{"name": "x", "values": ["a"]}] * 2},
            {"ignored": [{"name": "Age", "reason": ""}]},
            {"ignored": [{"name": "y"}]},
            {"ignored": "y"},
            {"clip": 0},
            {"clip": float("inf")},
            {"clip": None},
            {"more": 1},
        ],
    )
    def test_a_damaged_contract_is_refused(self, change: dict[str, Any]) -> None:
        values = {**CONTRACT.to_json(), **change}
        with pytest.raises(ModelError, match="the preprocessing contract of the table cannot be read"):
            from_json({name: value for name, value in values.items() if value is not DELETE})

    def test_it_stands_on_numpy_alone(self) -> None:
        import subprocess
        import sys

        code = (
            "import sys; sys.modules.update(dict.fromkeys(('torch', 'pydantic', 'sklearn', 'pandas')))\n"
            "from edgetl.runtime.preprocessing import from_json\n"
            f"print(from_json({CONTRACT.to_json()!r})({row()!r}).tolist())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == CONTRACT(row()).tolist()
