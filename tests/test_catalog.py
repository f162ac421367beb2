"""The catalogs: every shipped file is valid and documented, and a wrong file of the user's is explained."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl import catalog
from edgetl.errors import ConfigError, EdgetlError, UnknownNameError
from edgetl.quantize.schemes import SCHEMES
from edgetl.specs import Recipe, Target

ROOT = Path(__file__).resolve().parents[1]
TARGET_FILES = sorted((ROOT / "targets").glob("*.toml"))
RECIPE_FILES = sorted((ROOT / "calibration").glob("*.toml"))
# Which providers a backend knows, in its own words.
PROVIDERS = {
    "onnxruntime": {"CPUExecutionProvider", "CUDAExecutionProvider"},
    "openvino": {"CPU"},
    "tensorrt": {"GPU"},
    "tensorrt_rtx": {"GPU"},
}

TARGET = """\
schema = 1
description = "a board"
backend = "onnxruntime"
provider = "CPUExecutionProvider"
scheme = "onnxruntime-arm64"
precisions = ["int8", "fp32"]
built_on_device = false

[hardware]
architecture = "arm64"
processor = "four Cortex-A76"
memory_gib = 8

[[sources]]
fact = "It is a board."
url = "https://example.org/one"

[[sources]]
fact = "It is small."
url = "https://example.org/two"
"""

RECIPE = """\
schema = 1
description = "a recipe"

[activations]
method = "percentile"
percentile = 99.9

