"""Every int8 and fp16 graph that edgetl makes for TensorRT, put before the parser of TensorRT-RTX, which is TensorRT's.

    python benchmarks/tensorrt_graphs.py MODEL… --cache DIR --results DIR [--count N]
    python benchmarks/tensorrt_graphs.py --results DIR --table docs/tensorrt.md

The models are those of ``benchmarks/zoo.py``. Each is quantized in both schemes by every recipe that such a target may
be given, and converted to fp16; the parser needs no GPU. What is found is kept in the results' folder, one JSON file
per model, scheme and recipe, so that a run can be stopped and gone on with.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import quality
import zoo

from calibration import TRANSFORMERS
from edgetl import catalog
from edgetl.backends import tensorrt_rtx
from edgetl.errors import EdgetlError
from edgetl.parity.numeric import sqnr_db
from edgetl.quantize import changes, emulation, fusion, graph, recipes
from edgetl.quantize.schemes import SCHEMES
from edgetl.quantize.statistics import Statistics
from edgetl.quantize.tools import Tools
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

INT8 = ("int8-mse", "int8-mse-corrected")
TRANSFORMER = ("int8-smoothquant",)
INT8_SCHEMES = ("tensorrt", "tensorrt-dla")
FP16 = ("tensorrt", "fp16")
"""Scheme and recipe: an fp16 graph is the same for the GPU and for the DLA."""
TEST = 1000
"""Samples at most: those of benchmarks/calibration.py."""
_NONE = "-"
_PREFACE = """# What TensorRT's parser says of edgetl's graphs

Written by `python benchmarks/tensorrt_graphs.py`; the models are those of `benchmarks/zoo.py`, with {count}
calibration samples. Every graph was given to the ONNX parser of TensorRT-RTX {version}, as a strongly typed network: it
is TensorRT's parser, and needs no GPU. "int8" and "fp16" are the shares of the multiply-adds that the parsed network
has in these types; the rest is fp32. "SQNR dB" is that of the first output on the test samples of
[calibration.md](calibration.md) against the float graph: computed by ONNX Runtime in float32, node by node, and rounded
behind every node that computes in float16 (`edgetl/quantize/emulation.py`; ONNX Runtime by itself drops such roundings
on a CPU). What the parser accepts a builder may still refuse, and which layers it fuses only an engine can tell.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(zoo.NAMES))
    parser.add_argument("--cache", type=Path, default=zoo.CACHE, help="of the models")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100, help="calibration samples")
    parser.add_argument("--table", type=Path, help="write the table of all results there")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    for name in given.models:
        ask(zoo.load(name, given.cache), given.count, given.results)
    text = table(given.results)
    if given.table:
        given.table.write_text(text, encoding="utf-8")
    print(text)


def ask(item: zoo.Item, count: int, results: Path) -> None:
    """Make every graph of a model that is not in the results yet, and ask the parser about it."""
    wanted = [(scheme, recipe) for recipe in recipes_of(item.name) for scheme in INT8_SCHEMES] + [FP16]
    wanted = [each for each in wanted if not _place(results, item.name, *each).exists()]
    if not wanted:
        return
    feeds = {name: array[:count] for name, array in item.calibration.items()}
    samples = [quality.sample(feeds, index) for index in range(count)]
    tools = Tools(samples=lambda: samples, open_runner=partial(OnnxRuntimeRunner, threads=1))
    model = graph.prepare(graph.load(item.model))
    statistics = recipes.calibrate(model, tools)
    test = {name: array[:TEST] for name, array in item.test.items()}
    reference = outputs(item.model, test)
    with tempfile.TemporaryDirectory() as folder:
        for scheme, recipe in wanted:
            found = {"version": tensorrt_rtx.TensorRTRTXBackend().version(), "calibration": count}
            try:
                file, emulated = Path(folder) / "model.onnx", Path(folder) / "emulated.onnx"
                done = made(model, statistics, scheme, recipe, tools)
                ir.save(done, file)
                found |= asked(file)
                ir.save(emulation.in_float32(done), emulated)
                found["sqnr_db"] = sqnr_db(reference, outputs(emulated, test))
            except EdgetlError as error:
                found["error"] = error.message
            _place(results, item.name, scheme, recipe).write_text(json.dumps(found, indent=1), encoding="utf-8")
            print(item.name, scheme, recipe, json.dumps(found)[:500], flush=True)


