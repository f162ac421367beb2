"""Where an engine leaves a graph: the first tensor on the way from the input to the output that is too far off.

The search is a bisection over the points of a graph at which both can be looked at, a few at a time: of what may still
be the first (the ancestors of a point that is off, without those of a point that is not) the middle ones are looked at
next, so that a network of hundreds of layers takes some ten looks. It takes for granted that what comes before a point
that is not off is not off either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgetl.backends.inside import TOGETHER
from edgetl.errors import DataError

FAITHFUL_DB = 60.0
"""A point that is nearer than this counts as if it were no nearer: from there on it is rounding."""
_CLIFF_DB = 6.0
"""The least fall at one point that is called a place: the noise is four times what it was."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A tensor at which an engine and a graph can be looked at."""

    name: str
    """Of the tensor in the float graph."""
    layer: str
    """What computes it from the points before, as "Conv 'stem'"."""
    before: tuple[str, ...]
    """The nearest points that it is computed from; empty: the input."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A point on the way that was looked at."""

    name: str
    layer: str
    db: float
    """Signal-to-noise ratio there."""
    fall_db: float
    """By how much it is lower than at the worst of the points before, both at most :data:`FAITHFUL_DB`; 0 where it
    is not lower, or none of those was looked at."""


@dataclass(frozen=True, kw_only=True)
class Departure:
    """Where something leaves a graph."""

    first: Step
    """The first point that is off."""
    sudden: bool
    """Whether it is a place: the fall there is at least 6 dB, and half of all that is lost to the output."""
    path: tuple[Step, ...]
    """Every point that was looked at, in the order of the graph."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "path": [asdict(step) for step in self.path]}


Look = Callable[[Sequence[str]], Mapping[str, float]]
"""Names of points → signal-to-noise ratio at each, in dB."""


def departure(points: Sequence[Point], look: Look, *, together: int = TOGETHER) -> Departure:
    """The first point whose ratio is below the middle of those at the input and at the output.

    Args:
        points: In an order in which they can be computed; the last is the output.
        look: Is called with at most ``together`` points, each once.
        together: See there.

    Raises:
        DataError: There are no points, or one is before a point that it is computed from.
    """
    seen = _Seen(points, look, together)
    output = points[-1].name
    suspects = seen.ancestors(output)
    starts = [name for name in suspects if not seen.points[name].before] or [output]
    seen.look([*starts, output])
    worst = min(starts, key=lambda name: seen.db[name])
    top, bottom = _capped(seen.db[worst]), _capped(seen.db[output])
    if top - bottom < _CLIFF_DB:  # what is lost is lost at the input
        first, top = worst, FAITHFUL_DB
    else:
        first = _search(seen, [name for name in suspects if name not in starts], output, (top + bottom) / 2.0)
    seen.look(seen.points[first].before)
    path = seen.path()
    step = next(step for step in path if step.name == first)
    return Departure(first=step, sudden=step.fall_db >= max(_CLIFF_DB, (top - bottom) / 2.0), path=path)


def _search(seen: _Seen, suspects: list[str], output: str, limit: float) -> str:
    """The first point below a limit, among some that the output is computed from; else the output."""
    first = output
    while suspects:
        chosen = _spread(suspects, seen.together)
        seen.look(chosen)
        off = [name for name in chosen if seen.db[name] < limit]
        if off:
            first = off[0]
            before = set(seen.ancestors(first))
            suspects = [name for name in suspects if name in before]
        for name in chosen:
            if seen.db[name] >= limit and name in suspects:
                done = {name, *seen.ancestors(name)}
                suspects = [other for other in suspects if other not in done]
    return first


class _Seen:
    """Points with what was seen of them so far."""

    def __init__(self, points: Sequence[Point], look: Look, together: int) -> None:
        if not points:
            raise DataError("there is no tensor at which the engine and its graph could be looked at")
        self.points: dict[str, Point] = {}
        for point in points:
            if not set(point.before) <= self.points.keys():
                raise DataError(f"the tensor '{point.name}' stands before one that it is computed from")
            self.points[point.name] = point
        self.db: dict[str, float] = {}
        self._look, self.together = look, together

    def look(self, names: Sequence[str]) -> None:
        """Look at those that were not looked at yet."""
        new = [name for name in dict.fromkeys(names) if name not in self.db]
        for start in range(0, len(new), self.together):
            self.db.update(self._look(new[start : start + self.together]))

    def ancestors(self, name: str) -> list[str]:
        """All points that one is computed from, in their order."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            for other in self.points[waiting.pop()].before:
                if other not in found:
                    found.add(other)
                    waiting.append(other)
        return [other for other in self.points if other in found]

    def path(self) -> tuple[Step, ...]:
        return tuple(
            Step(name=name, layer=point.layer, db=self.db[name], fall_db=self._fall(point))
            for name, point in self.points.items()
            if name in self.db
        )

    def _fall(self, point: Point) -> float:
        """From the nearest points before that were looked at."""
        waiting, near, passed = list(point.before), [], set(point.before)
        while waiting:
            name = waiting.pop()
            if name in self.db:
                near.append(self.db[name])
                continue
            more = [other for other in self.points[name].before if other not in passed]
            passed.update(more)
            waiting += more
        # What enters the first point is the input itself.
        worst = min(map(_capped, near)) if near else FAITHFUL_DB
        return max(0.0, worst - _capped(self.db[point.name]))


def _capped(db: float) -> float:
    return min(db, FAITHFUL_DB)


def _spread(names: Sequence[str], count: int) -> list[str]:
    """At most so many names, at equal distances; of one, the middle."""
    if len(names) <= count:
        return list(names)
    return [names[round((place + 1) * (len(names) + 1) / (count + 1)) - 1] for place in range(count)]
