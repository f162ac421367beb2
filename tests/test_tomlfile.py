"""Reading TOML files of the user's, and finding the line of a key."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import tomlfile
from edgetl.errors import ConfigError

NAMES = st.text("abcdefgh_-", min_size=1, max_size=6)
VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20),
    st.lists(st.integers(0, 9), max_size=4),
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "file.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- reading ---------------------------------------------------------------------------------------------------------


def test_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*nothing\.toml") as caught:
        tomlfile.read(tmp_path / "nothing.toml")
    assert caught.value.hint == "edgetl init --example digits"


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "[t", "a = 1 2", f"a = {'9' * 5000}", f"a = {'[' * 100_000}"])
def test_what_is_not_toml_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"file\.toml: not valid TOML"):
        tomlfile.read(written(tmp_path, text))


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="cannot read"):
        tomlfile.read(path)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        tomlfile.read(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\n[t]\r\nb = 2\r\n")
    assert tomlfile.read(path) == {"a": 1, "t": {"b": 2}}
    assert tomlfile.line_of(path, ("t", "b")) == 3


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1e-3", 1e-3), ("true", True), ('"a b"', "a b"), ("[1, 2]", [1, 2]), ("{ a = 1 }", {"a": 1})],
)
def test_a_value_is_read_as_toml(text: str, value: object) -> None:
    assert tomlfile.parse_value(text) == value


@pytest.mark.parametrize("text", ["none", "hub", "timm:resnet18", "a/b.toml", "", "[1,", "1\nother = 2", "9" * 5000])
def test_what_is_no_toml_value_is_a_string(text: str) -> None:
    assert tomlfile.parse_value(text) == text


@given(VALUES)
def test_a_json_scalar_or_list_reads_back(value: object) -> None:
    assert tomlfile.parse_value(json.dumps(value, ensure_ascii=False)) == value


# --- suggestions -----------------------------------------------------------------------------------------------------


def test_did_you_mean() -> None:
    assert tomlfile.did_you_mean("epohs", ["epochs", "lr"]) == "did you mean 'epochs'?"
    assert tomlfile.did_you_mean("xyz", ["epochs", "lr"]) == "known: epochs, lr"
    assert tomlfile.did_you_mean("xyz", []) == "none is known"
    assert tomlfile.did_you_mean("a", iter(["a"])) == "did you mean 'a'?"


# --- lines -----------------------------------------------------------------------------------------------------------

DOCUMENT = '''\
top = 1 # seed = 9
# comment with seed = 1
dotted.deep.seed = 2
"quoted key" = 3

[finetune]
text = "phases = [ { epochs = 3 } ]"
phases = [
  { train = "head", epochs = 20 },
  # { epohs = 1 }
  { train = "all", epohs = 2 },
]
one_line = [{ a = 1 }, { a = 2, b = 3 }]

[export]
batch = { min = 1, max = 32 }
long = """
seed = 7
"""
after = 1

[[target]]
device = "one"
[target.budget]
p50 = 1
[[target]]
device = "two"
  budget.p99 = 8
[[target]]
device = "three"
[target.budget]
p99 = 9

[a.b.c]
seed = 1
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("top",), 1),
        (("dotted", "deep", "seed"), 3),
        (("quoted key",), 4),
        (("finetune",), 6),
        (("finetune", "phases"), 8),
        (("finetune", "phases", 0, "epochs"), 9),
        (("finetune", "phases", 1, "epohs"), 11),
        (("finetune", "phases", 1, "missing"), 11),
        (("finetune", "one_line", 1, "b"), 13),
        (("finetune", "missing"), 6),
        (("export", "batch", "max"), 16),
        (("export", "after"), 20),
        (("target", 0, "device"), 23),
        (("target", 0, "budget", "p50"), 25),
        (("target", 1), 26),
        (("target", 1, "device"), 27),
        (("target", 1, "budget", "p99"), 28),
        (("target", 2, "budget", "p99"), 32),
        (("target", 1, "precisions"), 26),
        (("a", "b", "c", "seed"), 35),
        (("nowhere",), None),
        (("nowhere", "seed"), None),
        ((), None),
    ],
)
def test_line_of(tmp_path: Path, key: tuple[str | int, ...], line: int | None) -> None:
    assert tomlfile.line_of(written(tmp_path, DOCUMENT), key) == line


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=3), max_size=3), st.data())
def test_every_key_is_found_on_the_line_on_which_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, dict[str, object]], data: st.DataObject
) -> None:
    lines, where = [], {}
    for table, fields in tables.items():
        lines += ["# comment"] * data.draw(st.integers(0, 2))
        lines.append(f"[{table}]")
        where[table,] = len(lines)
        for name, value in fields.items():
            lines += [""] * data.draw(st.integers(0, 1))
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
            where[table, name] = len(lines)
    path = tmp_path_factory.getbasetemp() / "generated.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert tomlfile.read(path) == tables
    assert {key: tomlfile.line_of(path, key) for key in where} == where
    assert tomlfile.lines_of(path, where) == list(where.values())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(NAMES, st.integers(0, 99), max_size=3), min_size=1, max_size=4))
def test_arrays_of_tables_and_lists_of_inline_tables_agree(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "lists.toml"
    tables, where = [], {}
    for index, item in enumerate(items):
        tables.append("[[item]]")
        for name, value in item.items():
            tables.append(f"{name} = {value}")
            where["item", index, name] = len(tables)
    path.write_text("\n".join(tables), encoding="utf-8")
    assert {key: tomlfile.line_of(path, key) for key in where} == where
    assert tomlfile.lines_of(path, where) == list(where.values())
    inline = ["item = ["]
    inline += ["  {" + ", ".join(f"{name} = {value}" for name, value in item.items()) + "}," for item in items]
    path.write_text("\n".join([*inline, "]"]), encoding="utf-8")
    assert all(tomlfile.line_of(path, key) == key[1] + 2 for key in where)


def test_python_310_has_a_reader() -> None:
    assert tomlfile.tomllib.__name__ == ("tomllib" if sys.version_info >= (3, 11) else "tomli")
