"""What the charts share: scales, ticks, markers, and labels that keep clear of each other."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgetl.numbers import fixed, significant
from edgetl.report.markup import Markup, clean, el, join

_CHARACTER_EM = 0.6  # mean advance of the widest common system fonts; labels may come out with room, never without
_TINY = 1e-9


@dataclass(frozen=True)
class Box:
    """A rectangle in the drawing's units."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share any area."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def distance(self, point: tuple[float, float]) -> float:
        """From a point to the nearest edge; 0 inside."""
        dx = max(self.left - point[0], 0.0, point[0] - self.right)
        dy = max(self.top - point[1], 0.0, point[1] - self.bottom)
        return math.hypot(dx, dy)

    def holds(self, other: Box) -> bool:
        """Whether the other lies wholly inside."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


@dataclass(frozen=True)
class Scale:
    """From values to positions, linear or logarithmic."""

    low: float
    high: float
    start: float
    """Position of low."""
    end: float
    """Position of high."""
    log: bool = False

    def __call__(self, value: float) -> float:
        """Position of a value; values outside the scale stop at its ends."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, 1e-300))
        share = (at - low) / (high - low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def linear(values: Sequence[float], start: float, end: float, *, pad: float = 0.06, least: float = 0.0) -> Scale:
    """A linear scale over finite values, with a margin; never narrower than ``least``."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    short = max(least, _TINY * max(abs(low), abs(high), _TINY)) - (high - low)
    if short > 0:
        low, high = low - short / 2, high + short / 2
    margin = (high - low) * pad
    return Scale(low - margin, high + margin, start, end)


def logarithmic(values: Sequence[float], start: float, end: float, *, pad: float = 0.08) -> Scale:
    """A logarithmic scale over positive values, with a margin; at least a factor of two wide."""
    low, high = min(values, default=1.0), max(values, default=10.0)
    if high < 2 * low:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(2), middle * math.sqrt(2)
    margin = (high / low) ** pad
    return Scale(low / margin, high * margin, start, end, log=True)


def ticks(scale: Scale, wanted: int = 5) -> list[float]:
    """Round values within a scale, about as many as wanted."""
    if scale.log:
        decades = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
            found = [step * 10.0**decade for decade in decades for step in steps]
            found = [value for value in found if scale.low <= value <= scale.high]
            if len(found) >= wanted - 1:
                return found[:: max(1, round(len(found) / (wanted + 2)))]
    span = scale.high - scale.low
    size = 10.0 ** math.floor(math.log10(span / wanted))
    step = next((size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= wanted), size * 10)
    first = math.ceil(scale.low / step)
    count = min(3 * wanted, math.floor(scale.high / step) - first + 1)
    return [(first + index) * step for index in range(count)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Tick values as text, all with the decimals that tell them apart."""
    if not values:
        return []
    largest = max(abs(value) for value in values)
    steps = [abs(b - a) for a, b in itertools.pairwise(values) if b != a]
    step = min(steps, default=largest) or 1.0
    if largest >= 1e6 or largest < 1e-3:
        return [significant(value, 2) for value in values]
    if len({round(size / step, 3) for size in steps}) > 1:  # logarithmic: 0.5, 1, 2
        return [significant(value, 1 if value < 10 else 3) for value in values]
    decimals = max(0, -math.floor(math.log10(step) + _TINY))
    if abs(step * 10**decimals - round(step * 10**decimals)) > 0.01:  # steps of 2.5, 0.25
        decimals += 1
    return [fixed(value, decimals) for value in values]


def text_width(text: str, size: float) -> float:
    """Estimated width of a text in the drawing's units, generous; wide East Asian characters count double."""
    ems = sum(1.05 if unicodedata.east_asian_width(character) in "WF" else _CHARACTER_EM for character in text)
    return ems * size


def shortened(text: str, characters: int) -> str:
    """The text, or its beginning and an ellipsis."""
    text = " ".join(clean(text).split())
    return text if len(text) <= characters else text[: characters - 1] + "…"


def label(x: float, y: float, text: str, *, anchor: str = "start", class_: str | None = None) -> Markup:
    """A line of text."""
    return el("text", text, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def drawing(width: float, height: float, title: str, *parts: Markup, class_: str = "") -> Markup:
    """An SVG element of that size, which shrinks with its column and says in words what it shows."""
    return el(
        "svg", join(parts), viewBox=f"0 0 {width:.0f} {height:.0f}", width=round(width), height=round(height),
        role="img", aria_label=title, class_=class_ or None,
    )  # fmt: skip


def both_widths(draw: Callable[[int], Markup], wide: int, narrow: int = 360) -> Markup:
    """A drawing made twice, for a wide and for a narrow window, so that its letters keep their size."""
    return join([el("div", draw(wide), class_="wide"), el("div", draw(narrow), class_="narrow")])


def marker(precision: str, x: float, y: float, *, filled: bool, radius: float = 5.5) -> Markup:
    """The sign of a precision: shape and colour say the same thing; filled where the engine is shipped."""
    classes = f"mark {precision if precision in _SHAPES else 'reference'}{'' if filled else ' hollow'}"
    if precision == "int8":
        return el("circle", cx=x, cy=y, r=radius, class_=classes)
    shape = _SHAPES.get(precision, _CROSS)
    points = " ".join(f"{x + dx * radius:.1f},{y + dy * radius:.1f}" for dx, dy in shape)
    return el("polygon", points=points, class_=classes)


_CROSS = tuple(
    (dx * 1.2, dy * 1.2)
    for dx, dy in (
        (-.3, -1), (.3, -1), (.3, -.3), (1, -.3), (1, .3), (.3, .3),
        (.3, 1), (-.3, 1), (-.3, .3), (-1, .3), (-1, -.3), (-.3, -.3),
    )
)  # fmt: skip
_SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "int8": (),
    "fp16": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "bf16": ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
    "fp32": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
}


@dataclass(frozen=True)
class PlacedLabel:
    """Where a label found room."""

    x: float
    y: float
    anchor: str
    box: Box
    far: bool
    """Whether it needs a line to its point."""

    def near_end(self, point: tuple[float, float]) -> tuple[float, float]:
        """Where that line meets the label."""
        x = min(max(point[0], self.box.left), self.box.right)
        return x, self.box.bottom if self.y < point[1] else self.box.top


def place_labels(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    frame: Box,
    size: float,
    taken: Sequence[Box] = (),
    lines: Sequence[Box] = (),
) -> list[PlacedLabel | None]:
    """Find room for a label at each point, clear of all points, of the other labels and of the frame.

    Greedy, points from left to right: first a place that is nearer to its own point than to any other, so that nobody
    takes it for the neighbour's; where there is none, one further away that is tied to its point by a line.

    Args:
        points: Centres of the markers.
        texts: One per point.
        frame: Where labels may stand.
        size: Of the font.
        taken: Rectangles that must stay free.
        lines: Thin ones that no label may cover, but a line that ties a label to its point may cross.

    Returns:
        One place per point; None where there is no room.
    """
    markers = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    labels = list(taken)
    places: list[PlacedLabel | None] = [None] * len(points)
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        others = markers[:index] + markers[index + 1 :]
        candidates = [
            place
            for place in _candidates(*points[index], text_width(texts[index], size), size)
            if frame.holds(place.box) and not any(place.box.overlaps(box) for box in [*labels, *others, *lines])
        ]
        near = (place for place in candidates if not place.far and _is_nearest(place.box, index, points))
        tied = (place for place in candidates if place.far and not _crosses(points[index], place, [*labels, *others]))
        places[index] = next(near, None) or next(tied, None)
        found = places[index]
        if found is not None:
            labels.append(found.box)
    return places


def _is_nearest(box: Box, index: int, points: Sequence[tuple[float, float]]) -> bool:
    return all(box.distance(points[index]) <= box.distance(point) for point in points)


def _crosses(point: tuple[float, float], place: PlacedLabel, obstacles: Sequence[Box]) -> bool:
    """Whether the line from a point to its label runs through one of the obstacles."""
    end = place.near_end(point)
    steps = [share / 12 for share in range(13)]
    spots = [(point[0] + (end[0] - point[0]) * share, point[1] + (end[1] - point[1]) * share) for share in steps]
    own = Box(point[0] - 5, point[1] - 5, point[0] + 5, point[1] + 5)
    return any(box.distance(spot) == 0 and own.distance(spot) > 0 for box in obstacles for spot in spots)


def _candidates(x: float, y: float, width: float, size: float) -> list[PlacedLabel]:
    found = []
    for distance in (12, 20, 30, 40, 54, 70, 88, 108):
        for angle in (0, 180, 90, 270, 45, 315, 135, 225, 20, 340, 160, 200, 65, 295, 115, 245):
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            anchor = "start" if dx > 0.3 else "end" if dx < -0.3 else "middle"
            at_x, at_y = x + dx * distance, y + dy * distance * 1.15 + size * 0.35
            left = at_x - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
            box = Box(left - 2, at_y - size, left + width + 2, at_y + size * 0.3)
            found.append(PlacedLabel(at_x, at_y, anchor, box, distance > 20))
    return found


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A scale with its ticks, each a value and its text, and its name."""

    scale: Scale
    ticks: Sequence[tuple[float, str]]
    name: str


def axes(x: Axis, y: Axis, frame: Box) -> Markup:
    """Both axes around the frame that the data lie in: grid lines from the left, ticks below, names."""
    parts: list[Markup] = []
    for value, text in y.ticks:
        at = y.scale(value)
        parts += [line(frame.left, at, frame.right, at, "grid"), label(frame.left - 7, at + 4, text, anchor="end")]
    for value, text in x.ticks:
        at = x.scale(value)
        parts.append(line(at, frame.bottom, at, frame.bottom + 5, "axis"))
        parts.append(label(at, frame.bottom + 18, text, anchor="middle"))
    parts.append(line(frame.left, frame.bottom, frame.right, frame.bottom, "axis"))
    parts.append(label((frame.left + frame.right) / 2, frame.bottom + 38, x.name, anchor="middle"))
    turn = f"translate(11 {(frame.top + frame.bottom) / 2:.0f}) rotate(-90)"
    return join([*parts, el("text", y.name, text_anchor="middle", transform=turn)])


def with_texts(values: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks, each with its text (:func:`tick_texts`)."""
    return list(zip(values, tick_texts(values), strict=True))
