"""How often the intervals and bounds of bootstrapped metrics hold: 1,000 simulated test sets for each row.

In each, a reference and an engine answer the same samples; their true difference is that of some two million samples.
Counted are the two-sided 95% interval, on which side it misses, the one-sided 95% bound of the gate (which lets a drop
that is just too large pass as often as it fails), and how often an engine passes whose true drop is smaller than what
is allowed by ``--margin``. The figures are in docs/parity.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetl.metrics import metric
from edgetl.parity.bootstrap import paired_drop

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Population:
    """What test sets are drawn from."""

    metric: str
    shares: tuple[float, ...]
    """Of the classes; of several labels, of the samples that have each; of faces: samples of one, dimensions."""
    signal: float
    """By how much the output of the right class is higher, in standard deviations of the noise."""
    noise: float
    """Standard deviation of what the engine adds."""
    loss: float = 0.0
    """Share of the signal that the engine loses."""
    own_noise: float = 0.0
    """Of the reference, as that of the engine: where they are the same, the two are equally good."""

    def draw(self, random: np.random.Generator, n: int) -> Case:
        if self.metric == "tar":
            each, width = int(self.shares[0]), int(self.shares[1])
            labels = np.repeat(np.arange(n // each), each)
            centre = self.signal * random.normal(size=(n // each, width))[labels]
            exact = centre + random.normal(size=centre.shape)
            reference = exact + self.own_noise * random.normal(size=centre.shape)
            return reference, exact - self.loss * centre + self.noise * random.normal(size=centre.shape), labels
        if self.metric == "map":
            labels = (random.random((n, len(self.shares))) < self.shares).astype(np.int64)
            mark = labels.astype(float)
        else:
            labels = random.choice(len(self.shares), n, p=self.shares)
            mark = np.eye(len(self.shares))[labels]
        exact = self.signal * mark + random.normal(size=mark.shape)
        reference = exact + self.own_noise * random.normal(size=mark.shape)
        outputs = exact - self.loss * self.signal * mark + self.noise * random.normal(size=mark.shape)
        return reference, outputs, labels

    def truth(self, size: int = 100_000, parts: int = 20) -> float:
        """The true drop; of faces, of fewer samples, whose pairs are many."""
        if self.own_noise == self.noise and not self.loss:
            return 0.0
        size, parts = (1500, 60) if self.metric == "tar" else (size, parts)
        measured = metric(self.metric)
        found = []
        for part in range(parts):
            reference, outputs, labels = self.draw(np.random.default_rng([7, part]), size)
            found.append(measured(reference, labels) - measured(outputs, labels))
        return float(np.mean(found))


THREE, FIVE = (1 / 3,) * 3, (0.5, 0.25, 0.15, 0.07, 0.03)
ROWS: dict[str, tuple[Population, int]] = {
    "macro-F1, 3 even classes": (Population("macro-f1", THREE, 2.5, 0.3), 300),
    "macro-F1, 3 even classes, a worse engine": (Population("macro-f1", THREE, 2.5, 0.5, 0.1), 1000),
    "macro-F1, 5 uneven classes": (Population("macro-f1", FIVE, 2.5, 0.3), 500),
    "macro-F1, 5 uneven classes, a worse engine": (Population("macro-f1", FIVE, 2.5, 0.5, 0.1), 1000),
    "AUC, even": (Population("auc", (0.5, 0.5), 1.0, 0.3), 300),
    "AUC, even, a worse engine": (Population("auc", (0.5, 0.5), 1.0, 0.7), 300),
    "AUC, 5% positive": (Population("auc", (0.95, 0.05), 1.0, 0.5), 1000),
    "AUC, 4 classes": (Population("auc", (0.4, 0.3, 0.2, 0.1), 1.0, 0.5), 400),
    "mAP, 3 labels": (Population("map", (0.3, 0.2, 0.1), 1.5, 0.5), 500),
    "TAR at FAR 1%, 60 people": (Population("tar", (6, 16), 1.2, 0.5), 360),
    "macro-F1, 3 even classes, an equal engine": (Population("macro-f1", THREE, 2.5, 0.3, own_noise=0.3), 1000),
    "macro-F1, 5 uneven classes, an equal engine": (Population("macro-f1", FIVE, 2.5, 0.3, own_noise=0.3), 2000),
    "AUC, even, an equal engine": (Population("auc", (0.5, 0.5), 1.0, 0.3, own_noise=0.3), 600),
    "mAP, 3 labels, an equal engine": (Population("map", (0.3, 0.2, 0.1), 1.5, 0.3, own_noise=0.3), 1000),
    "TAR at FAR 1%, 200 people, an equal engine": (Population("tar", (6, 16), 1.2, 0.1, own_noise=0.1), 1200),
}


@dataclass
class Counts:
    """Of one row."""

    covered: int = 0
    too_low: int = 0
    """The true drop is above the interval."""
    too_high: int = 0
    bound_held: int = 0
    passed: int = 0


def simulate(population: Population, n: int, cases: int, resamples: int, margin: float) -> tuple[float, Counts]:
    true, counts, measured = population.truth(), Counts(), metric(population.metric)
    for case in range(cases):
        reference, outputs, labels = population.draw(np.random.default_rng([1, case]), n)
        groups = labels if measured.by_identity else None
        found = paired_drop(
            measured, reference, outputs, labels, confidence=0.95, resamples=resamples, seed=case, groups=groups
        )
        low, high = found.interval
        counts.covered += low <= true <= high
        counts.too_low += high < true
        counts.too_high += low > true
        counts.bound_held += found.upper >= true
        counts.passed += found.upper <= true + margin
    return true, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"all, or some of: {'; '.join(ROWS)}")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--margin", type=float, default=0.03)
    parser.add_argument("--json", type=Path, help="add the rows to this file")
    arguments = parser.parse_args()
    document = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    print(
        "| metric | samples | true drop | 95% interval holds | misses below | above | 95% bound holds |"
        f" passes with {100 * arguments.margin:g} points more allowed | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.rows or ROWS:
        population, n = ROWS[name]
        start = time.perf_counter()
        true, counts = simulate(population, n, arguments.cases, arguments.resamples, arguments.margin)
        shares = {key: value / arguments.cases for key, value in vars(counts).items()}
        document[name] = {"samples": n, "true_drop": true, "cases": arguments.cases, **shares}
        print(
            f"| {name} | {n} | {100 * true:.2f} | {shares['covered']:.1%} | {shares['too_high']:.1%} |"
            f" {shares['too_low']:.1%} | {shares['bound_held']:.1%} | {shares['passed']:.1%} |"
            f" {time.perf_counter() - start:.0f} |",
            flush=True,
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
