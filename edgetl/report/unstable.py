"""Reasons to distrust measurements, each told once: what the whole machine did is a reason of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EVERYTHING = "everything that was timed"


def told_once(found: Mapping[str, Sequence[str]]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Reasons by whom they are of.

    Args:
        found: Name of a measurement → its reasons.

    Returns:
        Names, and the reasons that these measurements and no others have; those of the most measurements first.
    """
    names: dict[str, list[str]] = {}
    for name, reasons in found.items():
        for reason in dict.fromkeys(reasons):
            names.setdefault(reason, []).append(name)
    told: dict[tuple[str, ...], list[str]] = {}
    for reason, of in names.items():
        told.setdefault(tuple(of), []).append(reason)
    return [(of, tuple(reasons)) for of, reasons in sorted(told.items(), key=lambda item: -len(item[0]))]


def joined(names: Sequence[str], timed: int) -> str:
    """Names for a sentence.

    Args:
        names: Of measurements.
        timed: How many there were, with those that are not named.
    """
    return EVERYTHING if len(names) == timed > 1 else ", ".join(names)
