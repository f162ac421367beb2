"""benchmarks/other_timers.py: what it reads of other tools, and what it says of rounds."""

from __future__ import annotations

import math
import sys

import numpy as np
import other_timers
import pytest


@pytest.mark.parametrize(
    ("line", "ms"), [("[ INFO ]    Median:        0.97 ms", 0.97), ("[ INFO ]    Median:        962.21 us", 0.96221)]
)
def test_a_median_below_a_millisecond_is_told_in_microseconds(line: str, ms: float) -> None:
    assert other_timers.median_ms(f"[ INFO ] Latency:\n{line}\n[ INFO ]    Average:       1.1 ms\n") == ms


def test_what_tells_no_median_is_no_figure() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        other_timers.median_ms("[ INFO ] Latency:\n")


def test_the_interval_holds_the_median_of_all_rounds() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        low, high = other_timers.interval([float(each) for each in random.normal(1.0, 0.1, 25)]).split(" to ")
        held += float(low) <= 1.0 <= float(high)
    assert 1000 * 0.957 - 4 * math.sqrt(1000 * 0.957 * 0.043) < held < 975
    assert other_timers.interval([1.0] * 5) == "5 rounds are too few for an interval"


def test_a_name_that_nothing_has_is_refused_before_anything_is_exported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["other_timers.py", "--only", "nope"])
    monkeypatch.delattr(other_timers.imagenet, "export_lite0")
    with pytest.raises(SystemExit) as ended:
        other_timers.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert all(name in said for name in ("onnxruntime fp32", "openvino fp32", "onnxruntime int8", "openvino int8"))
