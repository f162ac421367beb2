"""The same content, or the same group, in two splits: what would make a measured accuracy a lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, islice, product

from edgetl.data.dataset import Sample
from edgetl.errors import LeakError

_MAX_NAMED = 10


def check_leaks(named: Mapping[str, Sequence[Sample]], allowed: Collection[tuple[str, str]] = ()) -> None:
    """Refuse an image that stands in two splits, however it is named or encoded there.

    Args:
        named: Name of a split, or of the calibration samples → samples.
        allowed: Pairs of names that may share content, in either order, as ``[("train", "calibration")]`` for
            calibration samples that were drawn from train.

    Raises:
        LeakError: Names up to ten pairs by both paths, and the total.
    """
    found: list[tuple[str, Sample, str, Sample]] = []
    total = 0
    by_digest = {name: _by_digest(samples) for name, samples in named.items()}
    for first, second in combinations(named, 2):
        if (first, second) in allowed or (second, first) in allowed:
            continue
        here, there = by_digest[first], by_digest[second]
        for digest in here:
            if digest in there:
                total += len(here[digest]) * len(there[digest])
                pairs = product(here[digest], there[digest])
                found += [(first, a, second, b) for a, b in islice(pairs, max(0, _MAX_NAMED - len(found)))]
    if total:
        listed = "\n".join(f"  {first}: {a.where}\n  {second}: {b.where}" for first, a, second, b in found)
        more = f"\n  … and {total - len(found)} more" if total > len(found) else ""
        texts = isinstance(found[0][1].raw, str)
        what = "samples with the same content" if texts else "images with the same pixels"
        raise LeakError(
            f"{total} {'pairs' if total > 1 else 'pair'} of {what} in two splits:\n{listed}{more}",
            hint="remove one of each pair; an accuracy measured on what was trained on means nothing",
        )


def check_groups(named: Mapping[str, Sequence[Sample]]) -> None:
    """Refuse a group that stands in two splits.

    Args:
        named: Name of a split → samples; those without a group are left out of the check.

    Raises:
        LeakError: Names up to ten groups with their splits, and the total.
    """
    splits_of: dict[str, list[str]] = {}
    for name, samples in named.items():
        for group in sorted({sample.group for sample in samples if sample.group is not None}):
            splits_of.setdefault(group, []).append(name)
    torn = {group: names for group, names in splits_of.items() if len(names) > 1}
    if torn:
        listed = "\n".join(f"  '{group}' in {' and '.join(torn[group])}" for group in sorted(torn)[:_MAX_NAMED])
        more = f"\n  … and {len(torn) - _MAX_NAMED} more" if len(torn) > _MAX_NAMED else ""
        raise LeakError(
            f"{len(torn)} {'groups stand' if len(torn) > 1 else 'group stands'} in two splits:\n{listed}{more}",
            hint="give all samples of a group the same split",
        )


def _by_digest(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    result: dict[str, list[Sample]] = {}
    for sample in samples:
        result.setdefault(sample.digest, []).append(sample)
    return result
