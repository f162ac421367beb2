"""What the operating system says of this process: against what it did."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from edgetl.benchmark import usage


def test_a_process_that_sleeps_uses_no_processor() -> None:
    used = usage.Usage()
    time.sleep(0.05)
    told = used.told()
    assert told["wall_ns"] is not None
    assert told["cpu_ns"] is not None
    assert told["wall_ns"] >= 50_000_000
    assert told["cpu_ns"] < told["wall_ns"] / 2
    assert set(told) == {"wall_ns", "cpu_ns", "waiting_ns", "involuntary"}


def test_a_process_that_computes_does() -> None:
    used = usage.Usage()
    end = time.process_time_ns() + 30_000_000
    while time.process_time_ns() < end:
        pass
    told = used.told()
    assert told["cpu_ns"] is not None
    assert told["cpu_ns"] >= 30_000_000


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel has no schedstat")
def test_waiting_is_told_on_linux() -> None:
    told = usage.Usage().told()
    assert told["waiting_ns"] is not None
    assert told["waiting_ns"] >= 0
    assert told["involuntary"] is not None


def test_what_is_not_told_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used = usage.Usage()
    monkeypatch.setattr(usage, "_THREADS", tmp_path / "none")
    assert used.told()["waiting_ns"] is None
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "schedstat").write_text("12 x", encoding="ascii")
    monkeypatch.setattr(usage, "_THREADS", tmp_path)
    assert used.told()["waiting_ns"] is None
    assert sys.platform == "win32" or used.told()["involuntary"] is not None


def test_a_thread_that_has_ended_takes_nothing_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "schedstat").write_text("12 500 3", encoding="ascii")
    monkeypatch.setattr(usage, "_THREADS", tmp_path)
    used = usage.Usage()
    (tmp_path / "1" / "schedstat").write_text("12 700 3", encoding="ascii")
    assert used.told()["waiting_ns"] == 200
    (tmp_path / "1" / "schedstat").write_text("12 100 3", encoding="ascii")
    assert used.told()["waiting_ns"] == 0
