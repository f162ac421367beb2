"""Waiting for a moment to within microseconds: sleep for most of the time, then spin.

The operating system wakes a sleeper tens of microseconds late, or more. Spinning alone would be exact, and would keep
a core hot that an edge device would have let cool down between two frames. So the last stretch only is spun, and how
much of the waiting that was is told.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgetl.benchmark.sampler import Sampler

SPIN_NS = 200_000
"""The stretch before the moment that is spun: sleepers are woken 50 to 150 µs late on an idle Linux machine."""


class Clock(Protocol):
    """What a scenario measures with and waits by; a simulated one in tests."""

    def now(self) -> int:
        """Nanoseconds since some moment; never falls."""

    def wait_until(self, due_ns: int) -> tuple[int, int]:
        """Return at ``due_ns`` or after it, never before.

        Args:
            due_ns: On the scale of :meth:`now`.

        Returns:
            Nanoseconds slept and nanoseconds spun.
        """


@dataclass(frozen=True, kw_only=True)
class MachineClock:
    """The monotonic clock of this machine."""

    spin_ns: int = SPIN_NS
    """The last stretch, which is spun; 0: sleep only, and be late."""

    # A built-in function is no method: calling it costs 40 ns, not the 100 ns of a Python function around it.
    now = staticmethod(time.perf_counter_ns)

    def wait_until(self, due_ns: int) -> tuple[int, int]:
        """See :meth:`Clock.wait_until`."""
        now = time.perf_counter_ns
        began = now()
        asleep = due_ns - began - self.spin_ns
        if asleep > 0:
            time.sleep(asleep / 1e9)
        spinning = woken = now()
        while woken < due_ns:
            woken = now()
        return spinning - began, woken - spinning


@dataclass(frozen=True, kw_only=True)
class SensingClock(MachineClock):
    """The monotonic clock, which has the machine's sensors read while it waits, where there is plenty of time."""

    sampler: Sampler

    def wait_until(self, due_ns: int) -> tuple[int, int]:
        """See :meth:`Clock.wait_until`; the reading counts as neither slept nor spun."""
        self.sampler.poll(spare_s=(due_ns - self.now()) / 1e9)
        return super().wait_until(due_ns)
