"""edgetl's quantizer against onnxruntime.quantization, NNCF and ModelOpt, on the same models and samples.

    python benchmarks/calibration.py MODEL… --cache DIR --results DIR [--nncf PYTHON] [--modelopt PYTHON]
    python benchmarks/calibration.py MODEL… --cache DIR --results DIR --evaluate
    python benchmarks/calibration.py --results DIR --table docs/calibration.md

Each tool quantizes in a process of its own (benchmarks/peers.py), with edgetl's run between the peers'. What is found
is kept in the results' folder, one JSON file per model and tool, so that a run can be stopped and gone on with; the
table is written from there, with the notes of benchmarks/calibration_notes.md under the models that they explain.
Quality is measured on test samples that no tool has seen (benchmarks/zoo.py), latency interleaved in one process, on
ONNX Runtime and on OpenVINO. ``--evaluate`` measures the graphs that are there again and quantizes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import peers
import quality
import zoo
from numpy.typing import NDArray

from edgetl.benchmark import environment
from edgetl.errors import ConfigError
from edgetl.parity.paired import mcnemar

ORT = ("ort-minmax", "ort-entropy", "ort-percentile")
NNCF = (
    "nncf-performance", "nncf-performance-nobc", "nncf-mixed", "nncf-mixed-nobc", "nncf-mixed-bc", "nncf-minmax",
)  # fmt: skip
MODELOPT = ("modelopt-max",)
EDGETL = ("edgetl-int8-minmax", "edgetl-int8-mse", "edgetl-int8-mse-corrected", "edgetl-int8-search")
TRANSFORMER = ("ort-dynamic", "edgetl-int8-smoothquant", "edgetl-int8-dynamic")
OPENVINO = ("edgetl-openvino-int8-mse", "edgetl-openvino-int8-search")
TRANSFORMERS = ("vit-tiny-digits", "minilm-reviews")
ENGINES: tuple[quality.Engine, ...] = ("onnxruntime", "openvino")
TIME_LIMIT_S = 900
NOTES = Path(__file__).with_name("calibration_notes.md")
_NONE = "-"
_PREFACE = """# edgetl's quantizer beside others

Written by `python benchmarks/calibration.py`; the models are those of `benchmarks/zoo.py`. Every tool quantized the
same float graph with the same calibration samples, in a process of its own. Quality is on test samples that no tool
saw; SQNR is that of the logits against the float graph: of all samples together, which those that are furthest off
decide, and the mean of the samples' own decibels (typical). Agreement is the share of samples on which both name the
same class (on ONNX Runtime where the graph was made for it). "top-1 lost" is in points, with the samples that only
the float graph (lost) or only the quantized one (won) names rightly; below zero the quantized graph did better.
Chance alone makes such flips: 6 lost and 2 won have a two-sided p of 0.29 by McNemar's exact test, 9 and 1 one of
0.02. Under each table stand the two graphs that agree best, edgetl's and another tool's, with the same test of the
samples on which one of them alone agrees: a p above 0.05 is no difference. "int8" is the share of the multiply-adds
that the engine runs in 8-bit integers, read from its own optimised graph. "extra MB" is the peak beyond what a process
held after imports, loading the samples and one inference. Latencies are medians, batch 1, two threads, all tools of a
model in turn, in processes of their own, on an idle machine.

ModelOpt calibrates on the ONNX Runtime that it requires (1.24), all others on the one of `constraints.txt`. Seconds
were taken on a machine that was also doing other things: they order tools and no more; `benchmarks/speed.py` compares
calibration times. The SQNR of a network moves by a decibel or two with the draw of calibration samples.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(zoo.NAMES))
    parser.add_argument("--cache", type=Path, default=zoo.CACHE, help="of the models")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100, help="calibration samples")
    parser.add_argument("--test", type=int, default=1000, help="test samples, at most")
    parser.add_argument("--nncf", type=Path, help="a Python with NNCF")
    parser.add_argument("--modelopt", type=Path, help="a Python with ModelOpt")
    parser.add_argument("--tools", nargs="+", help="only these")
    parser.add_argument("--evaluate", action="store_true", help="measure the graphs that are there again; make none")
    parser.add_argument("--latency", action="store_true", help="measure latency too: on a quiet machine")
    parser.add_argument("--table", type=Path, help="write the table of all results there")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    for name in given.models:
        item = zoo.load(name, given.cache)
        test = Test(item, given.test)
        tools = [tool for tool in tools_for(name, given) if not given.tools or tool in given.tools]
        for tool in tools:
            if given.evaluate:
                evaluate(test, tool, given.results)
            else:
                quantize(test, tool, given)
        (given.results / f"{name}.model.json").write_text(json.dumps(test.facts(given.count), indent=1))
        if given.latency:
            measure_latency(item, tools, given)
    if given.table:
        given.table.write_text(table(given.results, notes(NOTES)), encoding="utf-8")


