"""edgetl targets, recipes, presets, schema: what there is."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated

import typer

from edgetl.cli.options import Json
from edgetl.cli.terminal import print_document, print_json, print_table, print_text

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show one, with all its facts.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(name="targets", help="The devices that engines are built for.")(_targets)
    app.command(name="recipes", help="The ways to choose quantization ranges.")(_recipes)
    app.command(name="presets", help="Ways to fine-tune, as values to start from.")(_presets)
    app.command(name="schema", help="The JSON Schema of edgetl.toml, of reports, or of what --json prints.")(_schema)


def _targets(name: Name = None, json: Json = False) -> None:
    from edgetl import catalog

    found = [catalog.target(each) for each in ([name] if name else catalog.target_names())]
    if json:
        print_json("targets", [asdict(target) for target in found])
    elif name:
        _show(asdict(found[0]))
    else:
        rows = [[item.name, item.backend, ", ".join(item.precisions), item.description] for item in found]
        print_table(["target", "backend", "precisions", ""], rows)


def _recipes(name: Name = None, json: Json = False) -> None:
    from edgetl import catalog

    found = [catalog.recipe(each) for each in ([name] if name else catalog.recipe_names())]
    if json:
        print_json("recipes", [asdict(recipe) for recipe in found])
    elif name:
        _show(asdict(found[0]))
    else:
        print_table(["recipe", ""], [[recipe.name, recipe.description] for recipe in found])


def _presets(name: Name = None, json: Json = False) -> None:
    from edgetl import config
    from edgetl.errors import UnknownNameError
    from edgetl.tomlfile import did_you_mean

    names = config.presets()
    if name and name not in names:
        raise UnknownNameError(f"there is no preset '{name}'; {did_you_mean(name, names)}")
    found = {each: config.preset_text(each) for each in ([name] if name else names)}
    if json:
        print_json("presets", [{"name": each, "toml": text} for each, text in found.items()])
    elif name:
        print_text(found[name].rstrip())
    else:
        print_table(["preset", ""], [[each, _first_sentence(text)] for each, text in found.items()])


def _first_sentence(text: str) -> str:
    """Of the comment that a TOML file begins with."""
    lines = text.splitlines()
    comment = lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.lstrip("# ") for line in comment).split(". ")[0].split(" (")[0].rstrip(".") + "."


def _schema(
    of: Annotated[
        str,
        typer.Option(
            "--of",
            metavar="NAME",
            help="config (edgetl.toml); report, parity, bench, quantization (JSON files of a bundle); output-bench,"
            " output-bench-scenario, output-bench-stages, output-verify (what they print with --json).",
        ),
    ] = "config",
    json: Json = False,
) -> None:
    if of == "config":
        from edgetl import config

        found = config.json_schema()
    else:
        from edgetl.pipeline.schemas import schema

        found = schema(of)
    if json:
        print_json("schema", found)
    else:
        print_document(jsonlib.dumps(found, indent=2, ensure_ascii=False) + "\n")


def _show(values: dict[str, object], indent: str = "") -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            print_text(f"{indent}{name}:")
            _show(value, indent + "  ")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            print_text(f"{indent}{name}:")
            for item in value:
                print_text(f"{indent}  - " + "\n      ".join(str(part) for part in item.values()))
        elif isinstance(value, (list, tuple)):
            print_text(f"{indent}{name}: {', '.join(map(str, value))}")
        elif value not in ("", None):
            print_text(f"{indent}{name}: {value}")
