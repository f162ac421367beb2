"""edgetl.toml read from a file, with what a flag, the environment and the user's file have to say.

Precedence of a value, strongest first: command-line flag (``--set finetune.seed=1``), environment
(``EDGETL_FINETUNE_SEED=1``), the preset that a flag names, the project's file, the user's file
(``~/.config/edgetl/config.toml``), the preset that one of these files names, the default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgetl import tomlfile
from edgetl.config.sections import Bundle, Config
from edgetl.errors import ConfigError

_PRESETS = Path(__file__).parent / "presets"


def load(path: Path, overrides: Mapping[str, str] | None = None) -> Config:
    """Read and validate a project's configuration.

    Paths in it are made absolute, relative to the file's folder.

    Args:
        path: edgetl.toml, or the folder that holds it.
        overrides: Dotted key to TOML value, as ``{"finetune.seed": "1"}``; stronger than file and environment.

    Raises:
        ConfigError: Not there, not TOML, an unknown key (with line and nearest known name), a wrong value.
    """
    path = path / "edgetl.toml" if path.is_dir() else path
    sources = _Sources(file=path, document=tomlfile.read(path))
    user_file = _user_file()
    if user_file.is_file():
        sources = replace(sources, user_file=user_file, user_document=tomlfile.read(user_file))
    given = {key: (_variable(key), value) for key, value in _from_environment(os.environ).items()}
    given |= {key: (f"--set {key}", value) for key, value in (overrides or {}).items()}
    # A copy: the sources stay as they were read, so that an error can be traced back to one of them.
    document = _with_preset(deepcopy(_merged(sources.user_document, sources.document)), overrides or {})
    for key, (source, value) in given.items():
        _assign(document, key, value, source)
    sources = replace(sources, given={key: source for key, (source, _) in given.items()})
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        found = [_explain(sources, detail) for detail in error.errors() if not _follows(detail)]
        raise ConfigError("\n".join(found)) from None
    return _absolute(config, path.resolve().parent)


def signing_key() -> Path | None:
    """``bundle.key`` for what has no project: of the environment (``EDGETL_BUNDLE_KEY``), else of the user's file.

    Returns:
        Absolute, from the working folder; None where neither has one.

    Raises:
        ConfigError: The user's file is not TOML, or the value is no path.
    """
    source, user_file = _variable("bundle.key"), _user_file()
    if source in os.environ:
        value = tomlfile.parse_value(os.environ[source])
    else:
        source = str(user_file)
        section = tomlfile.read(user_file).get("bundle", {}) if user_file.is_file() else {}
        value = section.get("key") if isinstance(section, dict) else None
    try:
        key = Bundle(key=value).key
    except ValidationError as error:
        raise ConfigError(f"{source}: bundle.key: {_said(error.errors()[0])}") from None
    return None if key is None else Path.cwd() / _expanded(key)


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """Where the values of a configuration come from."""

    file: Path
    document: Mapping[str, Any]
    user_file: Path | None = None
    user_document: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    """Dotted key → "--set <key>" or the name of the environment variable."""

    def giver(self, key: Sequence[str | int]) -> str:
        """The flag or variable that set a key, or a table or list around it; "" where a file did."""
        names = [str(part) for part in key]
        for length in range(len(names), 0, -1):
            if ".".join(names[:length]) in self.given:
                return self.given[".".join(names[:length])]
        return ""

    def place(self, key: Sequence[str | int]) -> str:
        """The file and line of a key; the project's file for one that is missing."""
        own = tomlfile.holds(self.document, key) or not tomlfile.holds(self.user_document, key)
        path = self.file if own or self.user_file is None else self.user_file
        line = tomlfile.line_of(path, key)
        return f"{path}:{line}" if line else str(path)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of edgetl.toml, with a description for every field."""
    return Config.model_json_schema(by_alias=True)


def presets() -> tuple[str, ...]:
    """The names of the presets."""
    return tuple(sorted(path.stem for path in _PRESETS.glob("*.toml")))


def preset_text(name: str) -> str:
    """What a preset stands for, as TOML."""
    return (_PRESETS / f"{name}.toml").read_text(encoding="utf-8")


def _user_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "edgetl" / "config.toml"


def _merged(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(weak)
    for key, value in strong.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _with_preset(document: dict[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """The files' values with those of the preset; one that a flag names is stronger than they are.

    Whoever names it there wants to see it at work, and most projects have phases of their own.
    """
    asked = tomlfile.parse_value(overrides["preset"]) if "preset" in overrides else None
    name = document.get("preset") if asked is None else asked
    if name not in presets():
        return document  # no preset, or none of that name: what is wrong is told where the document is validated
    values = tomlfile.read(_PRESETS / f"{name}.toml")
    return _merged(values, document) if asked is None else _merged(document, values)


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Values of ``EDGETL_<SECTION>_<FIELD>``; variables that name no section belong to somebody else."""
    found = {}
    for section, info in Config.model_fields.items():
        model = info.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        for name in model.model_fields:
            value = environment.get(_variable(f"{section}.{name}"))
            if value is not None:
                found[f"{section}.{name}"] = value
    return found


