"""edgetl calibrate: statistics of activations, a look at them, and what moved between two."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.build import Force, Target, run_until, show_artifacts
from edgetl.cli.options import Json, Set, StorePath, load_config, refuse
from edgetl.cli.terminal import TerminalReporter, print_json, print_table, print_text
from edgetl.errors import UsageError
from edgetl.numbers import counted

if TYPE_CHECKING:
    from edgetl.config import Config
    from edgetl.quantize.inspection import Comparison, Histogram, TensorView, Threshold
    from edgetl.quantize.schemes import IntegerType, Scheme
    from edgetl.specs import Recipe

_CONFIG = Path("edgetl.toml")
_SCHEME, _RECIPE = "onnxruntime-x86-vnni", "int8-mse"
_HELP = "edgetl calibrate --help"
_TOP = 10
_ROWS = 6
_GUTTER = 11
_WIDEST = 160
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(
        name="calibrate",
        help="Everything up to the activation statistics; with --show or --diff, a look at statistics.",
    )(_calibrate)


def _calibrate(
    path: Annotated[
        Path | None, typer.Argument(help="edgetl.toml or its folder; with --show also a folder with calibration.json.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Draw histograms with the range of each estimator.")] = False,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--diff", metavar="OLD NEW", help="Which scales moved between two folders with calibration.json."),
    ] = None,
    tensor: Annotated[
        list[str] | None, typer.Option("--tensor", metavar="NAME", help="Of --show: a name or 'pat*rn'; repeatable.")
    ] = None,
    scheme: Annotated[
        str | None, typer.Option("--scheme", help=f"Whose integers [default: the project's first, or {_SCHEME}].")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", help=f"Of --diff [default: the project's, or {_RECIPE}]; of --show: one more."),
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", min=1, help=f"How many activations at most [default: {_TOP}].")
    ] = None,
    target: Target = None,
    assignments: Set = None,
    store: StorePath = None,
    force: Force = None,
    json: Json = False,
) -> None:
    given = {"--tensor": tensor, "--scheme": scheme, "--recipe": recipe, "--top": top}
    if show and diff:
        raise UsageError("--show and --diff are two different looks", hint="one of them at a time")
    if diff:
        refuse({"--tensor": tensor, "--target": target, "--force": force}, "do not belong to --diff", _HELP)
        _diff(*diff, _project(path, assignments), scheme, recipe or [], top or _TOP, json)
    elif show:
        folder, config = _statistics_of(path, target, assignments, store, force)
        _show(folder, config, scheme, recipe or [], tensor or [], top if tensor else top or _TOP, json)
    else:
        refuse(given, "belong to --show or --diff", _HELP)
        outcome = run_until(path or _CONFIG, target, assignments, store, until="calibrate", force=force)
        show_artifacts("calibrate", outcome, json)


def _project(path: Path | None, assignments: list[str] | None) -> Config | None:
    """The project that defaults come from; None where none was named and none is here."""
    if path is None and not assignments and not _CONFIG.is_file():
        return None
    return load_config(path or _CONFIG, assignments)


def _statistics_of(
    path: Path | None,
    target: list[str] | None,
    assignments: list[str] | None,
    store: Path | None,
    force: list[str] | None,
) -> tuple[Path, Config | None]:
    """The folder of the statistics, and the project that they belong to; made where they are not there."""
    if path is not None and (path / "calibration.json").is_file():
        given = {"--target": target, "--set": assignments, "--force": force}
        refuse(given, f"are for a project; {path} is none", _HELP)
        return path, None
    if path is not None and path.is_dir() and not (path / "edgetl.toml").is_file():
        raise UsageError(
            f"{path} holds neither a calibration (calibration.json) nor a project (edgetl.toml)",
            hint="edgetl calibrate prints the folder of a project's calibration",
        )
    outcome = run_until(path or _CONFIG, target, assignments, store, until="calibrate", force=force)
    return outcome.artifacts["calibrate"], load_config(path or _CONFIG, assignments)


def _scheme(name: str | None, config: Config | None) -> Scheme:
    from edgetl.quantize import schemes

    if name is None and config is not None:
        from edgetl.pipeline import engines

        name = next((item.target.scheme for item in engines.candidates(config) if item.precision == "int8"), None)
    return schemes.scheme(_SCHEME if name is None else name)


def _static(names: Sequence[str]) -> list[Recipe]:
    """Recipes that were asked for by name or path, each of which must read ranges from statistics."""
    from edgetl import catalog

    found = [catalog.recipe(name) for name in names]
    for item in found:
        if item.activations is None:
            raise UsageError(
                f"the recipe {item.name} is of kind {item.kind}: it reads no range from statistics",
                hint="--recipe int8-mse   (edgetl recipes lists all)",
            )
    return found


# --- --show ----------------------------------------------------------------------------------------------------------


def _show(
    folder: Path,
    config: Config | None,
    scheme: str | None,
    recipe: list[str],
    tensor: list[str],
    top: int | None,
    json: bool,
) -> None:
    from edgetl import catalog
    from edgetl.quantize import inspection, statistics

    wanted = _scheme(scheme, config)
    recipes = [*map(catalog.recipe, catalog.recipe_names()), *_static(recipe)]
    found = inspection.estimators(recipes)
    loaded = statistics.load(folder)
    bins = max(24, min(shutil.get_terminal_size().columns, _WIDEST) - _GUTTER - 2)
    reporter = TerminalReporter()
    views = inspection.views(
        loaded,
        found,
        wanted.activations,
        wanted=tensor,
        top=top,
        bins=bins,
        progress=lambda done, total: reporter.progress("activations estimated", done, total),
    )
    if json:
        document = {
            "folder": str(folder),
            "samples": loaded.samples,
            "scheme": wanted.name,
            "activations": len(loaded.sketches),
            "estimators": {name: _users(name, recipes) for name in found},
            "shown": [_view_document(view) for view in views],
        }
        print_json("calibrate-show", document)
        return
    text = f"{counted(len(loaded.sketches), 'activation')}, {counted(loaded.samples, 'sample')}"
    print_text(f"{text}; integers of {wanted.name}: {_integers(wanted.activations)}")
    print_text(str(folder))
    if not tensor and len(views) < len(loaded.sketches):
        print_text(f"shown: the {len(views)} that the estimators differ on most; --tensor '*' shows all")
    print_text("bars: values per bin on a logarithmic scale, bins of equal width")
    print_text("letters: ends of each estimator's range; < and >: beyond what was seen")
    widest = max(map(len, found), default=0)
    for letter, name in zip(_LETTERS, found, strict=False):
        users = f"  {letter}  {name.ljust(widest)} {', '.join(_users(name, recipes))}"
        indent = " " * (6 + widest)
        for line in textwrap.wrap(users, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False):
            print_text(line)
    for view in views:
        print_text()
        _draw(view)


def _users(name: str, recipes: Sequence[Recipe]) -> list[str]:
    """The recipes that use an estimator."""
    from edgetl.quantize import inspection

    return list(dict.fromkeys(item.name for item in recipes if name in inspection.estimators([item])))


def _draw(view: TensorView) -> None:
    print_text(_plain(view.name))
    print_text(f"  {counted(view.values, 'value')} from {view.low:.4g} to {view.high:.4g}, mean {view.mean:.4g}")
    if len(view.histogram.counts) == 1:
        print_text("  all of them are the same")
    else:
        for line in _bars(view.histogram):
            print_text(line)
        for letter, item in zip(_LETTERS, view.thresholds, strict=False):
            print_text(f"{letter.rjust(_GUTTER - 1)} {_bracket(letter, item, view)}".rstrip())
    rows = [
        [f" {letter}", item.estimator, f"[{item.low:.4g}, {item.high:.4g}]", f"{item.scale:.3g}",
         str(item.zero_point), f"{100 * item.clipped_share:.3g}%", _decibels(item.sqnr_db)]
        for letter, item in zip(_LETTERS, view.thresholds, strict=False)
    ]  # fmt: skip
    print_table(["", "estimator", "range", "scale", "zero", "clipped", "SQNR"], rows, right=(3, 4, 5, 6))


def _bars(histogram: Histogram) -> list[str]:
    """The rows of a histogram, its axis, and the numbers below it."""
    counts, bins = histogram.counts, len(histogram.counts)
    most = float(counts.max())
    heights = [_height(float(count), most) for count in counts]
    lines = []
    for row in range(_ROWS):
        floor = 8 * (_ROWS - 1 - row)
        label = f"{most:,.0f}" if row == 0 else ""
        label = label if len(label) < _GUTTER else f"{most:.2g}"
        bars = "".join(_EIGHTHS[min(max(height - floor, 0), 8)] for height in heights)
        lines.append(f"{label.rjust(_GUTTER - 1)}│{bars}".rstrip())
    low, high = float(histogram.edges[0]), float(histogram.edges[-1])
    ends = f"{low:.4g}".ljust(bins)
    last = f"{high:.4g}"
    ends = ends[: bins - len(last)] + last
    place = _column(0.0, low, high, bins)
    if low < 0.0 < high and ends[max(0, place - 1) : place + 2].strip() == "":
        ends = f"{ends[:place]}0{ends[place + 1 :]}"
    return [*lines, f"{' ' * (_GUTTER - 1)}└{'─' * bins}", f"{' ' * _GUTTER}{ends}"]


def _height(count: float, most: float) -> int:
    """Eighths of a row; at least one for a bin that is not empty."""
    if count <= 0.0:
        return 0
    return max(1, round(8 * _ROWS * math.log1p(count) / math.log1p(most)))


def _bracket(letter: str, item: Threshold, view: TensorView) -> str:
    """A line from one end of a range to the other."""
    bins = len(view.histogram.counts)
    first, last = (_column(end, view.low, view.high, bins) for end in (item.low, item.high))
    line = [" "] * first + ["─"] * (last - first + 1)
    line[first] = letter if item.low >= view.low - item.scale else "<"
    line[last] = letter if item.high <= view.high + item.scale else ">"
    return "".join(line)


def _column(value: float, low: float, high: float, bins: int) -> int:
    """The bin that a value lies in; the nearest, where it lies in none."""
    share = (min(max(value, low), high) - low) / (high - low)
    return min(int(share * bins), bins - 1)


def _view_document(view: TensorView) -> dict[str, Any]:
    return {
        "name": view.name,
        "values": view.values,
        "low": view.low,
        "high": view.high,
        "mean": view.mean,
        "histogram": {"edges": view.histogram.edges.tolist(), "counts": view.histogram.counts.tolist()},
        "thresholds": [asdict(item) for item in view.thresholds],
    }


# --- --diff ----------------------------------------------------------------------------------------------------------


def _diff(
    old: Path, new: Path, config: Config | None, scheme: str | None, recipe: list[str], top: int, json: bool
) -> None:
    from edgetl.quantize import inspection, statistics

    wanted = _scheme(scheme, config)
    names = recipe or [config.quantize.recipe if config is not None else _RECIPE]
    recipes = _static(names)
    found = inspection.compare(
        statistics.load(old), statistics.load(new), inspection.estimators(recipes), wanted.activations
    )
    if json:
        document = {"old": str(old), "new": str(new), "scheme": wanted.name, "recipes": [r.name for r in recipes]}
        print_json("calibrate-diff", {**document, "same": found.same, **asdict(found)})
        return
    print_text(f"recipe {', '.join(item.name for item in recipes)}; integers of {wanted.name}")
    _print_source(found)
    for item in found.ranges:
        if not item.moved:
            unmoved = counted(item.unmoved, "activation is", "activations are")
            print_text(f"\n{item.estimator}: nothing moved; {unmoved} quantized as before")
            continue
        print_text(f"\n{item.estimator}: {len(item.moved)} moved, {item.unmoved} did not")
        rows = [
            [f"{each.ratio:.4g}×", f"{each.old_scale:.4g}", f"{each.new_scale:.4g}",
             f"{each.old_zero_point} → {each.new_zero_point}", _plain(each.name)]
            for each in item.moved[:top]
        ]  # fmt: skip
        print_table(["new / old", "old scale", "new scale", "zero point", "activation"], rows, right=(0, 1, 2))
        if len(item.moved) > top:
            print_text(f"… and {len(item.moved) - top} more: --top {len(item.moved)}")
    for where, missing in (("OLD", found.only_old), ("NEW", found.only_new)):
        if missing:
            print_text(f"\nonly in {where}: {', '.join(map(_plain, missing))}")


def _print_source(found: Comparison) -> None:
    if not found.source:
        same = "model, samples and preprocessing are the same"
        print_text(same if found.recorded else "as many samples; of what is not recorded in both")
        return
    print_text("what differs in the origin of the statistics:")
    for change in found.source:
        short = _short(change.old), _short(change.new)
        old, new = short if short[0] != short[1] else (_plain(str(change.old)), _plain(str(change.new)))
        print_text(f"  {_plain(change.fact)}: {old} → {new}")


def _short(value: Any) -> str:
    """A JSON value in few characters; digests are known by their first twelve."""
    if value is None:
        return "not recorded"
    text = _plain(str(value))
    return text if len(text) <= 24 else f"{text[:12]}…"


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def _plain(text: str) -> str:
    """A name from a model, which may hold anything, without what a terminal would obey."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _integers(type_: IntegerType) -> str:
    """What a scheme quantizes activations to."""
    said = f"{type_.name}{', symmetric' if type_.symmetric else ''}"
    if type_.signed is None:
        return said
    return f"{said}; {_integers(type_.signed)} at attention, and at convolutions where that adds little noise"
