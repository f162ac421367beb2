"""What the operating system says of this process while a block of calls is timed: for the process that times.

It imports next to nothing and reads before the first and after the last call of a block, never within one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

if sys.platform != "win32":
    import resource

_THREADS = Path("/proc/self/task")

Use = dict[str, int | None]
"""wall_ns, cpu_ns, waiting_ns, involuntary; None where this system does not tell."""


class Usage:
    """From where it is made until :meth:`told`.

    Example:
        usage = Usage()
        …  # a block of calls
        answer = usage.told()
    """

    def __init__(self) -> None:
        # The clocks last, so that they do not count the reading of the rest.
        self._waiting_ns, self._involuntary = _waiting_ns(), _involuntary()
        self._cpu_ns, self._wall_ns = time.process_time_ns(), time.perf_counter_ns()

    def told(self) -> Use:
        """What happened since: time, processor time of all threads, their waiting for one, involuntary switches.

        Returns:
            wall_ns, cpu_ns, waiting_ns (ready to run, without a processor: /proc/self/task/*/schedstat) and
            involuntary (context switches); None where unknown.
        """
        wall_ns, cpu_ns = time.perf_counter_ns(), time.process_time_ns()
        return {
            "wall_ns": wall_ns - self._wall_ns,
            "cpu_ns": cpu_ns - self._cpu_ns,
            "waiting_ns": _since(self._waiting_ns, _waiting_ns()),
            "involuntary": _since(self._involuntary, _involuntary()),
        }


def _since(before: int | None, after: int | None) -> int | None:
    # A thread that has ended takes its sum with it.
    return None if before is None or after is None else max(0, after - before)


def _waiting_ns() -> int | None:
    try:
        total = 0
        for thread in _THREADS.iterdir():
            total += int((thread / "schedstat").read_bytes().split()[1])
        return total
    except (OSError, IndexError, ValueError):
        return None


def _involuntary() -> int | None:
    return None if sys.platform == "win32" else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
