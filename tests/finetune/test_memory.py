"""What the allocator keeps while a network is trained: seen from outside, in pages that the system had to give."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest

from edgetl.finetune.memory import kept_between_steps

_STEPS = """
import json, resource
from pathlib import Path
from edgetl.finetune.memory import kept_between_steps

SIZE, STEPS = 64 << 20, 10

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

def steps():
    before = pages()
    for _ in range(STEPS):
        freed = b"x" * SIZE
        del freed
    return pages() - before

found = {"before": steps(), "resident_before": resident()}
with kept_between_steps() as kept:
    found |= {"kept": kept, "first": steps(), "inside": steps(), "resident_inside": resident()}
print(json.dumps(found | {"after": steps(), "resident_after": resident(), "pages": SIZE // resource.getpagesize()}))
"""


def test_memory_is_kept_while_it_is_open_and_given_back_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", _STEPS], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    if not found["kept"]:
        pytest.skip("no glibc here")
    assert found["before"] >= 9 * found["pages"], "each step has its pages from the system"
    assert found["inside"] < 0.1 * found["pages"], "no step has"
    assert found["resident_inside"] > found["resident_before"] + 0.9 * found["pages"]
    assert found["resident_after"] < found["resident_before"] + 0.1 * found["pages"]
    assert found["after"] >= 9 * found["pages"]


class OldGlibc:
    """One that takes no threshold above 32 MiB."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int]] = []

    def mallopt(self, parameter: ctypes.c_int, value: ctypes.c_int) -> int:
        if value.value > 32 << 20:
            return 0
        self.taken.append((parameter.value, value.value))
        return 1

    malloc_trim = gnu_get_libc_version = mallopt


def test_an_allocator_that_refuses_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold that is set ends glibc's own rule for the other."""
    old = OldGlibc()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: old)
    with kept_between_steps() as kept:
        assert not kept and not old.taken
    assert not old.taken


def test_an_error_ends_it_too() -> None:
    with pytest.raises(ZeroDivisionError), kept_between_steps():
        raise ZeroDivisionError
    with kept_between_steps():
        pass