def _variable(key: str) -> str:
    return "EDGETL_" + key.replace(".", "_").upper()


def _assign(document: dict[str, Any], key: str, text: str, source: str) -> None:
    *tables, last = key.split(".")
    place = document
    for table in tables:
        below = place.setdefault(table, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{source}: '{table}' is not a table", hint="edgetl schema")
        place = below
    place[last] = tomlfile.parse_value(text)


def _follows(detail: ErrorDetails) -> bool:
    """Whether an error only repeats another: a list counts as too short where one of its items is wrong."""
    items = detail["input"]
    return detail["type"] == "too_short" and isinstance(items, list) and bool(items)


def _explain(sources: _Sources, detail: ErrorDetails) -> str:
    """One validation error as ``where: key: what is wrong, and what was meant``; where is a line, flag or variable."""
    key = [part for part in detail["loc"] if isinstance(part, (str, int)) and part != "[key]"]
    where = sources.giver(key) or sources.place(key)
    name = ".".join(str(part) for part in key) or "the file"
    if detail["type"] == "extra_forbidden":
        table = _table(key[:-1])
        inner = [field for field, kind in _tables_of(table).items() if key[-1] in kind.model_fields]
        if inner:  # finetune.lr, which is a phase's
            place = ".".join(str(part) for part in (*key[:-1], inner[0]))
            return f"{where}: unknown key '{name}'; '{key[-1]}' is a key of {place}"
        around = [part for part in key[:-1] if isinstance(part, str)]
        if len(around) > 1 and key[-1] in _table([*around[:-1]]).model_fields:  # finetune.phases.0.ema
            return f"{where}: unknown key '{name}'; '{key[-1]}' is a key of {'.'.join(around[:-1])}"
        known = [field.alias or name for name, field in table.model_fields.items()]
        return f"{where}: unknown key '{name}'; {tomlfile.did_you_mean(str(key[-1]), known)}"
    # A rule about a table may be broken by one of its keys that did not come from the file.
    also = [source for dotted, source in sources.given.items() if dotted.startswith(f"{name}.")]
    with_ = f" (with {', '.join(also)})" if also and detail["type"] == "value_error" else ""
    named = "" if where.removeprefix("--set ") == name else f" {name}:"
    return f"{where}:{named} {_said(detail)}{with_}"


def _said(detail: ErrorDetails) -> str:
    """What is wrong with a value, and the value where that does not tell."""
    given = "" if detail["type"] in ("missing", "value_error") else f" (it is {detail['input']!r})"
    return detail["msg"].removeprefix("Value error, ") + given


def _table(key: list[str | int]) -> type[BaseModel]:
    """The table that ``key`` leads to."""
    model: type[BaseModel] = Config
    for part in key:
        if isinstance(part, str):
            model = _tables_of(model).get(part, model)  # parity.tolerances.int8: the user's key leads nowhere further
    return model


def _tables_of(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The tables, and lists of tables, right inside a table."""
    found = {}
    for name, info in model.model_fields.items():
        nested = [info.annotation, *getattr(info.annotation, "__args__", ())]
        kind = next((kind for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if kind is not None:
            found[name] = kind
    return found


def _absolute(config: Config, folder: Path) -> Config:
    """The same configuration with every path absolute, relative to ``folder``."""

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else folder / _expanded(path)

    data = config.data.model_copy(
        update={name: absolute(getattr(config.data, name)) for name in ("manifest", "train", "val", "test")}
    )
    quantize = config.quantize.model_copy(update={"data": absolute(config.quantize.data)})
    bundle = config.bundle.model_copy(
        update={"output": absolute(config.bundle.output), "key": absolute(config.bundle.key)}
    )
    weights = config.model.weights
    if weights.endswith((".safetensors", ".pth", ".pt")) or ("/" in weights and not weights.startswith("pypi:")):
        weights = str(absolute(Path(weights)))
    finetune = config.finetune.model_copy(
        update={name: absolute(getattr(config.finetune, name)) for name in ("log_dir", "source_test")}
    )
    entries = tuple(entry.model_copy(update={"device": _file_of(entry.device, folder)}) for entry in config.target)
    return config.model_copy(
        update={
            "data": data,
            "quantize": quantize.model_copy(
                update={name: _file_of(getattr(quantize, name), folder) for name in ("recipe", "fp16_recipe")}
            ),
            "bundle": bundle,
            "finetune": finetune,
            "model": config.model.model_copy(update={"weights": weights}),
            "target": entries,
        }
    )


def _file_of(name: str, folder: Path) -> str:
    """A bare name stays; a path is made absolute."""
    return str(folder / _expanded(Path(name))) if "/" in name or name.endswith(".toml") else name


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: there is no such user's home folder") from None
