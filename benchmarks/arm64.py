"""Whether int8 graphs for 64-bit Arm run in integers there, and answer as here: on a device, or emulated.

    python benchmarks/arm64.py MODEL… --python COMMAND --packages DIR [--cache DIR]

quantizes zoo models by a recipe for the scheme onnxruntime-arm64, and has the same test samples answered by ONNX
Runtime here and by the Python that COMMAND starts, which needs numpy, onnx and onnxruntime from DIR. docs/schemes.md
says how to get both under qemu-aarch64. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

ROOT = Path(__file__).resolve().parent.parent
SCHEME = "onnxruntime-arm64"
_HEAD = ("model", "int8 there", "SQNR here, dB", "SQNR there, dB", "agreement", "largest difference between the two")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--python", help='starts a Python for Arm: "ssh pi python3" will not do, the files are here')
    parser.add_argument("--packages", type=Path, help="its site-packages")
    parser.add_argument("--cache", type=Path, help="of the models")
    parser.add_argument("--recipe", default="int8-mse")
    parser.add_argument("--count", type=int, default=100, help="calibration samples")
    parser.add_argument("--test", type=int, default=100, help="test samples, at most")
    parser.add_argument("--answer", type=Path, nargs=3, metavar=("GRAPH", "FEEDS", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.answer:
        answer(*given.answer)
        return
    if not given.models or not given.python:
        parser.error("name models, and --python")
    print(line(_HEAD))
    print(line(["---"] * len(_HEAD)))
    for name in given.models:
        print(line([name, *row(name, given)]), flush=True)


def line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def answer(graph: Path, feeds_file: Path, out: Path) -> None:
    """Run a graph on samples, one by one, and write the first output and the share of multiply-adds in int8."""
    with np.load(feeds_file) as archive:
        feeds = {name: archive[name] for name in archive.files}
    count = len(next(iter(feeds.values())))
    with OnnxRuntimeRunner(graph, threads=1) as runner:
        first = runner.outputs[0].name
        rows = [
            runner.run({name: array[index : index + 1] for name, array in feeds.items()})[first][0]
            for index in range(count)
        ]
        share = runner.placement().int8_share
    np.savez(out, answers=np.stack(rows), share=np.asarray(np.nan if share is None else share))


def row(name: str, given: argparse.Namespace) -> list[str]:
    """What a model comes to, as cells of the table."""
    import quality
    import zoo

    item = zoo.load(name, given.cache or zoo.CACHE)
    feeds = {key: array[: given.test] for key, array in item.test.items()}
    reference = quality.outputs(item.model, feeds)
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        graph, source = Path(folder) / "int8.onnx", Path(folder) / "feeds.npz"
        quantize(item, given.recipe, given.count, graph)
        arrays: dict[str, Any] = feeds
        np.savez(source, **arrays)
        here, _ = answers([sys.executable], graph, source, None)
        there, share = answers(shlex.split(given.python), graph, source, given.packages)
    return table_cells(reference, here, there, share)


def table_cells(
    reference: NDArray[np.float64], here: NDArray[np.float64], there: NDArray[np.float64], share: float
) -> list[str]:
    """Cells of a row, from the float graph's outputs and the quantized graph's, here and there, shape (n, classes)."""
    from edgetl.parity.numeric import sqnr_db

    return [
        # cut and not rounded: 100% is all of it
        "-" if math.isnan(share) else f"{math.floor(share * 1000 + 1e-7) / 10:g}%",
        f"{sqnr_db(reference, here):.1f}",
        f"{sqnr_db(reference, there):.1f}",
        f"{float((there.argmax(-1) == reference.argmax(-1)).mean()):.3f}",
        f"{float(np.abs(here - there).max() / np.abs(reference).max()):.2%} of the largest output",
    ]


def quantize(item: Any, recipe: str, count: int, out: Path) -> None:
    """Quantize a zoo model for Arm."""
    import onnx_ir as ir

    from edgetl import catalog
    from edgetl.quantize import graph, recipes
    from edgetl.quantize.schemes import scheme
    from edgetl.quantize.tools import Tools

    found = min(count, len(next(iter(item.calibration.values()))))
    samples = [{name: array[index : index + 1] for name, array in item.calibration.items()} for index in range(found)]
    tools = Tools(samples=lambda: samples, open_runner=OnnxRuntimeRunner)
    prepared = graph.prepare(graph.load(item.model))
    statistics = recipes.calibrate(prepared, tools, [scheme(SCHEME)])
    ir.save(recipes.make(prepared, statistics, scheme(SCHEME), catalog.recipe(recipe), tools).model, out)


def answers(python: list[str], graph: Path, feeds: Path, packages: Path | None) -> tuple[NDArray[np.float64], float]:
    """A graph's outputs by another Python, shape (n, ...), and the share of its multiply-adds in int8."""
    out = graph.with_name("answers.npz")
    paths = [str(ROOT), *([str(packages.resolve())] if packages else [])]
    command = [*python, str(Path(__file__).resolve()), "--answer", str(graph), str(feeds), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    with np.load(out) as archive:
        return archive["answers"].astype(np.float64), float(archive["share"])


if __name__ == "__main__":
    main()
