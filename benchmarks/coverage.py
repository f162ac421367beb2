"""How often the intervals and bounds of parity hold: 1,000 simulated test sets for each row.

In each, a reference and an engine answer the same samples; of bootstrapped metrics their true difference is that of
some two million samples. Counted are the two-sided 95% interval, on which side it misses, the one-sided 95% bound of
the gate (which lets a drop that is just too large pass as often as it fails), and how often an engine passes whose true
drop is smaller than what is allowed by ``--margin``. ``--table faces`` shows what the intervals of faces are made of;
``--table top-1`` counts for top-1 what is counted for the others, and ``--table groups`` where samples belong
together; ``--table sequential`` counts the samples that the test which may stop early looks at, beside those that the
fixed test needs; and ``--table latency`` is about the intervals of latencies' percentiles. The figures are in
docs/parity.md and docs/benchmarking.md.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from edgetl.benchmark.summary import PERCENTILES, summarise
from edgetl.metrics import metric, resample_weights
from edgetl.metrics.identities import linear_drop
from edgetl.metrics.influences import true_accept_influences
from edgetl.parity.bootstrap import grouped_drop, paired_drop
from edgetl.parity.bounds import rules_out, score_bound
from edgetl.parity.sequential import Sequential

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
        """The true drop; of faces, the mean of many test sets of fewer samples, whose pairs are many."""
        if self.own_noise == self.noise and not self.loss:
            return 0.0
        size, parts = (1500, 600) if self.metric == "tar" else (size, parts)
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
    "AUC, 3% positive, mostly far": (Population("auc", (0.97, 0.03), 3.0, 0.2, 0.3), 1000),
    "AUC, 5% positive, mostly far": (Population("auc", (0.95, 0.05), 3.0, 0.5, 0.2), 300),
    "AUC, 4% positive, few": (Population("auc", (0.96, 0.04), 2.0, 0.5, 0.2), 200),
    "AUC, 3 classes, the smallest 3%": (Population("auc", (0.6, 0.37, 0.03), 3.0, 0.5, 0.2), 300),
    "mAP, 3 labels": (Population("map", (0.3, 0.2, 0.1), 1.5, 0.5), 500),
    "mAP, 3 labels, two of them rare": (Population("map", (0.3, 0.05, 0.03), 2.0, 0.5, 0.2), 300),
    "TAR at FAR 1%, 30 people": (Population("tar", (6, 16), 1.2, 0.5), 180),
    "TAR at FAR 1%, 30 people, a better engine": (Population("tar", (6, 16), 1.2, 0.25), 180),
    "TAR at FAR 1%, 60 people": (Population("tar", (6, 16), 1.2, 0.5), 360),
    "TAR at FAR 1%, 60 people, a better engine": (Population("tar", (6, 16), 1.2, 0.2), 360),
    "TAR at FAR 1%, 200 people": (Population("tar", (6, 16), 1.2, 0.5), 1200),
    "TAR at FAR 1%, 200 people, a better engine": (Population("tar", (6, 16), 1.2, 0.1), 1200),
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


# --- faces: what drops are apart by, and what an interval takes them to be -------------------------------------------

FACES = ((30, 0.5), (30, 0.25), (60, 0.5), (60, 0.2), (200, 0.5), (200, 0.1))
"""People, and what the engine adds."""


def faces(cases: int) -> None:
    """Standard deviations of the drops of test sets, and the standard errors that each of three ways makes of one."""
    print("| people | drops of test sets | people drawn again | its linear part | without what pairs have too often |")
    print("|---|---|---|---|---|")
    measured = metric("tar")
    for people, noise in FACES:
        population, found = Population("tar", (6, 16), 1.2, noise), []
        for case in range(cases):
            random = np.random.default_rng([1, case])
            reference, outputs, labels = population.draw(random, 6 * people)
            models = [measured.weighted(each, labels) for each in (reference, outputs)]
            once, drawn = np.ones((len(labels), 1)), resample_weights(random, labels, 200)
            drop = float((models[0](once) - models[1](once))[0])
            told = [true_accept_influences(each, labels) for each in (reference, outputs)]
            parts = [each for each in told if each is not None]  # all: the fewest are 30 people
            own, shared = parts[0].own - parts[1].own, parts[0].shared - parts[1].shared
            whole, corrected = own + 2 * shared.sum(1) / (people - 2), linear_drop(drop, *parts).influence
            errors = [np.square(each).sum() / (people * (people - 1)) for each in (whole, corrected)]
            found.append((drop, np.nanvar(models[0](drawn) - models[1](drawn)), *errors))
        values = np.array(found)
        means = [values[:, 0].std(), *np.sqrt(values[:, 1:].mean(0))]
        print(f"| {people}, noise {noise:g} | " + " | ".join(f"{100 * each:.2f}" for each in means) + " |", flush=True)


# --- top-1: Tango's bounds and the exact test ------------------------------------------------------------------------

TOP1 = ((300, 0.0), (300, 0.02), (1000, 0.0), (1000, 0.02), (1000, 0.05), (2000, 0.03), (5000, 0.01), (5000, 0.05))
"""Samples, and the share of them on which just one of the two is right beside what the drop needs."""
MAX_DROP, CONFIDENCE = 0.01, 0.95


def pairs(random: np.random.Generator, drop: float, discordant: float, n: int, cases: int) -> np.ndarray:
    """(cases, 2): samples that only the reference, and that only the engine gets right."""
    chances = (discordant + drop) / 2, (discordant - drop) / 2
    return random.multinomial(n, [*chances, 1 - discordant], size=cases)[:, :2]


_rules_out = cache(rules_out)


def share(found: np.ndarray, what: Callable[[int, int], bool]) -> float:
    """Of test sets, (cases, 2) losses and wins, of which something is so."""
    return float(np.mean([what(worse, better) for worse, better in found.tolist()]))


def passes(found: np.ndarray, n: int) -> float:
    """Share of test sets on which the gate passes."""
    return share(found, lambda worse, better: _rules_out(MAX_DROP, worse, better, n, CONFIDENCE))


def fails(found: np.ndarray, n: int) -> float:
    """Share of test sets on which the gate fails: the drop is shown to be larger."""
    return share(found, lambda worse, better: _rules_out(-MAX_DROP, better, worse, n, CONFIDENCE))


def covers(drop: float, found: np.ndarray, n: int) -> tuple[float, float, float]:
    """Of the two-sided interval: how often it holds the drop, is above it, and is below it."""
    above = share(found, lambda worse, better: _outside(-drop, better, worse, n))
    below = share(found, lambda worse, better: _outside(drop, worse, better, n))
    return 1.0 - above - below, above, below


@cache
def _outside(drop: float, worse: int, better: int, n: int) -> bool:
    """Whether the upper end of the two-sided interval is below a drop."""
    one_sided = (1 + CONFIDENCE) / 2
    return score_bound(worse, better, n, one_sided) < drop and _rules_out(drop, worse, better, n, CONFIDENCE)


def top1(cases: int) -> None:
    """Coverage at a drop of ``max_drop``, the gate there (where it must not pass), and for an engine without a drop."""
    print(
        "| samples | only one is right | the 95% interval holds 1 point | is above it | is below it |"
        " the gate passes at a drop of 1 point | fails there | passes an equal engine |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row, (n, more) in enumerate(TOP1):
        random = np.random.default_rng([11, row])
        found = pairs(random, MAX_DROP, MAX_DROP + more, n, cases)
        equal = pairs(random, 0.0, more, n, cases)
        held, above, below = covers(MAX_DROP, found, n)
        print(
            f"| {n:,} | {MAX_DROP + more:.0%} | {held:.1%} | {above:.1%} | {below:.1%} | {passes(found, n):.1%} |"
            f" {fails(found, n):.1%} | {passes(equal, n):.1%} |",
            flush=True,
        )


# --- samples that belong together ------------------------------------------------------------------------------------

GROUPED = ((100, 10, 1.0), (300, 10, 1.0), (300, 10, 0.3), (1000, 3, 1.0), (1000, 3, 0.3))
"""Groups, samples of each on average (from one to twice as many but one), and which share of a group's samples changes
where any does."""
_EITHER = 0.02
"""Share of the samples on which just one of the two is right."""


def grouped(cases: int) -> None:
    """Top-1 of groups at a drop of ``max_drop``: with each sample for itself, and with groups drawn as a whole."""
    print(
        "| groups | samples of each | that change together | samples: the 95% interval holds | the gate passes |"
        " groups: the 95% interval holds | the gate passes |"
    )
    print("|---|---|---|---|---|---|---|")
    for row, (groups, each, together) in enumerate(GROUPED):
        random = np.random.default_rng([13, row])
        counts = Counter[str]()
        for seed in range(cases):
            losses, units = group_losses(random, groups, each, together)
            n, worse, better = len(losses), int((losses > 0).sum()), int((losses < 0).sum())
            below, above = _outside(MAX_DROP, worse, better, n), _outside(-MAX_DROP, better, worse, n)
            passed = rules_out(MAX_DROP, worse, better, n, CONFIDENCE)
            found = grouped_drop(losses, units, confidence=CONFIDENCE, resamples=1000, seed=seed)
            counts["held"] += not below and not above
            counts["passed"] += passed
            counts["held together"] += not (below and found.interval[1] < MAX_DROP) and not (
                above and found.interval[0] > MAX_DROP
            )
            counts["passed together"] += passed and found.upper <= MAX_DROP
        shares = " | ".join(
            f"{counts[name] / cases:.1%}" for name in ("held", "passed", "held together", "passed together")
        )
        print(f"| {groups:,} | {each} | {together:.0%} | {shares} |", flush=True)


def group_losses(random: np.random.Generator, groups: int, each: int, together: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses with a drop of ``max_drop``, and which group each is of."""
    sizes = random.integers(1, 2 * each, groups)
    units = np.repeat(np.arange(groups), sizes)
    chance = random.random(groups)
    worse, better = (_EITHER + MAX_DROP) / 2 / together, (_EITHER - MAX_DROP) / 2 / together
    sign = np.where(chance < worse, 1, np.where(chance < worse + better, -1, 0))
    return sign[units] * (random.random(len(units)) < together), units


