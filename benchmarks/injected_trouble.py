"""Trouble made on purpose while a spin of 200 µs is measured: how often does stability.judge call it unstable?

    python benchmarks/injected_trouble.py clean step drift hog stop work --runs 100 -o OUT.json

A measurement is 5 processes, one after the other, of 12 blocks of 40 calls, 5 ms apart, pinned to one processor.

    clean   nothing is done to it; the spin waits for the clock, so that only interruptions show
    work    nothing is done to it; the spin counts instead, so that the machine's own speed shows as well
    step    the spin takes 10% longer from a random block on, between 20% and 80% of the run
    drift   the spin takes up to 10% longer, growing from block to block
    hog     another process computes on the same processor, from a random block of the first half on
    stop    the process is stopped (SIGSTOP) for a second, at a random moment within a random block

Each measurement is judged three times: by its times alone, with what the operating system says of the process, and
with the sensors of the machine. On a shared machine clean measurements are really disturbed: the kinds are counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from edgetl.benchmark.sampler import Sampler
from edgetl.benchmark.stability import BlockUse, Stability, judge
from edgetl.benchmark.usage import Usage

PROCESSES, BLOCKS, CALLS, SPIN_NS = 5, 12, 40, 200_000
TROUBLES = ("clean", "work", "step", "drift", "hog", "stop")
FORK = multiprocessing.get_context("fork")


def wait_for_the_clock(nanoseconds: int, _: int) -> None:
    end = time.perf_counter_ns() + nanoseconds
    while time.perf_counter_ns() < end:
        pass


def count(_: int, steps: int) -> None:
    for _ in range(steps):
        pass


def steps_of_a_spin() -> int:
    """How far this processor counts in 200 µs, by the fastest of many tries."""
    best = min(timed(count, 0, 10_000) for _ in range(200))
    return max(100, int(10_000 * SPIN_NS / best))


def timed(spin: Any, *arguments: int) -> int:
    began = time.perf_counter_ns()
    spin(*arguments)
    return time.perf_counter_ns() - began


def worker(pipe: Connection, processor: int, spin: Any, steps: int) -> None:
    """Time a block of calls for every number that comes: the length of the spin in ns."""
    os.sched_setaffinity(0, {processor})
    while (nanoseconds := pipe.recv()) is not None:
        starts, times = [], []
        usage = Usage()
        for _ in range(CALLS):
            began = time.perf_counter_ns()
            spin(nanoseconds, steps)
            times.append(time.perf_counter_ns() - began)
            starts.append(began)
        pipe.send((starts, times, usage.told()))


def compute(processor: int) -> None:
    os.sched_setaffinity(0, {processor})
    while True:
        pass


def stop_for_a_second(pid: int, after_s: float) -> None:
    time.sleep(after_s)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.0)
    os.kill(pid, signal.SIGCONT)


def measure(trouble: str, processor: int, steps: int, chance: random.Random, sampler: Sampler) -> dict[str, Any]:
    """One measurement, with its trouble."""
    total = PROCESSES * BLOCKS
    at = chance.randrange(total // 5, total * 4 // 5)
    hog_from, stop_at = chance.randrange(0, total // 2), chance.randrange(0, total)
    rows: list[tuple[Any, ...]] = []
    hog = None
    spin = count if trouble == "work" else wait_for_the_clock
    for process in range(PROCESSES):
        ours, theirs = FORK.Pipe()
        child = FORK.Process(target=worker, args=(theirs, processor, spin, steps), daemon=True)
        child.start()
        for block in range(BLOCKS):
            number = process * BLOCKS + block
            if trouble == "hog" and number == hog_from:
                hog = FORK.Process(target=compute, args=(processor,), daemon=True)
                hog.start()
                time.sleep(0.02)
            length = SPIN_NS
            if trouble == "step" and number >= at:
                length = SPIN_NS * 11 // 10
            if trouble == "drift":
                length = int(SPIN_NS * (1 + 0.1 * number / total))
            stopper = None
            if trouble == "stop" and number == stop_at:
                delay = chance.uniform(0, 0.9 * CALLS * SPIN_NS / 1e9)
                stopper = threading.Thread(target=stop_for_a_second, args=(child.pid, delay))
                stopper.start()
            ours.send(length)
            rows.append((process, block, *ours.recv()))
            if stopper is not None:
                stopper.join()
            sampler.poll()
            time.sleep(0.005)
        ours.send(None)
        child.join()
    if hog is not None:
        hog.kill()
        hog.join()
    return columns(rows)


def columns(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    process, block, starts, times, use = zip(*rows, strict=True)
    return {
        "calls": (
            np.concatenate(times), np.concatenate(starts), np.repeat(process, CALLS), np.repeat(block, CALLS),
        ),
        "use": BlockUse.of(use),
    }  # fmt: skip


def kinds(found: Stability) -> str:
    return "+".join(sorted({reason.kind for reason in found.reasons})) or "stable"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("troubles", nargs="+", choices=TROUBLES)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    processor = max(os.sched_getaffinity(0))
    steps = steps_of_a_spin()
    summary: dict[str, Any] = {}
    for trouble in arguments.troubles:
        said: dict[str, Counter[str]] = {"times": Counter(), "process": Counter(), "sensors": Counter()}
        costs, others, waited = [], [], []
        for _ in range(arguments.runs):
            with Sampler(period_s=0.2) as sampler:
                found = measure(trouble, processor, steps, chance, sampler)
            seen = sampler.conditions()
            costs.append(seen.reading_ms or 0.0)
            load = seen.load()
            others.append(load.others if load.others is not None else float("nan"))
            use = found["use"]
            waited.append(float(np.sum(use.waiting_ns) / np.sum(use.wall_ns)))
            said["times"][kinds(judge(*found["calls"]))] += 1
            said["process"][kinds(judge(*found["calls"], use=use))] += 1
            said["sensors"][kinds(judge(*found["calls"], use=use, conditions=seen))] += 1
        rates = {by: 1 - counts["stable"] / arguments.runs for by, counts in said.items()}
        summary[trouble] = {
            "runs": arguments.runs,
            "unstable": rates,
            "kinds": {by: dict(counts.most_common()) for by, counts in said.items()},
            "load_of_others": float(np.nanmedian(others)),
            "waiting": float(np.nanmedian(waited)),
            "reading_ms": float(np.median(costs)),
        }
        print(trouble, json.dumps(summary[trouble]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
