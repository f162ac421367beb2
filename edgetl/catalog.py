"""A name or a path → a target or a recipe: the only reader of ``targets/`` and ``calibration/``.

A bare name is one of the files that edgetl ships. What has a ``/`` or ends in ``.toml`` is a file of the user's.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edgetl import tomlfile
from edgetl.errors import ConfigError, UnknownNameError
from edgetl.specs import Estimator, Hardware, Recipe, Target

SCHEMA = 1
"""The version of the format that this edgetl reads."""

_Key = tuple[str | int, ...]
_Spec = TypeVar("_Spec", Target, Recipe)
# A name becomes a folder in a bundle, so it must be one on every file system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DLA_SCHEME = "tensorrt-dla"
_COMPUTE_CAPABILITY = re.compile(r"\d{1,2}\.\d")


def target(name_or_path: str) -> Target:
    """A device to build for.

    Args:
        name_or_path: A shipped target, as ``x86-64-cpu``, or a file of the user's, as ``./my-board.toml``.

    Returns:
        The target; its name is the file's stem.

    Raises:
        UnknownNameError: No target of that name is shipped.
        ConfigError: The file is not there or is not a valid target; every problem is named with its line.
    """
    return _load(Target, _path("targets", name_or_path))


def recipe(name_or_path: str) -> Recipe:
    """How ranges are chosen.

    Args:
        name_or_path: A shipped recipe, as ``int8-mse``, or a file of the user's, as ``./my-recipe.toml``.

    Returns:
        The recipe; its name is the file's stem.

    Raises:
        UnknownNameError: No recipe of that name is shipped.
        ConfigError: The file is not there or is not a valid recipe; every problem is named with its line.
    """
    return _load(Recipe, _path("calibration", name_or_path))


def target_names() -> tuple[str, ...]:
    """The shipped targets, sorted."""
    return _names("targets")


def recipe_names() -> tuple[str, ...]:
    """The shipped recipes, sorted."""
    return _names("calibration")


_COMMANDS = {"targets": ("target", "edgetl targets"), "calibration": ("recipe", "edgetl recipes")}


def _folder(kind: str) -> Path:
    """Where the shipped files are: inside an installed package, or beside it in a checkout."""
    package = Path(str(files("edgetl")))
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent / kind


def _names(kind: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _folder(kind).glob("*.toml")))


def _path(kind: str, name_or_path: str) -> Path:
    """The file that a name or a path means."""
    what, command = _COMMANDS[kind]
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"there is no {what} file {path}", hint=f"`{command}` lists the shipped ones; give those by bare name"
            )
        return path
    names = _names(kind)
    if name_or_path in names:
        return _folder(kind) / f"{name_or_path}.toml"
    nearest = tomlfile.did_you_mean(name_or_path, names)
    listed = "" if nearest.startswith("known: ") else f"\nknown: {', '.join(names)}"
    raise UnknownNameError(
        f"there is no {what} '{name_or_path}'; {nearest}{listed}",
        hint=f"{command}   (a file of your own is given by its path, as ./{name_or_path or 'mine'}.toml)",
    )


def _load(kind: type[_Spec], path: Path) -> _Spec:
    document = tomlfile.read(path)
    reader = _Reader(path)
    if not _NAME.fullmatch(path.stem):
        reader.problem((), f"the file's name '{path.stem}' may have only letters, digits, '.', '_' and '-'")
    schema = document.pop("schema", None)
    if schema is None:
        reader.problem((), f"'schema' is missing; write schema = {SCHEMA} in the first line")
    elif type(schema) is not int or schema != SCHEMA:
        reader.problem(("schema",), f"schema is {schema!r}; this edgetl reads schema = {SCHEMA}")
    result = reader.table(kind, document, (), given={"name": path.stem})
    if result is not None:
        _check(result, document, reader)
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return cast(_Spec, result)


class _Reader:
    """Builds frozen dataclasses from TOML tables, by their fields' types alone; collects every problem.

    Understands str, bool, int, float, ``Literal``, ``X | None``, ``tuple[X, ...]`` and nested dataclasses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.problems: list[str] = []

    def problem(self, key: _Key, text: str) -> None:
        """Note what is wrong, as ``file:line: text``."""
        line = (tomlfile.line_of(self._path, key) if key else None) or 1
        self.problems.append(f"{self._path}:{line}: {text}")

    def table(self, kind: type[Any], content: Any, key: _Key, *, given: Mapping[str, Any] | None = None) -> Any:
        """A dataclass from a table; None where something in it is wrong.

        Args:
            kind: The dataclass.
            content: What stands in the file.
            key: Where it stands.
            given: Fields that do not come from the file, and their values.
        """
        if not isinstance(content, dict):
            return self._wrong(key, "a table", content)
        before = len(self.problems)
        known = {field.name: field for field in fields(kind) if field.name not in (given or {})}
        for unknown in [name for name in content if name not in known]:
            nearest = tomlfile.did_you_mean(unknown, known)
            self.problem((*key, unknown), f"unknown key '{_dotted((*key, unknown))}'; {nearest}")
        types_of = get_type_hints(kind)
        values = dict(given or {})
        for name, field in known.items():
            if name in content:
                values[name] = self._value(types_of[name], content[name], (*key, name))
            elif _required(field):
                self.problem(key, f"'{_dotted((*key, name))}' is missing; it is {_describe(types_of[name])}")
        return kind(**values) if len(self.problems) == before else None

    def _value(self, kind: Any, content: Any, key: _Key) -> Any:
        """A value of the type ``kind``; None, and a problem noted, where the content is something else."""
        kind = _without_none(kind)
        if is_dataclass(kind):
            return self.table(cast("type[Any]", kind), content, key)
        if get_origin(kind) is tuple:
            if not isinstance(content, list):
                return self._wrong(key, _describe(kind), content)
            (item, _) = get_args(kind)
            return tuple(self._value(item, part, (*key, index)) for index, part in enumerate(content))
        if get_origin(kind) is Literal:
            if content in get_args(kind) and isinstance(content, str):
                return content
            nearest = tomlfile.did_you_mean(content, get_args(kind)) if isinstance(content, str) else ""
            return self._wrong(key, _describe(kind), content, nearest)
        if kind is float and type(content) is int:
            return float(content)
        # type() and not isinstance(): true is an int to Python, and not to the person who wrote it.
        if type(content) is not kind or (kind is float and not math.isfinite(content)):
            return self._wrong(key, _describe(kind), content)
        return content

    def _wrong(self, key: _Key, wanted: str, content: Any, nearest: str = "") -> None:
        shown = f"{content!r}, {_toml_type(content)}" if not isinstance(content, dict) else "a table"
        end = f"; {nearest}" if nearest.startswith("did") else ""
        self.problem(key, f"'{_dotted(key)}' must be {wanted}; it is {shown}{end}")


