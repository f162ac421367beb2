"""Drafts: whose they are, and which nobody writes any more."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.drafts import draft_name, is_abandoned


@pytest.fixture
def gone() -> int:
    """Number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def of(pid: int) -> str:
    return f"{pid}-{draft_name().split('-', 1)[1]}"


@pytest.mark.parametrize("prefix", ["", ".bundle-1.0.0.", ".edgetl-", "a+(b"])
def test_of_a_process_that_is_no_more(gone: int, prefix: str, tmp_path: Path) -> None:
    assert is_abandoned(tmp_path / (prefix + of(gone)), prefix)
    for living in (os.getpid(), os.getppid(), 1):
        assert not is_abandoned(tmp_path / (prefix + of(living)), prefix)
    assert not is_abandoned(tmp_path / ("x" + prefix + of(gone)), prefix)
    assert not is_abandoned(tmp_path / (prefix + of(gone) + ".txt"), prefix)


def test_of_another_machine_only_what_is_a_month_old(
    gone: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store on a network drive one machine deleted what another was just writing."""
    draft = tmp_path / of(gone)
    draft.mkdir()
    assert is_abandoned(draft)
    monkeypatch.setattr(platform, "node", lambda: "another")
    assert not is_abandoned(draft)
    month = time.time() - 31 * 86400
    os.utime(draft, (month, month))
    assert is_abandoned(draft)
    draft.rmdir()
    assert not is_abandoned(draft)


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_other_names_are_somebody_elses(name: str) -> None:
    assert not is_abandoned(Path("/nowhere") / name)


def test_a_number_that_no_process_can_have(tmp_path: Path) -> None:
    assert is_abandoned(tmp_path / of(10**30))


def test_names_differ() -> None:
    assert len({draft_name() for _ in range(100)}) == 100