# --- the test that may stop early ------------------------------------------------------------------------------------

ENGINES = ((0.0, 0.0), (0.0, 0.002), (0.0, 0.01), (0.0, 0.03), (0.0, 0.1), (0.005, 0.02), (0.02, 0.04), (0.03, 0.05),
         (0.05, 0.06), (0.03, 0.03), (0.02, 0.1))  # fmt: skip
"""Drop, and the share of samples on which just one is right."""
BOUND = (0.01, 0.03, 0.1)
"""The same share, at a drop of just ``max_drop``."""
_MOST = 4
"""A sequential test gets so many times the samples that the fixed one needs for a power of 95%."""
_FAR = 3
"""A drop of so many times what is allowed, or more, is a clear one; so is none at all."""


def fixed_samples(drop: float, discordant: float, power: float) -> int:
    """The fewest samples, to 1%, on which the fixed test decides as it should with a probability."""
    decides = passes if drop < MAX_DROP else fails
    low, high = 0, 1 << 17
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        found = pairs(np.random.default_rng([12, middle]), drop, discordant, middle, 4000)
        low, high = (low, middle) if decides(found, middle) >= power else (middle, high)
    return high


def sequential_cases(drop: float, discordant: float, most: int, cases: int, seed: int) -> tuple[Counter[str], float]:
    """Outcomes, and the mean number of samples that were looked at."""
    random = np.random.default_rng(seed)
    worse, both = (discordant + drop) / 2, discordant
    outcomes: Counter[str] = Counter()
    looked_at = 0
    for _ in range(cases):
        chance = random.random(most)
        test = Sequential(MAX_DROP, CONFIDENCE)
        outcomes[test.add(np.where(chance < worse, 1, np.where(chance < both, -1, 0)).tolist())] += 1
        looked_at += test.samples
    return outcomes, looked_at / cases


