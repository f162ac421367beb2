"""The same content, or the same group, in two splits: what would make a measured accuracy a lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice, product

from edgetl.data.dataset import UNLABELLED, Dataset, Sample
from edgetl.errors import LeakError
from edgetl.numbers import counted

_MAX_NAMED = 10
_UNIQUE = 0.99


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
            f"{counted(total, 'pair')} of {what} in two splits:\n{listed}{more}",
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
            f"{counted(len(torn), 'group stands', 'groups stand')} in two splits:\n{listed}{more}",
            hint="give all samples of a group the same split",
        )


def check_calibration(samples: Sequence[Sample], dataset: Dataset) -> None:
    """Refuse calibration samples of one's own that stand in val or test.

    Raises:
        LeakError: As :func:`check_leaks`.
    """
    check_leaks({"calibration": samples, "val": dataset.val, "test": dataset.test})


def check_calibration_rows(rows: Sequence[Sample], dataset: Dataset) -> None:
    """As :func:`check_calibration`, for rows of a table: equal rows are a leak only where rows can be told apart.

    Rows without labels are compared by their values alone. In a table whose rows repeat, a row of one's own may well be
    equal to one of test; what is refused there are the very rows of one or more splits, val or test among them: a file
    of the project that was named by mistake.

    Args:
        rows: For calibration, with labels or without any.
        dataset: What is trained on and measured on.

    Raises:
        LeakError: Rows stand in val or test, too, or are those of val or test.
    """
    if tells_rows_apart(dataset.train):
        labelled = all(row.label != UNLABELLED for row in rows)
        named = {"calibration": rows, "val": dataset.val, "test": dataset.test}
        check_leaks({name: with_labels(each) if labelled else each for name, each in named.items()}, [("val", "test")])
        return
    counts = {name: Counter(row.digest for row in split) for name, split in dataset.splits().items()}
    given = Counter(row.digest for row in rows)
    for count in range(1, len(counts) + 1):
        for names in combinations(counts, count):
            if names != ("train",) and sum((counts[name] for name in names), Counter()) == given:
                raise LeakError(
                    f"the {counted(len(rows), 'row for calibration is that', 'rows for calibration are those')} of"
                    f" {' and '.join(names)}, one by one",
                    hint="leave out quantize.data, and they are drawn from train; or give other rows",
                )


def tells_rows_apart(train: Sequence[Sample]) -> bool:
    """Whether nearly every row of train is unique, so that the same row in two splits is a copy and not chance."""
    return len({sample.digest for sample in train}) >= _UNIQUE * len(train)


def with_labels(rows: Sequence[Sample]) -> list[Sample]:
    """With the label in the digest: equal values with another label are two people, not a copy."""
    return [replace(row, digest=f"{row.digest}:{row.label}") for row in rows]


def _by_digest(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    result: dict[str, list[Sample]] = {}
    for sample in samples:
        result.setdefault(sample.digest, []).append(sample)
    return result