[weights]
method = "minmax"
"""


def _write(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def _refused(folder: Path, text: str, load: Any = catalog.target, name: str = "mine.toml") -> str:
    with pytest.raises(ConfigError) as caught:
        load(_write(folder, text, name))
    assert caught.value.exit_code == 2
    return caught.value.message


# --- what is shipped ---------------------------------------------------------------------------------------------


def test_names_are_the_stems_of_the_repository() -> None:
    assert catalog.target_names() == tuple(sorted(path.stem for path in TARGET_FILES))
    assert catalog.recipe_names() == tuple(sorted(path.stem for path in RECIPE_FILES))
    assert {"x86-64-cpu", "arm64-cpu", "intel-cpu", "rtx-pc", "raspberry-pi-5"} <= set(catalog.target_names())
    assert {"jetson-orin-nano", "jetson-agx-orin", "jetson-xavier-nx"} <= set(catalog.target_names())
    assert catalog.recipe_names() == (
        "fp16", "int8-dynamic", "int8-entropy", "int8-minmax", "int8-mse", "int8-mse-corrected", "int8-percentile",
        "int8-search", "int8-smoothquant",
    )  # fmt: skip


@pytest.mark.parametrize("path", TARGET_FILES, ids=lambda path: path.stem)
def test_a_shipped_target_is_complete(path: Path) -> None:
    target = catalog.target(path.stem)
    assert target.name == path.stem
    assert target.provider in PROVIDERS[target.backend]
    assert target.sources, "every shipped target says where its facts come from"
    assert all(re.fullmatch(r"https://[^\s]+", source.url) for source in target.sources)
    assert all(source.fact.endswith(".") for source in target.sources)
    assert path.read_text(encoding="utf-8").startswith("#"), "a target begins with what it is for"
    assert target == catalog.target(str(path))


@pytest.mark.parametrize("name", catalog.target_names())
def test_a_scheme_exists_exactly_where_int8_is_offered(name: str) -> None:
    target = catalog.target(name)
    assert (target.scheme in SCHEMES) == ("int8" in target.precisions)
    assert bool(target.scheme) == ("int8" in target.precisions)


@pytest.mark.parametrize("name", catalog.target_names())
def test_a_tensorrt_engine_is_built_on_its_device(name: str) -> None:
    target = catalog.target(name)
    assert target.built_on_device == (target.backend == "tensorrt")
    on_gpu = target.provider in ("GPU", "CUDAExecutionProvider")
    assert bool(target.hardware.compute_capability) == on_gpu


@pytest.mark.parametrize("name", [name for name in catalog.target_names() if catalog.target(name).dla_core is not None])
def test_a_target_for_an_accelerator_has_one_and_its_device_is_shipped_too(name: str) -> None:
    target = catalog.target(name)
    device = catalog.target(name.removesuffix("-dla"))
    assert name.endswith("-dla") and device.dla_core is None
    assert device.hardware == target.hardware and device.software == target.software
    assert target.dla_core in range(target.hardware.dla_cores)
    assert set(target.precisions) <= {"int8", "fp16"}


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads(path: Path) -> None:
    recipe = catalog.recipe(path.stem)
    assert recipe.name == path.stem
    assert recipe == catalog.recipe(str(path))
    assert path.read_text(encoding="utf-8").startswith("#"), "a recipe begins with what it is for"
    assert hash(recipe), "frozen, and made of frozen values"


NONE: dict[str, str] = {
    "equalization": "none",
    "outlier_channels": "none",
    "smoothing": "none",
    "rounding": "nearest",
    "bias_correction": "none",
    "attention": "integers",
}


@pytest.mark.parametrize(
    ("name", "kind", "activations", "weights", "corrections"),
    [
        ("int8-minmax", "static", "minmax", "minmax", {}),
        ("int8-percentile", "static", "percentile", "minmax", {}),
        ("int8-entropy", "static", "entropy", "minmax", {}),
        ("int8-mse", "static", "mse", "mse", {"bias_correction": "input-mean"}),
        ("int8-mse-corrected", "static", "mse", "mse", {"bias_correction": "sequential", "rounding": "adaround"}),
        ("int8-search", "static", "search", "mse", {"bias_correction": "sequential", "rounding": "adaround"}),
        (
            *("int8-smoothquant", "static", "mse", "mse"),
            {
                "bias_correction": "sequential",
                "outlier_channels": "search",
                "smoothing": "search",
                "attention": "float",
            },
        ),
        ("int8-dynamic", "dynamic", None, "mse", {}),
        ("fp16", "float16", None, None, {}),
    ],
)
def test_the_recipes_do_what_their_names_say(
    name: str, kind: str, activations: str | None, weights: str | None, corrections: dict[str, str]
) -> None:
    recipe = catalog.recipe(name)
    methods = [item.method if item is not None else None for item in (recipe.activations, recipe.weights)]
    assert (recipe.kind, *methods) == (kind, activations, weights)
    assert {key: getattr(recipe, key) for key in NONE} == {**NONE, **corrections}
    assert recipe.activations is None or recipe.activations.percentile == 99.99
    assert recipe.keep_float == ()


# --- the documentation -------------------------------------------------------------------------------------------


def _words(kind: Any) -> str:
    """A type as the README writes it."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return "array of strings" if item is str else f"array of {_words(item)}"
    names = {str: "string", bool: "boolean", int: "integer", float: "number", float | None: "number",
             int | None: "integer"}  # fmt: skip
    return names[kind]


