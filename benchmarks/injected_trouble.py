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
with the sensors of the machine. On a shared machine clean measurements are really disturbed; so the figures are given
over all runs, and over those in which the process waited for a processor in less than 1% of the time and the hypervisor
took less than 1%. With --clock processor the spin and its times are on the thread's own clock, which stands still while
another process has the processor: what clean, step and drift are on a machine that is never quiet (hog and stop do not
show on that clock).
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
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from edgetl.benchmark.sampler import Sampler
from edgetl.benchmark.sensors.linux import allowed_cpus
from edgetl.benchmark.sensors.load import parse_stat
from edgetl.benchmark.stability import BlockUse, Stability, judge
from edgetl.benchmark.usage import Usage

PROCESSES, BLOCKS, CALLS, SPIN_NS = 5, 12, 40, 200_000
TROUBLES = ("clean", "work", "step", "drift", "hog", "stop")
CLOCKS = {"wall": time.perf_counter_ns, "processor": time.thread_time_ns}
FORK = multiprocessing.get_context("fork")


Clock = Callable[[], int]


def wait_for_the_clock(nanoseconds: int, _: int, clock: Clock) -> None:
    end = clock() + nanoseconds
    while clock() < end:
        pass


def count(_: int, steps: int, __: Clock) -> None:
    for _ in range(steps):
        pass


def steps_of_a_spin() -> int:
    """How far this processor counts in 200 µs, by the fastest of many tries."""
    best = min(timed(10_000) for _ in range(200))
    return max(100, int(10_000 * SPIN_NS / best))


def timed(steps: int) -> int:
    began = time.perf_counter_ns()
    count(0, steps, time.perf_counter_ns)
    return time.perf_counter_ns() - began


def worker(pipe: Connection, processor: int, spin: Callable[[int, int, Clock], None], steps: int, clock: Clock) -> None:
    """Time a block of calls for every number that comes: the length of the spin in ns."""
    os.sched_setaffinity(0, {processor})
    while (nanoseconds := pipe.recv()) is not None:
        starts, times = [], []
        usage = Usage()
        for _ in range(CALLS):
            starts.append(time.perf_counter_ns())
            began = clock()
            spin(nanoseconds, steps, clock)
            times.append(clock() - began)
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


def measure(
    trouble: str, processor: int, steps: int, chance: random.Random, sampler: Sampler, clock: Clock
) -> dict[str, Any]:
    """One measurement, with its trouble."""
    total = PROCESSES * BLOCKS
    at = chance.randrange(total // 5, total * 4 // 5)
    hog_from, stop_at = chance.randrange(0, total // 2), chance.randrange(0, total)
    rows: list[tuple[Any, ...]] = []
    hog = None
    spin = count if trouble == "work" else wait_for_the_clock
    for process in range(PROCESSES):
        ours, theirs = FORK.Pipe()
        child = FORK.Process(target=worker, args=(theirs, processor, spin, steps, clock), daemon=True)
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
    return columns(rows, own_clock=clock is not time.perf_counter_ns)


def columns(rows: list[tuple[Any, ...]], *, own_clock: bool) -> dict[str, Any]:
    process, block, starts, times, use = zip(*rows, strict=True)
    if own_clock:  # another clock in every process: blocks follow one another, 5 ms apart
        pauses = np.zeros((len(rows), CALLS))
        pauses[:, 0] = 5e6
        lengths = np.array(times, float)
        starts = (np.cumsum(pauses + lengths).reshape(lengths.shape) - lengths).astype(np.int64)
    return {
        "calls": (
            np.concatenate(times), np.concatenate(starts), np.repeat(process, CALLS), np.repeat(block, CALLS),
        ),
        "use": BlockUse.of(use),
    }  # fmt: skip


def kinds(found: Stability) -> str:
    return "+".join(sorted({reason.kind for reason in found.reasons})) or "stable"


def one_run(trouble: str, processor: int, steps: int, chance: random.Random, clock: Clock) -> dict[str, Any]:
    """Measure, and judge three times."""
    with Sampler(period_s=0.2) as sampler:
        found = measure(trouble, processor, steps, chance, sampler, clock)
    seen, use = sampler.conditions(), found["use"]
    load = seen.load()
    waiting = float(np.sum(use.waiting_ns) / np.sum(use.wall_ns))
    return {
        "times": kinds(judge(*found["calls"])),
        "process": kinds(judge(*found["calls"], use=use)),
        "sensors": kinds(judge(*found["calls"], use=use, conditions=seen)),
        "waiting": waiting,
        "stolen": load.stolen or 0.0,
        "others": load.others if load.others is not None else float("nan"),
        "reading_ms": seen.reading_ms or 0.0,
        "longest_ms": float(found["calls"][0].max()) / 1e6,
        "undisturbed": waiting < 0.01 and (load.stolen or 0.0) < 0.01,
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    if not runs:
        return {"runs": 0}
    counts = {by: Counter(run[by] for run in runs) for by in ("times", "process", "sensors")}
    stopped = [run for run in runs if run["longest_ms"] >= 900]
    found: dict[str, Any] = {
        "runs": len(runs),
        "with_a_call_of_0.9_s": len(stopped),
        "of_these_called_a_stall": sum("stall" in run["times"] for run in stopped),
    }
    for by, said in counts.items():
        found[by] = {"unstable": round(1 - said["stable"] / len(runs), 4), "kinds": dict(said.most_common())}
    medians = {
        key: float(np.nanmedian([run[key] for run in runs])) for key in ("waiting", "stolen", "others", "reading_ms")
    }
    return {**found, **{key: round(value, 4) for key, value in medians.items()}}


def quiet_moment(idle: float, end: float) -> bool:
    """Wait until the processors were idle for this share of half a second; False where that did not come in time."""
    while idle > 0:
        before = parse_stat(Path("/proc/stat").read_text(encoding="ascii"), allowed_cpus())
        time.sleep(0.5)
        after = parse_stat(Path("/proc/stat").read_text(encoding="ascii"), allowed_cpus())
        passed = {key: after[key] - before[key] for key in after}
        if passed["idle"] >= idle * sum(passed.values()):
            return True
        if time.monotonic() > end:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("troubles", nargs="+", choices=TROUBLES)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=600.0, help="per trouble, at most")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--idle", type=float, default=0.0, help="begin when the processors were idle for this share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    processor = max(os.sched_getaffinity(0))
    steps = steps_of_a_spin()
    summary: dict[str, Any] = {}
    for trouble in arguments.troubles:
        runs = []
        end = time.monotonic() + arguments.seconds
        while len(runs) < arguments.runs and time.monotonic() < end:
            if not quiet_moment(arguments.idle, end):
                break
            runs.append(one_run(trouble, processor, steps, chance, CLOCKS[arguments.clock]))
        summary[trouble] = {
            "all": summarise(runs),
            "undisturbed": summarise([run for run in runs if run["undisturbed"]]),
        }
        print(trouble, json.dumps(summary[trouble]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
