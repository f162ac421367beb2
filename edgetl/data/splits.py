"""Seeded, stratified draws: val out of train, and calibration samples.

Chance comes from SHA-256 of the seed and a sample's content, not from a generator that walks along the list: what is
drawn does not depend on file names, on the order of a listing, or on the version of a library.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from edgetl.data.dataset import Sample
from edgetl.errors import DataError, UsageError
from edgetl.numbers import counted

_Label = TypeVar("_Label", bound="int | tuple[int, ...]")
_NO_CLASS = -2
"""Counted for images of no class, where one may have several: negatives for all, which val needs its share of."""


@dataclass(frozen=True)
class _Unit:
    """Samples that must not be torn apart: of one group, or with the same pixels."""

    members: tuple[int, ...]
    """Positions in the list that is split."""
    labels: Counter[int]
    rank: str
    """A hash: units in the order of their ranks are in random order."""


def split_val(
    samples: Sequence[Sample], fraction: float, seed: int, classes: Sequence[str] = ()
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Take a stratified part out of train.

    Of every class val gets ``round(fraction · n)`` samples, at least one, and never all. Images of no class, where one
    may have several, count as a class of their own; but where they cannot be divided, they stay in train. Samples of
    one group, and samples with the same pixels, stay together; where such a unit is larger than one sample, val's share
    of a class is as near to that number as whole units allow.

    Args:
        samples: Of train, in any order.
        fraction: Share of val, between 0 and 1.
        seed: Of the draw.
        classes: Names of the classes, for the message.

    Returns:
        What remains of train, and val; both in the order of ``samples``.

    Raises:
        DataError: A class has a single sample, or a single group, so that one of the two would lack it.
    """
    totals = Counter(index for sample in samples for index in _classes(sample))
    wanted = {label: min(max(1, round(fraction * count)), count - 1) for label, count in totals.items()}
    units = sorted(_units(samples, seed), key=lambda unit: unit.rank)
    draw = _Draw(totals, wanted)
    for unit in units:
        if draw.keeps_train(unit) and draw.gain(unit) > 0:
            draw.take(unit)
    for label in sorted(totals.keys() - {_NO_CLASS}):
        if draw.have[label] == 0:
            draw.rescue(label, units, classes)
    taken = {position for unit in draw.taken for position in unit.members}
    train = tuple(sample for position, sample in enumerate(samples) if position not in taken)
    return train, tuple(sample for position, sample in enumerate(samples) if position in taken)


class _Draw:
    """Which units val has so far, and how many samples of each class."""

    def __init__(self, totals: Counter[int], wanted: dict[int, int]) -> None:
        self.have: Counter[int] = Counter()
        self.taken: list[_Unit] = []
        self._totals = totals
        self._wanted = wanted

    def keeps_train(self, unit: _Unit, *, needed_only: bool = False) -> bool:
        """Whether train keeps a sample of every class when the unit leaves it; and, if need not be, one of no class."""
        return all(
            self.have[label] + count < self._totals[label]
            for label, count in unit.labels.items()
            if not (needed_only and label == _NO_CLASS)
        )

    def gain(self, unit: _Unit) -> int:
        """By how much the squared distance from the wanted counts falls when the unit is taken."""
        before = {label: self._wanted[label] - self.have[label] for label in unit.labels}
        return sum(before[label] ** 2 - (before[label] - count) ** 2 for label, count in unit.labels.items())

    def take(self, unit: _Unit) -> None:
        self.taken.append(unit)
        self.have.update(unit.labels)

    def rescue(self, label: int, units: Sequence[_Unit], classes: Sequence[str]) -> None:
        """Give val the unit that costs least, for a class whose units are all larger than its share."""
        having = [unit for unit in units if unit.labels[label]]
        possible = [unit for unit in having if self.keeps_train(unit)]
        possible = possible or [unit for unit in having if self.keeps_train(unit, needed_only=True)]
        if not possible:
            name = classes[label] if 0 <= label < len(classes) else str(label)
            parts = sum(1 for unit in units if unit.labels[label])
            raise DataError(
                f"val cannot be taken out of train: class '{name}' has {counted(self._totals[label], 'sample')} in "
                f"{counted(parts, 'inseparable part')} (a sample, a group, or copies of one image), "
                "and val and train each need one",
                hint="add samples of that class, or give val yourself",
            )
        self.take(max(possible, key=lambda unit: (self.gain(unit), unit.rank)))


def draw_calibration(samples: Sequence[Sample], count: int, seed: int) -> tuple[Sample, ...]:
    """Draw calibration samples, stratified by class.

    Every class gets its share of ``count``, rounded up or down (largest remainder). The draw and its order depend on
    the samples' content and the seed alone.

    Args:
        samples: To draw from, in any order.
        count: How many; where there are no more than that, all of them are returned.
        seed: Of the draw.

    Returns:
        ``min(count, len(samples))`` samples, in random order.

    Raises:
        UsageError: ``count`` is below 1.
    """
    if count < 1:
        raise UsageError(f"{count} calibration samples were asked for", hint="ask for at least 1")
    ranks = {sample: (_rank(seed, sample.digest), str(sample.raw)) for sample in samples}
    by_label: dict[int | tuple[int, ...], list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=ranks.__getitem__):
        by_label[sample.label].append(sample)
    shares = _shares({label: len(members) for label, members in by_label.items()}, min(count, len(samples)), seed)
    drawn = [sample for label, members in by_label.items() for sample in members[: shares[label]]]
    return tuple(sorted(drawn, key=ranks.__getitem__))


def _shares(sizes: Mapping[_Label, int], count: int, seed: int) -> dict[_Label, int]:
    """Split ``count`` in proportion to ``sizes``: largest remainder, ties in random order."""
    total = sum(sizes.values())
    shares = {label: count * size // total for label, size in sizes.items()}
    left = count - sum(shares.values())
    by_remainder = sorted(sizes, key=lambda label: (-(count * sizes[label] % total), _rank(seed, str(label))))
    for label in by_remainder[:left]:
        shares[label] += 1
    return shares


def _units(samples: Sequence[Sample], seed: int) -> list[_Unit]:
    """Join samples that share a group or a digest, also by way of a third (union-find)."""
    parent = list(range(len(samples)))

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    first: dict[tuple[str, str], int] = {}
    for position, sample in enumerate(samples):
        for key in _keys(sample):
            parent[root(position)] = root(first.setdefault(key, position))
    members: dict[int, list[int]] = defaultdict(list)
    for position in range(len(samples)):
        members[root(position)].append(position)
    return [
        _Unit(
            tuple(positions),
            Counter(index for position in positions for index in _classes(samples[position])),
            _rank(seed, min(samples[position].digest for position in positions)),
        )
        for positions in members.values()
    ]


def _classes(sample: Sample) -> tuple[int, ...]:
    return sample.present or (_NO_CLASS,)


def _keys(sample: Sample) -> Iterable[tuple[str, str]]:
    yield "digest", sample.digest
    if sample.group is not None:
        yield "group", sample.group


def _rank(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
