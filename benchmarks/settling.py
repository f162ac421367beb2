"""What the first calls of a block cost: engines that take turns, and each of them alone.

    python benchmarks/settling.py MODEL.onnx … [--threads 1]

Prints the time of each call of a block as a multiple of what the fifth and later ones take. A low percentile over the
blocks stands for a machine that does nothing else; on a quiet one the median is the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edgetl.benchmark.feeds import Feeds
from edgetl.benchmark.sampling import Plan, Sampled, measure
from edgetl.benchmark.things import thing_at

_SETTLED = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("things", type=Path, nargs="+", help="whatever `edgetl bench` takes")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, help="for dynamic dimensions")
    parser.add_argument("--quantile", type=float, default=0.2)
    given = parser.parse_args()
    plan = Plan(samples=given.samples, processes=given.processes, threads=given.threads)
    things, feeds = [thing_at(path) for path in given.things], Feeds(size=given.size)
    for each in measure(things, feeds, plan):
        print("in turn", line(each, given.quantile))
    for thing in things:
        (each,) = measure([thing], feeds, plan)
        print("alone  ", line(each, given.quantile))


def line(sampled: Sampled, quantile: float) -> str:
    """One thing: the settled time, and each place of a block as a multiple of it."""
    keep, times = ~sampled.warmup, sampled.times_ns / 1e6
    settled = np.quantile(times[keep & (sampled.place >= _SETTLED)], quantile)
    places = [np.quantile(times[keep & (sampled.place == place)], quantile) for place in np.unique(sampled.place)]
    return f"{sampled.thing.name}: {settled:.3f} ms; " + " ".join(f"{found / settled:.2f}" for found in places)


if __name__ == "__main__":
    main()