def least_samples(drop: float, discordant: float) -> float:
    """What a test that may stop early needs on average at least, whoever makes it.

    One that errs in 5% of the cases at most and always decides at this drop needs log 20 divided by the relative
    entropy of the samples to those of the nearest engine for which the decision would be wrong (Wald 1945; Garivier and
    Kaufmann 2016, COLT, for hypotheses of many points). That is what the best stake for this very engine earns.
    """
    side = 1.0 if drop < MAX_DROP else -1.0
    payoff = side * (MAX_DROP - np.array([1.0, 0.0, -1.0]))
    chances = np.array([(discordant + drop) / 2, 1 - discordant, (discordant - drop) / 2])
    stakes = np.linspace(0, 1 / (1 - side * MAX_DROP), 20_001)[:-1]
    return float(np.log(20) / (np.log1p(np.outer(stakes, payoff)) @ chances).max())


def sequential(cases: int) -> None:
    """Mean number of samples against that of the fixed test, and how often either answer is wrong."""
    print(
        "| true drop | only one is right | is the answer clear | fixed: samples for 80% power | for 95% | for 99% |"
        " sequential: at least |"
        " mean | of that for 80% | for 95% | for 99% | passes | fails | undecided |"
    )
    print("|---" * 14 + "|")
    for row, (drop, discordant) in enumerate((*ENGINES, *((MAX_DROP, share) for share in BOUND))):
        decided = drop != MAX_DROP
        clear = "the limit itself" if not decided else "clear" if not drop or drop >= _FAR * MAX_DROP else "not clear"
        fixed = [fixed_samples(drop, discordant, power) for power in (0.8, 0.95, 0.99)] if decided else []
        found, mean = sequential_cases(drop, discordant, _MOST * fixed[1] if decided else 5000, cases, row)
        needs = f"– | – | – | – | {mean:,.0f} of 5,000 | – | – | –"
        if decided:
            cells = [f"{n:,}" for n in fixed], [f"{mean / n:.0%}" for n in fixed]
            needs = " | ".join([*cells[0], f"{least_samples(drop, discordant):,.0f}", f"{mean:,.0f}", *cells[1]])
        shares = " | ".join(f"{found[name] / cases:.1%}" for name in ("passed", "failed", "undecided"))
        print(f"| {100 * drop:g} | {100 * discordant:g}% | {clear} | {needs} | {shares} |", flush=True)


