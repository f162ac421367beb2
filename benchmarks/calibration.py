"""edgetl's quantizer against onnxruntime.quantization, NNCF and ModelOpt, on the same models and samples.

    python benchmarks/calibration.py MODEL… --cache DIR --results DIR [--nncf PYTHON] [--modelopt PYTHON]
    python benchmarks/calibration.py --results DIR --table docs/calibration.md

Each tool quantizes in a process of its own (benchmarks/peers.py), with edgetl's run between the peers'. What is found
is kept in the results' folder, one JSON file per model and tool, so that a run can be stopped and gone on with; the
table is written from there. Quality is measured on test samples that no tool has seen (benchmarks/zoo.py), latency
interleaved in one process, on ONNX Runtime and on OpenVINO.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peers
import quality
import zoo

from edgetl.benchmark import environment

ORT = ("ort-minmax", "ort-entropy", "ort-percentile")
NNCF = ("nncf-performance", "nncf-mixed", "nncf-mixed-bc")
MODELOPT = ("modelopt-max",)
EDGETL = ("edgetl-int8-minmax", "edgetl-int8-mse", "edgetl-int8-mse-corrected", "edgetl-int8-search")
TRANSFORMER = ("ort-dynamic", "edgetl-int8-smoothquant", "edgetl-int8-dynamic")
OPENVINO = ("edgetl-openvino-int8-mse", "edgetl-openvino-int8-search")
TRANSFORMERS = ("vit-tiny-digits", "minilm-reviews")
_NONE = "-"
_PREFACE = """# edgetl's quantizer beside others

Written by `python benchmarks/calibration.py`; the models are those of `benchmarks/zoo.py`. Every tool quantized the
same float graph with the same calibration samples, in a process of its own. Quality is on test samples that no tool
saw; SQNR is that of the logits against the float graph, agreement the share of samples on which both name the same
class (on ONNX Runtime where the graph was made for it). "top-1 lost" is in points; below zero the quantized graph did
better. "extra MB" is the peak beyond what the process held after imports, loading the samples and one inference.
Latencies are medians, batch 1, two threads, all tools of a model interleaved in one process.

ModelOpt calibrates on the ONNX Runtime that it requires (1.24), all others on the one of `constraints.txt`. Seconds
were taken on a machine that was also doing other things: they order tools and no more; `benchmarks/speed.py` compares
calibration times. A few hundred test samples do not separate agreements that differ by half a point, and the SQNR of
a network moves by a decibel or two with the draw of calibration samples.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(zoo.NAMES))
    parser.add_argument("--cache", type=Path, default=zoo.CACHE, help="of the models")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100, help="calibration samples")
    parser.add_argument("--test", type=int, default=200, help="test samples, at most")
    parser.add_argument("--nncf", type=Path, help="a Python with NNCF")
    parser.add_argument("--modelopt", type=Path, help="a Python with ModelOpt")
    parser.add_argument("--tools", nargs="+", help="only these")
    parser.add_argument("--latency", action="store_true", help="measure latency too: on a quiet machine")
    parser.add_argument("--table", type=Path, help="write the table of all results there")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    for name in given.models:
        item = zoo.load(name, given.cache)
        tools = [tool for tool in tools_for(name, given) if not given.tools or tool in given.tools]
        for tool in tools:
            quantize(item, tool, given)
        if given.latency:
            measure_latency(item, tools, given)
    if given.table:
        given.table.write_text(table(given.results), encoding="utf-8")


def tools_for(name: str, given: argparse.Namespace) -> list[str]:
    """The tools for a model, peers and edgetl's recipes in turn."""
    theirs = [*ORT, *(NNCF if given.nncf else ()), *(MODELOPT if given.modelopt else ())]
    ours = [*EDGETL, *OPENVINO]
    if name in TRANSFORMERS:
        theirs.append("ort-dynamic")
        ours += [tool for tool in TRANSFORMER if tool.startswith("edgetl")]
    longest = max(len(theirs), len(ours))
    return [group[index] for index in range(longest) for group in (theirs, ours) if index < len(group)]