class Test:
    """A model with the samples that it is measured on."""

    def __init__(self, item: zoo.Item, most: int) -> None:
        self.item = item
        self.feeds = {name: array[:most] for name, array in item.test.items()}
        self.labels = None if item.labels is None else item.labels[:most]

    @cached_property
    def reference(self) -> NDArray[np.float64]:
        """The float model's outputs."""
        return quality.outputs(self.item.model, self.feeds)

    def facts(self, count: int) -> dict[str, Any]:
        """What the table says above a model's rows."""
        facts = {"task": self.item.task, "samples": len(next(iter(self.feeds.values()))), "calibration": count}
        if self.labels is not None:
            facts["top1"] = float((self.reference.argmax(-1) == self.labels).mean())
        return facts

    def measured(self, output: Path, tool: str) -> dict[str, Any]:
        """Engine → what a quantized graph comes to on it."""
        found: dict[str, Any] = {}
        for engine in ENGINES:
            if engine == "onnxruntime" and (output.suffix == ".xml" or "openvino" in tool):
                continue
            try:
                found[engine] = quality.evaluate(self.reference, output, self.feeds, self.labels, engine)
                found[engine]["int8_share"] = quality.int8_share(output, engine)
            except Exception as error:  # noqa: BLE001 - an engine that refuses a tool's graph is a result
                found[engine] = {"error": f"{type(error).__name__}: {error}"[:300]}
        return found


def tools_for(name: str, given: argparse.Namespace) -> list[str]:
    """The tools for a model, peers and edgetl's recipes in turn."""
    theirs = [*ORT, *(NNCF if given.nncf else ()), *(MODELOPT if given.modelopt else ())]
    ours = [*EDGETL, *OPENVINO]
    if name.partition("@")[0] in TRANSFORMERS:
        theirs.append("ort-dynamic")
        ours += [tool for tool in TRANSFORMER if tool.startswith("edgetl")]
    longest = max(len(theirs), len(ours))
    return [group[index] for index in range(longest) for group in (theirs, ours) if index < len(group)]


def quantize(test: Test, tool: str, given: argparse.Namespace) -> None:
    """Run a tool on a model and keep what comes of it; nothing where that is there already."""
    item = test.item
    place = given.results / f"{item.name}.{tool}.json"
    if place.exists():
        return
    samples = given.results / f"{item.name}.samples.npz"
    if not samples.exists():
        drawn: Any = {name: array[: given.count] for name, array in item.calibration.items()}
        np.savez(samples, **drawn)
    output = given.results / f"{item.name}.{tool}{peers.TOOLS[tool].suffix}"
    python = {"nncf": given.nncf, "modelopt": given.modelopt}.get(tool.split("-")[0]) or Path(sys.executable)
    found = peers.run_peer(
        tool,
        item.model,
        samples,
        min(given.count, len(next(iter(item.calibration.values())))),
        output,
        python=python,
        transformer=item.name.partition("@")[0] in TRANSFORMERS,
        timeout_s=TIME_LIMIT_S,
    )
    if "error" not in found:
        found |= test.measured(output, tool)
    _keep(place, found)


def evaluate(test: Test, tool: str, results: Path) -> None:
    """Measure a graph that is there again; nothing where its tool failed, or did not run."""
    place = results / f"{test.item.name}.{tool}.json"
    output = results / f"{test.item.name}.{tool}{peers.TOOLS[tool].suffix}"
    found = _read(place)
    if output.exists() and found and "error" not in found:
        _keep(place, {**found, **test.measured(output, tool)})


def _keep(place: Path, found: dict[str, Any]) -> None:
    place.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(place.stem, json.dumps(found)[:1000], flush=True)


def measure_latency(item: zoo.Item, tools: list[str], given: argparse.Namespace) -> None:
    """Latency of everything that was made of a model, interleaved, by engine."""
    feeds = quality.sample(item.test, 0)
    for engine in ENGINES:
        files = {"float": item.model}
        for tool in tools:
            output = given.results / f"{item.name}.{tool}{peers.TOOLS[tool].suffix}"
            facts = _read(given.results / f"{item.name}.{tool}.json")
            if output.exists() and "error" not in facts.get(engine, {"error": ""}):
                files[tool] = output
        found = quality.latency(files, engine, feeds, samples=100, warmup=10)
        document = {"environment": environment.environment(), "load": environment.load_average(), "p50_ms": found}
        (given.results / f"{item.name}.latency-{engine}.json").write_text(json.dumps(document, indent=1))
        print(item.name, engine, json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)