# --- latencies -------------------------------------------------------------------------------------------------------

SHARES = ("p50", "p90", "p99")
RUNS = (
    (0.0, 0.0, "normal"), (0.7, 0.0, "normal"), (0.7, 0.01, "normal"), (0.7, 0.02, "normal"), (0.9, 0.02, "normal"),
    (0.7, 0.05, "normal"), (0.0, 0.0, "exponential"), (0.7, 0.02, "exponential"), (0.7, 0.05, "exponential"),
    (0.5, 0.1, "two kinds"),
)  # fmt: skip
"""How much a call remembers of the one before, by how much processes differ, and what is distributed how: calls as a
normal or an exponential distribution, by 0.05, and processes as a normal one; or calls as a normal one, and a third of
the processes is slower."""
PROCESSES, BLOCKS, PER_BLOCK, NOISE = 5, 14, 10, 0.05


def calls(
    random: np.random.Generator, memory: float, between: float, kind: str, processes: int = PROCESSES
) -> np.ndarray:
    """(processes, BLOCKS · PER_BLOCK) logarithms of times: as many as a bench makes."""
    found = random.normal(0, np.sqrt(1 - memory**2), (processes, BLOCKS * PER_BLOCK))
    found[:, 0] = random.normal(0, 1, processes)
    for index in range(1, BLOCKS * PER_BLOCK):
        found[:, index] += memory * found[:, index - 1]
    if kind == "exponential":
        found = -np.log(np.vectorize(math.erfc)(found / math.sqrt(2)) / 2)
    places = random.random(processes) < 1 / 3 if kind == "two kinds" else random.normal(0, 1, processes)
    return NOISE * found + between * places[:, None]


def latency(cases: int) -> None:
    """How often the 95% intervals of percentiles hold those of all processes that there could be."""
    process = np.repeat(np.arange(PROCESSES), BLOCKS * PER_BLOCK)
    block = np.tile(np.repeat(np.arange(BLOCKS), PER_BLOCK), PROCESSES)
    print(
        "| a call remembers | processes differ by | distribution | "
        + " | ".join(f"{name} | too low | too high" for name in SHARES)
        + " |"
    )
    print("|---|---|---|" + "---|---|---|" * len(SHARES))
    for row, run in enumerate(RUNS):
        truth = np.quantile(
            calls(np.random.default_rng([14, row]), 0.0, *run[1:], processes=30_000),
            [PERCENTILES[name] for name in SHARES],
        )
        low: Counter[str] = Counter()
        high: Counter[str] = Counter()
        for case in range(cases):
            logs = calls(np.random.default_rng([13, row, case]), *run)
            times = np.rint(1e7 * np.exp(logs)).astype(np.int64).reshape(-1)
            found = summarise(times, process, block, draws=200)
            for name, wanted in zip(SHARES, 10.0 * np.exp(truth), strict=True):
                lower, upper = found.interval(name) or (0.0, np.inf)
                low[name] += upper < wanted
                high[name] += lower > wanted
        cells = [
            f"{1 - (low[name] + high[name]) / cases:.1%} | {low[name] / cases:.1%} | {high[name] / cases:.1%}"
            for name in SHARES
        ]
        print(f"| {run[0]:g} | {run[1]:.0%} | {run[2]} | " + " | ".join(cells) + " |", flush=True)


TABLES: dict[str, Callable[[int], None]] = {
    "faces": faces, "top-1": top1, "groups": grouped, "sequential": sequential, "latency": latency
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"all, or some of: {'; '.join(ROWS)}".replace("%", "%%"))
    parser.add_argument("--table", choices=["bootstrap", *TABLES], default="bootstrap")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--margin", type=float, default=0.03)
    parser.add_argument("--json", type=Path, help="add the rows to this file")
    arguments = parser.parse_args()
    if arguments.table in TABLES:
        TABLES[arguments.table](arguments.cases)
        return
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