def _documented(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, type and default of every field, as rows of the README."""
    types = get_type_hints(kind)
    for field in fields(kind):
        inner = _without_none(types[field.name])
        if get_origin(inner) is tuple and is_dataclass(get_args(inner)[0]):
            inner = get_args(inner)[0]
        key = f"{prefix}{field.name}"
        if is_dataclass(inner):
            assert isinstance(inner, type)
            yield from _documented(inner, f"{key}.")
        elif key != "name":
            yield key, _words(types[field.name]), _default(field.default)


def _without_none(kind: Any) -> Any:
    """The dataclass of an optional table."""
    found = [part for part in get_args(kind) if is_dataclass(part)]
    return found[0] if len(found) == 1 and type(None) in get_args(kind) else kind


def _default(value: Any) -> str:
    if value is MISSING:
        return "required"
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return {"": '`""`', (): "`[]`"}.get(value, f"`{value}`")


def _rows(readme: Path) -> dict[str, tuple[str, str]]:
    """Key → type and default, of the README's tables of keys."""
    found = {}
    for line in readme.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and re.fullmatch(r"`[a-z_.]+`", cells[0]):
            assert cells[3], f"{cells[0]} has no meaning"
            found[cells[0].strip("`")] = (cells[1], cells[2])
    return found


@pytest.mark.parametrize(("kind", "folder"), [(Target, "targets"), (Recipe, "calibration")])
def test_every_key_is_documented_with_its_type_and_default(kind: type[Any], folder: str) -> None:
    expected = {key: (words, default) for key, words, default in _documented(kind)}
    assert _rows(ROOT / folder / "README.md") == {"schema": ("integer", "required"), **expected}


@pytest.mark.parametrize("folder", ["targets", "calibration"])
def test_the_readme_lists_exactly_the_shipped_files(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    shipped = text.split("## What is shipped", 1)[1].split("##", 1)[0]
    assert sorted(re.findall(r"^\| `([^`]+)` \|", shipped, re.MULTILINE)) == sorted(
        path.stem for path in (ROOT / folder).glob("*.toml")
    )


@pytest.mark.parametrize("name", catalog.target_names())
def test_the_readme_states_backend_and_precisions(name: str) -> None:
    target = catalog.target(name)
    text = (ROOT / "targets" / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \|.*$", text, re.MULTILINE)
    assert row.endswith(f"| {target.backend} | {', '.join(target.precisions)} |")


def _when(name: str) -> list[str]:
    """The cells of a recipe's row in the README."""
    text = (ROOT / "calibration" / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \|.*$", text, re.MULTILINE)
    return [cell.strip() for cell in row.strip("|").split("|")]


WORDS = {
    "minmax": "full",
    "percentile": "99.99 percent",
    "entropy": "Kullback-Leibler",
    "mse": "squared",
    "search": "best",
}


@pytest.mark.parametrize("name", catalog.recipe_names())
def test_the_readme_states_the_estimators_of_a_recipe(name: str) -> None:
    recipe = catalog.recipe(name)
    _, activations, weights, when = _when(name)
    for estimator, cell in ((recipe.activations, activations), (recipe.weights, weights)):
        word = WORDS[estimator.method] if estimator is not None else "in" if recipe.kind == "dynamic" else "none"
        assert word in cell, cell
    assert when


@pytest.mark.parametrize("kind", get_args(get_type_hints(Recipe)["kind"]))
@pytest.mark.parametrize("table", ["activations", "weights"])
def test_the_readme_states_which_tables_a_kind_has(kind: str, table: str, tmp_path: Path) -> None:
    _, *cells = _when(kind)
    needed = dict(zip(("activations", "weights"), cells, strict=True))
    other = [name for name, word in needed.items() if word == "required" and name != table]
    text = f'schema = 1\ndescription = "a recipe"\nkind = "{kind}"\n'
    rest = "".join(f'[{name}]\nmethod = "mse"\n' for name in other)
    given = f'[{table}]\nmethod = "mse"\n'
    if needed[table] == "required":
        assert catalog.recipe(_write(tmp_path, text + rest + given)).kind == kind
        assert f"'{table}' is missing" in _refused(tmp_path, text + rest, catalog.recipe)
    else:
        assert needed[table] == "refused"
        assert catalog.recipe(_write(tmp_path, text + rest)).kind == kind
        assert f"'{table}' does not belong" in _refused(tmp_path, text + rest + given, catalog.recipe)


# --- a file of the user's ----------------------------------------------------------------------------------------


def test_a_target_by_path(tmp_path: Path) -> None:
    target = catalog.target(_write(tmp_path, TARGET, "my-board.toml"))
    assert target.name == "my-board"
    assert target.precisions == ("int8", "fp32")
    assert target.hardware.memory_gib == 8.0
    assert isinstance(target.hardware.memory_gib, float)
    assert target.hardware.cpu_features == ()
    assert target.software.system == ""
    assert [source.url for source in target.sources] == ["https://example.org/one", "https://example.org/two"]


def test_a_recipe_by_path(tmp_path: Path) -> None:
    recipe = catalog.recipe(_write(tmp_path, RECIPE))
    assert recipe.activations is not None
    assert (recipe.name, recipe.activations.percentile) == ("mine", 99.9)


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_a_copy_of_a_shipped_recipe_is_a_recipe_of_the_users(tmp_path: Path, path: Path) -> None:
    recipe = catalog.recipe(_write(tmp_path, path.read_text(encoding="utf-8")))
    assert recipe == replace(catalog.recipe(path.stem), name="mine")


def test_a_relative_path_needs_only_its_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, TARGET)
    monkeypatch.chdir(tmp_path)
    assert catalog.target("mine.toml") == catalog.target("./mine.toml")


def test_a_bare_name_is_never_a_file_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, TARGET, "x86-64-cpu.toml")
    monkeypatch.chdir(tmp_path)
    assert catalog.target("x86-64-cpu").hardware.architecture == "x86-64"
    assert catalog.target("./x86-64-cpu.toml").hardware.architecture == "arm64"


# --- what is refused ---------------------------------------------------------------------------------------------


def test_an_unknown_target_names_the_nearest_and_all(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        catalog.target("jetson-orin-nan")
    assert caught.value.exit_code == 2
    assert "there is no target 'jetson-orin-nan'; did you mean 'jetson-orin-nano'?" in caught.value.message
    assert all(name in caught.value.message for name in catalog.target_names())
    assert caught.value.hint is not None and caught.value.hint.startswith("edgetl targets")


@pytest.mark.parametrize("name", ["zzzzzz", "", "..", "README", "targets"])
def test_an_unknown_name_lists_what_there_is_once(name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        catalog.recipe(name)
    assert caught.value.message.count("int8-minmax") == 1
    assert caught.value.hint is not None and caught.value.hint.startswith("edgetl recipes")


@pytest.mark.parametrize("name", ["./nothing.toml", "nothing.toml", "/"])
def test_a_file_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        catalog.target(name)
    assert "there is no target file" in caught.value.message
    assert "edgetl targets" in (caught.value.hint or "")


REFUSED_TARGETS = [
    ("schema = 1\n", "", 1, "'schema' is missing"),
    ("schema = 1", "schema = 2", 1, "schema is 2; this edgetl reads schema = 1"),
    ("schema = 1", 'schema = "1"', 1, "schema is '1'"),
    ("schema = 1", "schema = true", 1, "schema is True"),
    ("provider =", "providr =", 4, "unknown key 'providr'; did you mean 'provider'?"),
    ("provider =", "providr =", 1, "'provider' is missing; it is a string"),
    ('description = "a board"', 'name = "x"\ndescription = "a board"', 2, "unknown key 'name'"),
    ('description = "a board"', "description = 7", 2, "'description' must be a string; it is 7, a whole number"),
    ('description = "a board"', 'description = " "', 2, "'description' is empty"),
    ('description = "a board"', "description = 2024-01-01", 2, "a date or time"),
    ("built_on_device = false", 'built_on_device = "no"', 7, "'built_on_device' must be true or false; it is 'no'"),
    ("built_on_device = false", "built_on_device = 0", 7, "'built_on_device' must be true or false"),
    ('["int8", "fp32"]', '["int8", "fp3"]', 6, "it is 'fp3', a string; did you mean 'fp32'?"),
    ('["int8", "fp32"]', '"int8"', 6, "'precisions' must be a list, each item one of"),
    ('["int8", "fp32"]', "[]", 6, "'precisions' is empty"),
    ('["int8", "fp32"]', '["int8", "int8"]', 6, "'precisions' lists int8 more than once"),
    ('["int8", "fp32"]', "[[1]]", 6, "'precisions.0' must be one of"),
    ('["int8", "fp32"]', '["fp32"]', 5, "precisions does not offer int8"),
    ('scheme = "onnxruntime-arm64"', 'scheme = ""', 5, "'scheme' is empty, but precisions offers int8"),
    ('architecture = "arm64"', 'architecture = "amd64"', 10, "'hardware.architecture' must be one of"),
    ("memory_gib = 8", "memory_gb = 8", 12, "unknown key 'hardware.memory_gb'; did you mean 'memory_gib'?"),
    ("memory_gib = 8", "memory_gib = true", 12, "'hardware.memory_gib' must be a number; it is True, a boolean"),
    ("memory_gib = 8", "memory_gib = nan", 12, "'hardware.memory_gib' must be a number"),
    ("memory_gib = 8", "memory_gib = inf", 12, "'hardware.memory_gib' must be a number"),
    ("memory_gib = 8", "memory_gib = -1", 12, "'hardware.memory_gib' is -1.0; it must be above 0"),
    ("memory_gib = 8", "dla_cores = 1.5", 12, "'hardware.dla_cores' must be a whole number"),
    ("memory_gib = 8", "dla_cores = -1", 12, "'hardware.dla_cores' is -1"),
    ("built_on_device = false", "built_on_device = false\ndla_core = 0", 8, "runs on no DLA"),
    ("built_on_device = false", "built_on_device = false\ndla_core = 0", 8, "the device has 0, from 0 on"),
    ("built_on_device = false", "built_on_device = false\ndla_core = -1", 8, "'dla_core' is -1"),
    ("built_on_device = false", "built_on_device = false\ndla_core = true", 8, "'dla_core' must be a whole number"),
    ("built_on_device = false", "built_on_device = false\ndla_core = 0", 6, "'precisions' offers fp32; a DLA computes"),
    ("built_on_device = false", "built_on_device = false\ndla_core = 0", 5, 'int8 on a DLA wants "tensorrt-dla"'),
    ("built_on_device = false", "built_on_device = false\ndla_fallback = true", 8, "write dla_core = 0, too"),
    ('scheme = "onnxruntime-arm64"', 'scheme = "tensorrt-dla"', 5, "is for an engine on a DLA"),
    ("memory_gib = 8", 'compute_capability = ["87"]', 12, "write major.minor"),
    ("memory_gib = 8", "compute_capability = [8.7]", 12, "'hardware.compute_capability.0' must be a string"),
    ('processor = "four Cortex-A76"\n', "", 9, "'hardware.processor' is missing"),
    ('url = "https://example.org/two"\n', "", 18, "'sources.1.url' is missing"),
    ('url = "https://example.org/two"', 'uri = "x"', 20, "unknown key 'sources.1.uri'; did you mean 'url'?"),
    ('url = "https://example.org/two"', "url = 2", 20, "'sources.1.url' must be a string"),
]


@pytest.mark.parametrize(("old", "new", "line", "expected"), REFUSED_TARGETS)
def test_a_wrong_target_is_refused_with_its_line(tmp_path: Path, old: str, new: str, line: int, expected: str) -> None:
    assert TARGET.count(old) == 1
    message = _refused(tmp_path, TARGET.replace(old, new))
    found = [part for part in message.splitlines() if expected in part]
    assert found, message
    assert found[0].startswith(f"{tmp_path / 'mine.toml'}:{line}: "), message


REFUSED_RECIPES = [
    ('method = "percentile"', 'method = "kl"', 5, "'activations.method' must be one of"),
    ('method = "percentile"', 'method = "percentil"', 5, "did you mean 'percentile'?"),
    ('method = "percentile"', 'method = "mse"', 6, "'activations.percentile' belongs to method = \"percentile\""),
    ("percentile = 99.9", "percentile = 50", 6, "'activations.percentile' is 50.0; it must be above 50"),
    ("percentile = 99.9", "percentile = 100.1", 6, "at most 100"),
    ("percentile = 99.9", 'percentile = "99"', 6, "'activations.percentile' must be a number"),
    ('[weights]\nmethod = "minmax"\n', "", 1, "'weights' is missing; kind = \"static\" needs it"),
    ('[weights]\nmethod = "minmax"\n', "[weights]\n", 8, "'weights.method' is missing"),
    ("[weights]", "[[weights]]", 8, "'weights' must be a table"),
    ("[activations]", "[activation]", 4, "unknown key 'activation'; did you mean 'activations'?"),
    ('[activations]\nmethod = "percentile"\npercentile = 99.9\n', "", 1, "'activations' is missing; kind = \"static\""),
    ('method = "minmax"', 'method = "entropy"', 9, "'weights.method' is \"entropy\", which is for activations"),
    ('method = "minmax"', 'method = "search"', 9, "'weights.method' is \"search\", which is for activations"),
    ('method = "minmax"', 'method = "mse"\npercentile = 99', 10, "'weights.percentile' belongs to method"),
    ('"a recipe"\n', '"a recipe"\nkind = "int8"\n', 3, '\'kind\' must be one of "static", "dynamic", "float16"'),
    ('"a recipe"\n', '"a recipe"\nkind = "dinamic"\n', 3, "did you mean 'dynamic'?"),
    ('"a recipe"\n', '"a recipe"\nkind = "dynamic"\n', 5, "'activations' does not belong to kind = \"dynamic\""),
    ('"a recipe"\n', '"a recipe"\nkind = "float16"\n', 5, "'activations' does not belong to kind = \"float16\""),
    ('"a recipe"\n', '"a recipe"\nkind = "float16"\n', 9, "'weights' does not belong to kind = \"float16\""),
    ('"a recipe"\n', '"a recipe"\nkindd = "static"\n', 3, "unknown key 'kindd'; did you mean 'kind'?"),
    ('"a recipe"\n', '"a recipe"\nbias_corection = "none"\n', 3, "did you mean 'bias_correction'?"),
    ('"a recipe"\n', '"a recipe"\nbias_correction = true\n', 3, "it is True, a boolean"),
    ('"a recipe"\n', '"a recipe"\nrounding = "adaruond"\n', 3, "did you mean 'adaround'?"),
    ('"a recipe"\n', '"a recipe"\nkeep_float = "Softmax"\n', 3, "'keep_float' must be a list, each item a string"),
    ('"a recipe"\n', '"a recipe"\nkeep_float = [\n  "Softmax",\n  7,\n]\n', 5, "'keep_float.1' must be a string"),
]
_DYNAMIC = RECIPE.replace('"a recipe"', '"a recipe"\nkind = "dynamic"').replace(
    '[activations]\nmethod = "percentile"\npercentile = 99.9\n\n', ""
)


@pytest.mark.parametrize(("old", "new", "line", "expected"), REFUSED_RECIPES)
def test_a_wrong_recipe_is_refused_with_its_line(tmp_path: Path, old: str, new: str, line: int, expected: str) -> None:
    assert RECIPE.count(old) == 1
    message = _refused(tmp_path, RECIPE.replace(old, new), catalog.recipe)
    found = [part for part in message.splitlines() if expected in part]
    assert found, message
    assert found[0].startswith(f"{tmp_path / 'mine.toml'}:{line}: "), message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("equalization", "cross-layer"),
        ("outlier_channels", "search"),
        ("smoothing", "search"),
        ("attention", "float"),
        ("rounding", "adaround"),
        ("bias_correction", "input-mean"),
        ("bias_correction", "sequential"),
    ],
)
def test_a_correction_needs_a_static_recipe(tmp_path: Path, key: str, value: str) -> None:
    assert catalog.recipe(_write(tmp_path, _DYNAMIC)).kind == "dynamic"
    line = f'kind = "dynamic"\n{key} = "{value}"'
    message = _refused(tmp_path, _DYNAMIC.replace('kind = "dynamic"', line), catalog.recipe)
    assert message == f"{tmp_path / 'mine.toml'}:4: '{key}' needs kind = \"static\"; this recipe is dynamic"
    assert (
        getattr(
            catalog.recipe(
                _write(
                    tmp_path,
                    _DYNAMIC.replace("dynamic", "static")
                    .replace("[weights]", '[activations]\nmethod = "search"\n[weights]')
                    .replace('kind = "static"', line.replace("dynamic", "static")),
                )
            ),
            key,
        )
        == value
    )


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    message = _refused(tmp_path, TARGET.replace("provider", "providr").replace('"arm64"', '"mips"'))
    assert len(message.splitlines()) == 3


def test_what_is_not_toml(tmp_path: Path) -> None:
    assert "not valid TOML" in _refused(tmp_path, TARGET + "[[[")


@pytest.mark.parametrize("name", ["my board.toml", "-x.toml", "ä.toml", ".toml"])
def test_a_stem_that_cannot_name_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    assert "may have only letters" in _refused(tmp_path, TARGET, name=name)


_VALUES = st.recursive(
    st.sampled_from(['"x"', "1", "-1", "1.5", "true", "nan", "1979-05-27", "[]", "{}", '"int8"', '""']),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        inner.map(lambda item: f"{{a = {item}}}"),
    ),
    max_leaves=4,
)
_LINES = [index for index, line in enumerate(TARGET.splitlines()) if " = " in line]


@given(index=st.sampled_from(_LINES), value=_VALUES)
def test_any_value_anywhere_loads_or_is_explained(
    tmp_path_factory: pytest.TempPathFactory, index: int, value: str
) -> None:
    lines = TARGET.splitlines()
    lines[index] = f"{lines[index].split(' = ')[0]} = {value}"
    path = _write(tmp_path_factory.getbasetemp(), "\n".join(lines), "any.toml")
    try:
        target = catalog.target(path)
    except EdgetlError as error:
        assert error.exit_code == 2
        assert all(part.startswith(f"{path}:") for part in error.message.splitlines())
    else:
        hash(target)  # frozen, and made of frozen values


_RECIPE_KEYS = sorted({*_rows(ROOT / "calibration" / "README.md"), "activations", "weights"})


@given(
    keys=st.dictionaries(
        st.sampled_from(_RECIPE_KEYS),
        st.one_of(
            _VALUES,
            st.sampled_from(
                [
                    f'"{word}"'
                    for word in ("static", "dynamic", "float16", "mse", "search", "entropy", "sequential", "none")
                ]
            ),
        ),
        max_size=6,
    )
)
def test_any_recipe_loads_or_is_explained(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str]) -> None:
    keys = {"schema": "1", "description": '"x"', **keys}
    text = "\n".join(f"{key} = {value}" for key, value in keys.items())
    path = _write(tmp_path_factory.getbasetemp(), text, "any-recipe.toml")
    try:
        recipe = catalog.recipe(path)
    except EdgetlError as error:
        assert error.exit_code == 2
        assert all(part.startswith(f"{path}:") for part in error.message.splitlines())
    else:
        assert (recipe.activations is not None) == (recipe.kind == "static")
        assert (recipe.weights is not None) == (recipe.kind != "float16")


# --- packaging ---------------------------------------------------------------------------------------------------


def test_reading_the_catalog_imports_nothing_heavy() -> None:
    code = (
        "import sys; from edgetl import catalog\n"
        "for name in catalog.target_names(): catalog.target(name)\n"
        "for name in catalog.recipe_names(): catalog.recipe(name)\n"
        "heavy = {'pydantic', 'torch', 'numpy', 'onnx', 'onnxruntime', 'openvino', 'rich', 'typer', 'PIL'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")


@pytest.mark.slow
def test_the_wheel_carries_the_repositorys_files_and_one_import_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for path in (*TARGET_FILES, *RECIPE_FILES):
            member = f"edgetl/_data/{path.parent.name}/{path.name}"
            assert archive.read(member) == path.read_bytes()
        archive.extractall(tmp_path / "installed")
    shipped = [name for name in names if name.startswith("edgetl/_data/") and name.endswith(".toml")]
    assert len(shipped) == len(TARGET_FILES) + len(RECIPE_FILES)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"edgetl"}
    code = "from edgetl import catalog; print(catalog.__file__, *catalog.target_names()); catalog.target('x86-64-cpu')"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    file, *found = result.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert found == sorted(path.stem for path in TARGET_FILES)