def quantize(item: zoo.Item, tool: str, given: argparse.Namespace) -> None:
    """Run a tool on a model and keep what comes of it; nothing where that is there already."""
    place = given.results / f"{item.name}.{tool}.json"
    if place.exists():
        return
    samples = given.results / f"{item.name}.samples.npz"
    if not samples.exists():
        np.savez(samples, **{name: array[: given.count] for name, array in item.calibration.items()})
    output = given.results / f"{item.name}.{tool}{peers.TOOLS[tool].suffix}"
    python = {"nncf": given.nncf, "modelopt": given.modelopt}.get(tool.split("-")[0]) or Path(sys.executable)
    found = peers.run_peer(
        tool,
        item.model,
        samples,
        min(given.count, len(next(iter(item.calibration.values())))),
        output,
        python=python,
        transformer=item.name in TRANSFORMERS,
        timeout_s=900,
    )
    if "error" not in found:
        feeds = {name: array[: given.test] for name, array in item.test.items()}
        labels = None if item.labels is None else item.labels[: given.test]
        reference = quality.outputs(item.model, feeds)
        for engine in ("onnxruntime", "openvino"):
            if engine == "onnxruntime" and (output.suffix == ".xml" or "openvino" in tool):
                continue
            try:
                found[engine] = quality.evaluate(reference, output, feeds, labels, engine)  # type: ignore[arg-type]
            except Exception as error:  # noqa: BLE001 - an engine that refuses a tool's graph is a result
                found[engine] = {"error": f"{type(error).__name__}: {error}"[:300]}
    place.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(item.name, tool, json.dumps(found), flush=True)


def measure_latency(item: zoo.Item, tools: list[str], given: argparse.Namespace) -> None:
    """Latency of everything that was made of a model, interleaved, by engine."""
    feeds = quality.sample(item.test, 0)
    for engine in ("onnxruntime", "openvino"):
        files = {"float": item.model}
        for tool in tools:
            output = given.results / f"{item.name}.{tool}{peers.TOOLS[tool].suffix}"
            facts = _read(given.results / f"{item.name}.{tool}.json")
            if output.exists() and "error" not in facts.get(engine, {"error": ""}):
                files[tool] = output
        found = quality.latency(files, engine, feeds, samples=100, warmup=10)  # type: ignore[arg-type]
        document = {"environment": environment.environment(), "load": environment.load_average(), "p50_ms": found}
        (given.results / f"{item.name}.latency-{engine}.json").write_text(json.dumps(document, indent=1))
        print(item.name, engine, json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)


def table(results: Path) -> str:
    """The results as Markdown."""
    lines = [_PREFACE]
    for name in zoo.NAMES:
        files = sorted(results.glob(f"{name}.*.json"))
        rows = {path.name.split(".")[1]: _read(path) for path in files if ".latency-" not in path.name}
        if not rows:
            continue
        times = {engine: _read(results / f"{name}.latency-{engine}.json") for engine in ("onnxruntime", "openvino")}
        lines += [f"## {name}", "", *_rows(rows, {key: value.get("p50_ms", {}) for key, value in times.items()}), ""]
    return "\n".join(lines)


def _rows(rows: dict[str, dict[str, Any]], times: dict[str, dict[str, float]]) -> list[str]:
    lines = [
        "| tool | seconds | extra MB | SQNR dB | agreement | top-1 lost, points | ORT ms | SQNR dB on OpenVINO"
        " | OpenVINO ms |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| float |  |  |  |  |  | {_ms(times['onnxruntime'], 'float')} |  | {_ms(times['openvino'], 'float')} |",
    ]
    for tool, facts in sorted(rows.items(), key=lambda row: (row[0].startswith("edgetl"), row[0])):
        if "error" in facts:
            lines.append(f"| {tool} | {facts['error'][:80]} |  |  |  |  |  |  |  |")
            continue
        ort, vino = facts.get("onnxruntime", {}), facts.get("openvino", {})
        seen = ort if "sqnr_db" in ort else vino
        lost = f"{100 * (seen['top1_float'] - seen['top1']):.1f}" if "top1" in seen else _NONE
        cells = [
            tool,
            f"{facts['seconds']:.1f}",
            f"{facts['extra_peak_mb']:.0f}",
            _db(ort),
            f"{seen['agreement']:.3f}" if "agreement" in seen else _NONE,
            lost,
            _ms(times["onnxruntime"], tool),
            _db(vino),
            _ms(times["openvino"], tool),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _db(facts: dict[str, Any]) -> str:
    return f"{facts['sqnr_db']:.1f}" if "sqnr_db" in facts else _NONE


def _ms(times: dict[str, float], tool: str) -> str:
    return f"{times[tool]:.2f}" if tool in times else _NONE


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


if __name__ == "__main__":
    main()
