"""What quantizers cost a network that is trained several times: one training is one sample of what they may do to it.

    python benchmarks/seeds.py MODEL --seeds 0 1 2 --results DIR

reads what ``benchmarks/calibration.py MODEL MODEL@1 MODEL@2 --results DIR`` wrote, and prints a Markdown table: the
mean change of top-1 over the trainings in points with its 95% interval (Student's t over the trainings, whose test
samples are the same), all samples won and lost, and the mean SQNR, of all samples together and of the typical one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from edgetl.errors import DataError

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def main() -> None:
    parser = argparse.ArgumentParser(description="What quantizers cost a network that is trained several times.")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, required=True)
    given = parser.parse_args()
    print(table(given.model, given.seeds, given.results))


def table(model: str, seeds: Sequence[int], results: Path) -> str:
    """One row per engine and tool that quantized every training.

    Args:
        model: Name in the zoo, without a seed.
        seeds: At least two; 0 is the zoo's own.
        results: Folder of the calibration benchmark.

    Raises:
        DataError: There are fewer than two seeds, or a training has no results.
    """
    if len(set(seeds)) < 2:
        raise DataError("one training tells nothing of others", hint="--seeds 0 1 2")
    names = [model if seed == 0 else f"{model}@{seed}" for seed in sorted(set(seeds))]
    found = {name: _results(name, results) for name in names}
    missing = next((name for name, tools in found.items() if not tools), None)
    if missing:
        raise DataError(
            f"{results} has no results of {missing}", hint=f"benchmarks/calibration.py {missing} --results …"
        )
    rows = []
    for engine, title in ENGINES.items():
        for tool in sorted(set.intersection(*({*tools} for tools in found.values()))):
            facts = [found[name][tool].get(engine, {}) for name in names]
            if all("top1" in each and "typical_db" in each for each in facts):
                rows.append([title, tool, *_summary(facts)])
    head = ["engine", "graph", "top-1, mean change", "95% interval", "won", "lost", "agreement", "SQNR, dB", "typical"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _results(name: str, results: Path) -> dict[str, dict[str, Any]]:
    """Tool → what it came to on a model."""
    paths = [path for path in results.glob(f"{name}.*.json") if path.name.count(".") == 2]
    return {path.name.split(".")[1]: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _summary(facts: Sequence[dict[str, Any]]) -> list[str]:
    changes = np.array([100.0 * (each["top1"] - each["top1_float"]) for each in facts])
    half = float(stats.t.ppf(0.975, len(changes) - 1)) * float(changes.std(ddof=1)) / len(changes) ** 0.5
    means = {key: float(np.mean([each[key] for each in facts])) for key in ("agreement", "sqnr_db", "typical_db")}
    return [
        f"{changes.mean():+.2f}",
        f"{changes.mean() - half:+.2f} to {changes.mean() + half:+.2f}",
        str(sum(each["won"] for each in facts)),
        str(sum(each["lost"] for each in facts)),
        f"{means['agreement']:.3f}",
        f"{means['sqnr_db']:.1f}",
        f"{means['typical_db']:.1f}",
    ]


if __name__ == "__main__":
    main()