def notes(path: Path) -> dict[str, str]:
    """What is written by hand under the tables: model → Markdown.

    Args:
        path: A heading "## MODEL" before each note.

    Raises:
        ConfigError: A heading that is no model of the zoo.
    """
    _, *parts = re.split(r"^## (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {name.strip(): text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}
    unknown = sorted(set(found) - set(zoo.NAMES))
    if unknown:
        raise ConfigError(f"{path} has notes on '{unknown[0]}'", hint=f"the zoo has {', '.join(zoo.NAMES)}")
    return found


def table(results: Path, notes: Mapping[str, str]) -> str:
    """The results as Markdown.

    Args:
        results: Folder of the JSON files.
        notes: Model → Markdown that goes under its rows.
    """
    lines = [_PREFACE]
    for name in zoo.NAMES:
        places = {tool: results / f"{name}.{tool}.json" for tool in peers.TOOLS}
        rows = {tool: _read(place) for tool, place in places.items() if place.exists()}
        if not rows:
            continue
        times = {engine: _read(results / f"{name}.latency-{engine}.json").get("p50_ms", {}) for engine in ENGINES}
        lines += [f"## {name}", "", *_described(_read(results / f"{name}.model.json")), *_rows(rows, times), ""]
        lines += [line for engine in ENGINES for line in _nearest(rows, engine)]
        if name in notes:
            lines += [notes[name], ""]
    return "\n".join(lines)


def _described(facts: dict[str, Any]) -> list[str]:
    if not facts:
        return []
    top1 = f", float top-1 {facts['top1']:.1%}" if "top1" in facts else ""
    task = facts["task"][:1].upper() + facts["task"][1:]
    return [f"{task}. {facts['calibration']} calibration samples, {facts['samples']} test samples{top1}.", ""]


_COLUMNS = (
    *("tool", "seconds", "extra MB", "agreement", "top-1 lost, points"),
    *("ORT SQNR dB, typical", "ORT int8", "ORT ms", "OpenVINO SQNR dB, typical", "OpenVINO int8", "OpenVINO ms"),
)


def _rows(rows: dict[str, dict[str, Any]], times: dict[quality.Engine, dict[str, float]]) -> list[str]:
    ort_ms, openvino_ms = times["onnxruntime"], times["openvino"]
    floats = ["float", *[""] * 6, _ms(ort_ms, "float"), "", "", _ms(openvino_ms, "float")]
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS)), _line(floats)]
    for tool, facts in sorted(rows.items(), key=lambda row: (row[0].startswith("edgetl"), row[0])):
        if "error" in facts:
            reason = " ".join(str(facts["error"]).split()).replace("|", "/")[:80]
            lines.append(_line([tool, reason, *[""] * (len(_COLUMNS) - 2)]))
            continue
        ort, vino = facts.get("onnxruntime", {}), facts.get("openvino", {})
        seen = ort if "sqnr_db" in ort else vino
        cells = [
            tool,
            f"{facts['seconds']:.1f}",
            f"{facts['extra_peak_mb']:.0f}",
            f"{seen['agreement']:.3f}" if "agreement" in seen else _NONE,
            _lost(seen),
            *(_db(ort), _share(ort), _ms(ort_ms, tool)),
            *(_db(vino), _share(vino), _ms(openvino_ms, tool)),
        ]
        lines.append(_line(cells))
    return lines


def _nearest(rows: dict[str, dict[str, Any]], engine: quality.Engine) -> list[str]:
    """edgetl's graph and the other tool's that agree best with the float graph on an engine, sample by sample."""
    measured = {tool: facts[engine] for tool, facts in rows.items() if "differs" in facts.get(engine, {})}
    ours = [tool for tool in measured if tool.startswith("edgetl")]
    theirs = [tool for tool in measured if not tool.startswith("edgetl")]
    if not ours or not theirs:
        return []

    def nearness(tool: str) -> tuple[float, float]:
        return measured[tool]["agreement"], measured[tool]["sqnr_db"]

    mine, its = max(ours, key=nearness), max(theirs, key=nearness)
    lost, won = (set(measured[tool]["differs"]) for tool in (mine, its))
    only_its, only_mine = len(lost - won), len(won - lost)
    what = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}[engine]
    return [
        f"Nearest on {what}: {mine} ({measured[mine]['agreement']:.3f}) and {its} ({measured[its]['agreement']:.3f}). "
        f"{only_mine} samples are as the float graph has them with the first alone, {only_its} with the second alone "
        f"(p = {mcnemar(only_mine, only_its):.2g}).",
        "",
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _lost(facts: dict[str, Any]) -> str:
    """As "0.4 (6 lost, 2 won)"."""
    if "top1" not in facts:
        return _NONE
    points = f"{100 * (facts['top1_float'] - facts['top1']):.1f}"
    flips = f" ({facts['lost']} lost, {facts['won']} won)" if facts.get("lost") or facts.get("won") else ""
    return points.replace("-0.0", "0.0") + flips


def _share(facts: dict[str, Any]) -> str:
    """A share in percent, cut and not rounded: 100% is all of it."""
    share = facts.get("int8_share")
    return _NONE if share is None else f"{math.floor(share * 1000 + 1e-7) / 10:g}%"


def _db(facts: dict[str, Any]) -> str:
    """As "22.0, 25.1": of all samples together, and the typical one's."""
    return ", ".join(f"{facts[name]:.1f}" for name in ("sqnr_db", "typical_db") if name in facts) or _NONE


def _ms(times: dict[str, float], tool: str) -> str:
    return f"{times[tool]:.2f}" if tool in times else _NONE


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


if __name__ == "__main__":
    main()
