"""Where the time of one answer goes: decode, preprocess, copies, compute, postprocess."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.benchmark.scenarios import no_collection
from edgetl.errors import UsageError
from edgetl.runtime.bundle import Predictor

STAGES = ("decode", "preprocess", "host-to-device", "compute", "device-to-host", "postprocess")
"""In the order in which an input passes them."""

TOLERANCE = 0.02
"""The stages must add up to the whole within this share of it."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Times of the stages of one answer, and of the whole, which was measured by itself."""

    stages_ns: Mapping[str, int]
    """Stage → mean over the middle half of the answers, in their order. A stage that the engine does not have is not
    there."""
    whole_ns: int
    """The same of answers whose stages were not looked at."""
    samples: int
    """Answers of each kind."""

    @property
    def sum_ns(self) -> int:
        """Of the stages."""
        return sum(self.stages_ns.values())

    @property
    def gap(self) -> float:
        """By how much the stages miss the whole, as a share of it; above 0 where they are too long."""
        return self.sum_ns / self.whole_ns - 1.0

    @property
    def adds_up(self) -> bool:
        """Whether the stages add up to the whole within 2%."""
        return abs(self.gap) <= TOLERANCE

    @property
    def note(self) -> str:
        """What to make of stages that do not add up; empty where they do."""
        if self.adds_up:
            return ""
        return (
            f"the stages add up to {self.sum_ns / 1e6:.3f} ms, and the whole takes {self.whole_ns / 1e6:.3f} ms"
            f" ({self.gap:+.1%}): the machine was not quiet, or there are too few samples"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "stages_ms": {name: round(value / 1e6, 6) for name, value in self.stages_ns.items()},
            "shares": {name: round(value / max(self.sum_ns, 1), 4) for name, value in self.stages_ns.items()},
            "sum_ms": round(self.sum_ns / 1e6, 6),
            "whole_ms": round(self.whole_ns / 1e6, 6),
            "gap": round(self.gap, 4),
            "adds_up": self.adds_up,
            "note": self.note,
            "samples": self.samples,
        }


def add_up(staged_ns: Sequence[Mapping[str, int]], whole_ns: Sequence[int]) -> Stages:
    """Summarise measured answers by the middle half of each kind, taken by their whole time.

    A mean adds up, which medians of stages do not, and the middle half (the interquartile mean) does not mind the
    answers in which something else had the processor.

    Args:
        staged_ns: Of every answer whose stages were looked at: stage → time. All have the same stages.
        whole_ns: Of every answer whose stages were not.

    Raises:
        UsageError: There is none, they have different stages, or a stage that nobody knows.
    """
    if not staged_ns or not whole_ns:
        raise UsageError("stages need at least one measured answer")
    there = set(staged_ns[0])
    if unknown := sorted(there - set(STAGES)):
        raise UsageError(f"there is no stage '{unknown[0]}'; there are {', '.join(STAGES)}")
    if any(set(one) != there for one in staged_ns):
        raise UsageError("answers with different stages cannot be summarised together")
    names = [name for name in STAGES if name in there]
    times = np.array([[one[name] for name in names] for one in staged_ns], dtype=np.float64)
    means = times[_middle_half(times.sum(axis=1))].mean(axis=0)
    whole = np.array(whole_ns, dtype=np.float64)
    return Stages(
        stages_ns={name: round(float(mean)) for name, mean in zip(names, means, strict=True)},
        whole_ns=max(round(float(whole[_middle_half(whole)].mean())), 1),
        samples=min(len(staged_ns), len(whole_ns)),
    )


def _middle_half(times: NDArray[np.float64]) -> NDArray[np.intp]:
    """Places of the times that are neither in the lowest nor in the highest quarter."""
    cut = len(times) // 4
    return np.argsort(times, kind="stable")[cut : len(times) - cut]


def measure_stages(
    predictor: Predictor,
    source: Path | bytes | str,
    *,
    samples: int = 200,
    warmup: int = 10,
    seed: int = 0,
    now: Callable[[], int] = time.perf_counter_ns,
) -> Stages:
    """Time the stages of a bundle's answer to one raw input, and the whole, in turn and in random order.

    The input is the same every time, so a file of it lies in the system's cache: decoding is measured, a disk is not.

    Args:
        predictor: From :meth:`edgetl.runtime.bundle.Bundle.open`.
        source: A file, its bytes, a text, or a row.
        samples: Answers with the stages, and as many without.
        warmup: Answers of each before the first that counts.
        seed: Of the order.
        now: The clock, in nanoseconds.

    Raises:
        UsageError: No samples, or a negative warm-up.
        DataError: The input cannot be read.
    """
    if samples < 1 or warmup < 0:
        raise UsageError(f"stages need at least one sample, and no negative warm-up; given: {samples}, {warmup}")
    order = random.Random(seed)
    staged: list[Mapping[str, int]] = []
    whole: list[int] = []
    with no_collection():
        for at in range(-warmup, samples):
            for looked_at in order.sample((True, False), 2):
                began = now()
                if looked_at:
                    found = predictor.answer_in_stages(source, now)[1]
                else:
                    predictor.answer(source)
                    ended = now()
                if at >= 0 and looked_at:
                    staged.append(found)
                elif at >= 0:
                    whole.append(ended - began)
    return add_up(staged, whole)