def _check(spec: Target | Recipe, document: Mapping[str, Any], reader: _Reader) -> None:
    """What types cannot say."""
    if isinstance(spec, Target):
        _check_target(spec, reader)
        _check_dla(spec, reader)
        _check_hardware(spec.hardware, reader)
        return
    _check_recipe(spec, reader)
    for name, estimator in (("activations", spec.activations), ("weights", spec.weights)):
        if estimator is not None:
            _check_estimator(estimator, "percentile" in document[name], (name,), reader)


def _check_recipe(spec: Recipe, reader: _Reader) -> None:
    """Which tables and corrections a kind of recipe has."""
    wanted = {"static": ("activations", "weights"), "dynamic": ("weights",), "float16": ()}[spec.kind]
    for name in ("activations", "weights"):
        there = getattr(spec, name) is not None
        if there and name not in wanted:
            reader.problem((name,), f"'{name}' does not belong to kind = \"{spec.kind}\", which chooses no such ranges")
        elif not there and name in wanted:
            reader.problem((), f"'{name}' is missing; kind = \"{spec.kind}\" needs it")
    reason = _NOT_FOR_WEIGHTS.get(spec.weights.method) if spec.weights is not None else None
    if spec.weights is not None and reason:
        reader.problem(
            ("weights", "method"),
            f"'weights.method' is \"{spec.weights.method}\", which is for activations: {reason}; "
            'write "mse", "minmax" or "percentile"',
        )
    if spec.weights is not None and spec.weights.outliers != "keep":
        reader.problem(("weights", "outliers"), "'weights.outliers' is for activations: weights are no samples")
    if spec.kind != "static":
        for name, off in _CORRECTIONS.items():
            if getattr(spec, name) != off:
                reader.problem((name,), f"'{name}' needs kind = \"static\"; this recipe is {spec.kind}")


