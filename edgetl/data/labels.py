"""Labels that are not one class per sample: sets of classes, and people of whom every split has others."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from edgetl.data.dataset import SPLITS
from edgetl.data.manifest import Row
from edgetl.errors import DataError, LeakError
from edgetl.numbers import counted
from edgetl.runtime.decision import SEPARATOR as SEPARATOR
from edgetl.tomlfile import did_you_mean

_MAX_NAMED = 10


def label_sets(
    rows_by_split: Mapping[str, Sequence[Row]], classes_given: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, list[tuple[int, ...]]]]:
    """Read labels with ';' between the classes of a sample; an empty one stands for a sample of no class.

    Args:
        rows_by_split: At least train and test.
        classes_given: The classes in the order of the model's outputs. Empty: the names in train, in plain sorted
            order (by code point: "10" comes before "2").

    Returns:
        The classes; and by split, for every row in its order, 0 or 1 for each class.

    Raises:
        DataError: A name stands twice in a row or in the classes, or is empty; a name is no class; no row of train
            has a class; or a class has no sample in train or in test.
    """
    names = {split: [names_of(row) for row in rows] for split, rows in rows_by_split.items()}
    found = sorted({name for each in names["train"] for name in each})
    if not found:
        raise DataError(
            f"all {len(names['train'])} labels in train are empty: there is nothing to learn",
            hint=f"write the classes of an image into the column label, with '{SEPARATOR}' between",
        )
    classes = tuple(classes_given) or tuple(found)
    _check_given(classes)
    for split, rows in rows_by_split.items():
        _check_known(split, rows, names[split], classes)
    for split in ("train", "test"):
        _check_present(split, names[split], classes)
    return classes, {
        split: [tuple(int(name in each) for name in classes) for each in listed] for split, listed in names.items()
    }


def identities(rows_by_split: Mapping[str, Sequence[Row]]) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Read labels that name people, of whom no two splits share one: what is measured is faces never seen before.

    Args:
        rows_by_split: train, val and test; every row has a label.

    Returns:
        The people: those of train, then of val, then of test, each part sorted; and by split, for every row in its
        order, the index of its person.

    Raises:
        LeakError: A person stands in two splits.
        DataError: A split has fewer than two people; or val or test has not two people with two images each, so that
            no pair of one person could be told from pairs of two.
    """
    order = [split for split in SPLITS if split in rows_by_split]
    images = {split: Counter(row.label or "" for row in rows_by_split[split]) for split in order}
    _check_disjoint(images)
    for split, counts in images.items():
        _check_people(split, counts)
    people = tuple(person for split in order for person in sorted(images[split]))
    index = {person: position for position, person in enumerate(people)}
    return people, {split: [index[row.label or ""] for row in rows_by_split[split]] for split in order}


def split_people(rows: Sequence[Row], val_fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Take whole people out of train.

    Val gets ``round(val_fraction · people)`` of them, at least two, and leaves train at least two. Who they are
    depends on their names and the seed alone, except that people of a single image are taken last: they make no pair.

    Args:
        rows: Of train, in any order; every row has a label.
        val_fraction: Share of the people, between 0 and 1.
        seed: Of the draw.

    Returns:
        What remains of train, and val; both in the order of ``rows``.

    Raises:
        DataError: There are fewer than four people.
    """
    images = Counter(row.label or "" for row in rows)
    if len(images) < 4:
        raise DataError(
            f"train has {_people(len(images))}: val cannot be taken out of it, for each of the two needs two people",
            hint="add images of more people, or give val yourself",
        )
    count = min(max(2, round(val_fraction * len(images))), len(images) - 2)
    taken = set(sorted(images, key=lambda person: (images[person] < 2, _rank(seed, person)))[:count])
    train = [row for row in rows if row.label not in taken]
    return train, [row for row in rows if row.label in taken]


def names_of(row: Row) -> tuple[str, ...]:
    """The classes of a row whose label may name several, without blanks around them.

    Raises:
        DataError: A name is empty, or stands there twice.
    """
    if not row.label:
        return ()
    names = tuple(name.strip() for name in row.label.split(SEPARATOR))
    if "" in names:
        raise DataError(
            f"{row.where}: the label '{row.label}' has an empty name",
            hint=f"'{SEPARATOR}' stands between names only; a sample of no class has an empty label",
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{row.where}: the label '{row.label}' names '{twice}' more than once")
    return names


def _check_given(classes: Sequence[str]) -> None:
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise DataError(f"data.classes names '{twice[0]}' more than once")
    torn = [name for name in classes if SEPARATOR in name]
    if torn:
        raise DataError(f"data.classes has '{torn[0]}': '{SEPARATOR}' stands between the names of two classes")


def _check_known(split: str, rows: Sequence[Row], names: Sequence[Sequence[str]], classes: Sequence[str]) -> None:
    known = set(classes)
    for row, each in zip(rows, names, strict=True):
        unknown = next((name for name in each if name not in known), None)
        if unknown is not None:
            raise DataError(
                f"{split} has the label '{unknown}' ({row.where}), which is not a class;"
                f" {did_you_mean(unknown, classes)}",
                hint="the classes are those of data.classes, else the labels of train",
            )


def _check_present(split: str, names: Sequence[Sequence[str]], classes: Sequence[str]) -> None:
    present = {name for each in names for name in each}
    missing = [name for name in classes if name not in present]
    if missing:
        raise DataError(
            f"{split} has no sample of {len(missing)} of {len(classes)} classes: {_listed(missing)}",
            hint=f"add samples of them to {split}, or leave the classes out of every split",
        )


def _check_disjoint(images: Mapping[str, Counter[str]]) -> None:
    splits_of: dict[str, list[str]] = {}
    for split, counts in images.items():
        for person in counts:
            splits_of.setdefault(person, []).append(split)
    torn = {person: splits for person, splits in sorted(splits_of.items()) if len(splits) > 1}
    if torn:
        listed = "\n".join(f"  '{person}' in {' and '.join(torn[person])}" for person in list(torn)[:_MAX_NAMED])
        more = f"\n  … and {len(torn) - _MAX_NAMED} more" if len(torn) > _MAX_NAMED else ""
        raise LeakError(
            f"{counted(len(torn), 'person stands', 'people stand')} in two splits:\n{listed}{more}",
            hint="give all images of a person the same split: verification is measured on people never trained on",
        )


def _check_people(split: str, images: Counter[str]) -> None:
    if len(images) < 2:
        raise DataError(
            f"{split} has {_people(len(images))}; faces can only be told apart where there are two",
            hint=f"add images of other people to {split}",
        )
    several = sum(1 for count in images.values() if count > 1)
    if split != "train" and several < 2:
        raise DataError(
            f"{split} has two images or more of only {_people(several)} among {len(images)}: too few pairs of the"
            " same person to measure",
            hint=f"add images, so that {split} has at least two of each of two people",
        )


def _people(count: int) -> str:
    return {0: "no person", 1: "one person"}.get(count, f"{count} people")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_MAX_NAMED]) + (" …" if len(names) > _MAX_NAMED else "")


def _rank(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