def recipes_of(name: str) -> tuple[str, ...]:
    """The int8 recipes that a model of the zoo is quantized by."""
    return INT8 + (TRANSFORMER if name in TRANSFORMERS else ())


def made(model: ir.Model, statistics: Statistics, scheme: str, recipe: str, tools: Tools) -> ir.Model:
    """The finished graph: int8 and fp16, or fp16 alone."""
    chosen = catalog.recipe(recipe)
    if chosen.kind == "float16":
        return recipes.make_half(model, chosen, tools).model
    if recipes.changes_graph(chosen):
        changed = changes.change(model, statistics, chosen, tools)
        model, statistics = changed.model, changed.statistics
    return recipes.make(model, statistics, SCHEMES[scheme], chosen, tools).model


def asked(file: Path) -> dict[str, Any]:
    """What the parser says of a graph: its refusals, or the share of the multiply-adds in each precision."""
    refusals = tensorrt_rtx.accepts(file)
    if refusals:
        return {"refusals": refusals}
    multiply_adds = fusion.explain(tensorrt_rtx.parsed(file), engine="TensorRT").multiply_adds
    total = sum(multiply_adds.values())
    return {"refusals": [], "shares": {precision: count / total for precision, count in multiply_adds.items()}}


def outputs(file: Path, feeds: quality.Feeds) -> np.ndarray:
    """The first output of every sample, shape (n, ...), float64, computed node by node."""
    with OnnxRuntimeRunner(file, threads=1, optimise=False) as runner:
        first = runner.outputs[0].name
        rows = [runner.run(quality.sample(feeds, index))[first][0] for index in range(len(next(iter(feeds.values()))))]
    return np.stack(rows).astype(np.float64)


def table(results: Path) -> str:
    """The results as Markdown.

    Args:
        results: Folder of the JSON files.
    """
    rows, seen = [], []
    for name in zoo.NAMES:
        for scheme, recipe in [(scheme, recipe) for scheme in INT8_SCHEMES for recipe in recipes_of(name)] + [FP16]:
            place = _place(results, name, scheme, recipe)
            if place.exists():
                facts = json.loads(place.read_text(encoding="utf-8"))
                seen.append(facts)
                rows.append([name, scheme if recipe != FP16[1] else "both", recipe, *_cells(facts)])
    heading = ["model", "scheme", "recipe", "parser", "int8", "fp16", "SQNR dB", "refusals"]
    versions = sorted({str(facts["version"]) for facts in seen})
    counts = sorted({str(facts["calibration"]) for facts in seen})
    preface = _PREFACE.format(version=" and ".join(versions), count=" or ".join(counts))
    return "\n".join([preface, *(_line(row) for row in [heading, ["---"] * len(heading), *rows]), ""])


def _cells(facts: Mapping[str, Any]) -> list[str]:
    if "error" in facts:
        return ["not asked", *[_NONE] * 3, _short(str(facts["error"]))]
    if facts["refusals"]:
        return ["refused", *[_NONE] * 3, _short("; ".join(facts["refusals"]))]
    shares = facts["shares"]
    return ["accepted", _share(shares, "int8"), _share(shares, "fp16"), f"{facts['sqnr_db']:.1f}", _NONE]


def _short(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:200]


def _share(shares: Mapping[str, float], precision: str) -> str:
    """In percent, cut and not rounded: 100% is all of it."""
    return f"{math.floor(shares.get(precision, 0.0) * 1000 + 1e-7) / 10:g}%"


def _place(results: Path, name: str, scheme: str, recipe: str) -> Path:
    return results / f"{name}.{scheme}.{recipe}.json"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