_NOT_FOR_WEIGHTS = {
    "entropy": "a channel of weights has too few values",
    "search": "the estimators that it tries are tried on activations",
}
_CORRECTIONS = {
    "equalization": "none",
    "outlier_channels": "none",
    "smoothing": "none",
    "rounding": "nearest",
    "bias_correction": "none",
    "attention": "integers",
}


def _check_target(spec: Target, reader: _Reader) -> None:
    if not spec.precisions:
        reader.problem(("precisions",), "'precisions' is empty; a target offers at least one")
    twice = _repeated(spec.precisions)
    if twice:
        reader.problem(("precisions",), f"'precisions' lists {', '.join(twice)} more than once")
    if "int8" in spec.precisions and not spec.scheme:
        reader.problem(("scheme",), "'scheme' is empty, but precisions offers int8, which needs a quantization scheme")
    if spec.scheme and "int8" not in spec.precisions:
        reader.problem(
            ("scheme",), f"'scheme' is '{spec.scheme}', but precisions does not offer int8; write scheme = \"\""
        )
    for name in ("description", "backend", "provider"):
        if not getattr(spec, name).strip():
            reader.problem((name,), f"'{name}' is empty")


def _check_dla(spec: Target, reader: _Reader) -> None:
    """What goes with an engine for a deep-learning accelerator."""
    core, there = spec.dla_core, spec.hardware.dla_cores
    if core is None:
        for name, wrong in (("dla_fallback", spec.dla_fallback), ("scheme", spec.scheme == _DLA_SCHEME)):
            if wrong:
                reader.problem((name,), f"'{name}' is for an engine on a DLA; write dla_core = 0, too")
        return
    if spec.backend != "tensorrt":
        reader.problem(("dla_core",), f"'dla_core' is for backend = \"tensorrt\"; {spec.backend} runs on no DLA")
    if not 0 <= core < there:
        reader.problem(
            ("dla_core",), f"'dla_core' is {core}, and hardware.dla_cores says that the device has {there}, from 0 on"
        )
    others = [precision for precision in spec.precisions if precision not in ("int8", "fp16")]
    if others:
        reader.problem(
            ("precisions",), f"'precisions' offers {', '.join(others)}; a DLA computes in int8 and fp16 alone"
        )
    if "int8" in spec.precisions and spec.scheme != _DLA_SCHEME:
        reader.problem(("scheme",), f"'scheme' is '{spec.scheme}'; int8 on a DLA wants \"{_DLA_SCHEME}\"")


def _check_hardware(hardware: Hardware, reader: _Reader) -> None:
    if hardware.memory_gib is not None and hardware.memory_gib <= 0:
        reader.problem(
            ("hardware", "memory_gib"), f"'hardware.memory_gib' is {hardware.memory_gib}; it must be above 0"
        )
    if hardware.dla_cores < 0:
        reader.problem(
            ("hardware", "dla_cores"), f"'hardware.dla_cores' is {hardware.dla_cores}; it must not be below 0"
        )
    for index, capability in enumerate(hardware.compute_capability):
        if not _COMPUTE_CAPABILITY.fullmatch(capability):
            reader.problem(
                ("hardware", "compute_capability", index),
                f"'hardware.compute_capability' holds '{capability}'; write major.minor, as \"8.7\"",
            )


def _check_estimator(estimator: Estimator, percentile_given: bool, key: _Key, reader: _Reader) -> None:
    where = (*key, "percentile")
    if percentile_given and estimator.method != "percentile":
        reader.problem(
            where, f'\'{_dotted(where)}\' belongs to method = "percentile"; the method is "{estimator.method}"'
        )
    elif not 50.0 < estimator.percentile <= 100.0:
        reader.problem(where, f"'{_dotted(where)}' is {estimator.percentile}; it must be above 50 and at most 100")


def _repeated(values: Iterable[str]) -> list[str]:
    listed = list(values)
    return sorted({value for value in listed if listed.count(value) > 1})


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _without_none(kind: Any) -> Any:
    """``X`` for ``X | None``: TOML has no null, so a key that is there has a value."""
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    return kind


def _describe(kind: Any) -> str:
    """A type in words for people who write TOML."""
    kind = _without_none(kind)
    if get_origin(kind) is tuple:
        return f"a list, each item {_describe(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(kind))
    words = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}
    return words.get(kind, "a table")


def _toml_type(content: Any) -> str:
    words = {str: "a string", bool: "a boolean", int: "a whole number", float: "a number", list: "a list"}
    return words.get(type(content), "a date or time")


def _dotted(key: _Key) -> str:
    return ".".join(str(part) for part in key)
