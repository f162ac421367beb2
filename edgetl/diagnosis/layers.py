"""Where an engine leaves a graph: the first tensor on the way from the input to the output that is too far off.

The search is a bisection over the places of a graph at which both can be looked at, a few at a time: of what may still
be the first (the ancestors of a place that is off, without those of a place that is not) the middle ones are looked at
next, so that a network of hundreds of layers takes some ten looks. It takes for granted that what comes before a place
that is not off is not off either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgetl.backends.inside import TOGETHER, Place
from edgetl.errors import DataError

FAITHFUL_DB = 60.0
"""A place that is nearer than this counts as if it were no nearer: from there on it is rounding."""
_CLIFF_DB = 6.0
"""The least fall at one place that is called sudden: the noise is four times what it was."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A place on the way that was looked at."""

    name: str
    layer: str
    db: float
    """Signal-to-noise ratio there."""
    fall_db: float
    """By how much it is lower than at the worst of the places before, both at most :data:`FAITHFUL_DB`; 0 where it
    is not lower, or none of those was looked at."""


@dataclass(frozen=True, kw_only=True)
class Departure:
    """Where something leaves a graph."""

    first: Step
    """The first place that is off."""
    sudden: bool
    """Whether one place is at fault: the fall there is at least 6 dB, and half of all that is lost to the output."""
    path: tuple[Step, ...]
    """Every place that was looked at, in the order of the graph."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "path": [asdict(step) for step in self.path]}


Look = Callable[[Sequence[str]], Mapping[str, float]]
"""Names of places → signal-to-noise ratio at each, in dB."""


def departure(places: Sequence[Place], look: Look, *, together: int = TOGETHER) -> Departure:
    """The first place whose ratio is below the middle of those at the input and at the output.

    Args:
        places: In an order in which they can be computed; the last is the output.
        look: Is called with at most ``together`` places, each once.
        together: See there.

    Raises:
        DataError: There are no places, or one is before a place that it is computed from.
    """
    seen = _Seen(places, look, together)
    output = places[-1].name
    suspects = seen.ancestors(output)
    starts = [name for name in suspects if not seen.places[name].before] or [output]
    seen.look([*starts, output])
    worst = min(starts, key=lambda name: seen.db[name])
    top, bottom = _capped(seen.db[worst]), _capped(seen.db[output])
    if top - bottom < _CLIFF_DB:  # what is lost is lost at the input
        first, top = worst, FAITHFUL_DB
    else:
        first = _search(seen, [name for name in suspects if name not in starts], output, (top + bottom) / 2.0)
    seen.look(seen.places[first].before)
    path = seen.path()
    step = next(step for step in path if step.name == first)
    return Departure(first=step, sudden=step.fall_db >= max(_CLIFF_DB, (top - bottom) / 2.0), path=path)


def _search(seen: _Seen, suspects: list[str], output: str, limit: float) -> str:
    """The first place below a limit, among some that the output is computed from; else the output."""
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
    """Places with what was seen of them so far."""

    def __init__(self, places: Sequence[Place], look: Look, together: int) -> None:
        if not places:
            raise DataError("there is no tensor at which the engine and its graph could be looked at")
        self.places: dict[str, Place] = {}
        for place in places:
            if not set(place.before) <= self.places.keys():
                raise DataError(f"the tensor '{place.name}' stands before one that it is computed from")
            self.places[place.name] = place
        self.db: dict[str, float] = {}
        self._look, self.together = look, together

    def look(self, names: Sequence[str]) -> None:
        """Look at those that were not looked at yet."""
        new = [name for name in dict.fromkeys(names) if name not in self.db]
        for start in range(0, len(new), self.together):
            self.db.update(self._look(new[start : start + self.together]))

    def ancestors(self, name: str) -> list[str]:
        """All places that one is computed from, in their order."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            for other in self.places[waiting.pop()].before:
                if other not in found:
                    found.add(other)
                    waiting.append(other)
        return [other for other in self.places if other in found]

    def path(self) -> tuple[Step, ...]:
        return tuple(
            Step(name=name, layer=place.layer, db=self.db[name], fall_db=self._fall(place))
            for name, place in self.places.items()
            if name in self.db
        )

    def _fall(self, place: Place) -> float:
        """From the nearest places before that were looked at."""
        waiting, near, passed = list(place.before), [], set(place.before)
        while waiting:
            name = waiting.pop()
            if name in self.db:
                near.append(self.db[name])
                continue
            more = [other for other in self.places[name].before if other not in passed]
            passed.update(more)
            waiting += more
        # What enters the first place is the input itself.
        worst = min(map(_capped, near)) if near else FAITHFUL_DB
        return max(0.0, worst - _capped(self.db[place.name]))


def _capped(db: float) -> float:
    return min(db, FAITHFUL_DB)


def _spread(names: Sequence[str], count: int) -> list[str]:
    """At most so many names, at equal distances; of one, the middle."""
    if len(names) <= count:
        return list(names)
    return [names[round((place + 1) * (len(names) + 1) / (count + 1)) - 1] for place in range(count)]
