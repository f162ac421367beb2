"""Markup that is escaped unless it says that it is markup."""

from __future__ import annotations

import html
import math
import re

# Not characters of XML 1.0, or control characters that HTML refuses: surrogates, C0 without tab and newlines, C1. And
# what turns the direction of all text behind it: embeddings, overrides and isolates of bidirectional text.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"meta", "br", "col"})

AttributeValue = str | int | float | None


class Markup(str):
    """Text that is markup already. Every other ``str`` is escaped where it enters an element."""

    __slots__ = ()


def clean(text: str) -> str:
    """The text with U+FFFD for every character that HTML or XML cannot carry, or that turns the text behind it."""
    return _FORBIDDEN.sub("\ufffd", text)


def one_line(text: str) -> str:
    """A name from data for a line of a terminal or log: cleaned, without line breaks, which could begin a command."""
    return " ".join(clean(text).split())


def escaped(text: str) -> Markup:
    """Text as markup: itself where it is :class:`Markup`, else cleaned and escaped, quotes included."""
    return text if isinstance(text, Markup) else Markup(html.escape(clean(text), quote=True))


def join(parts: list[Markup] | tuple[Markup, ...]) -> Markup:
    """Several pieces of markup, one after the other."""
    return Markup("".join(parts))


def el(tag: str, *children: str, **attributes: AttributeValue) -> Markup:
    """One element.

    Args:
        tag: Name of the element.
        children: Markup is taken as it is, every other text is escaped.
        attributes: ``class_`` becomes ``class``, ``stroke_width`` becomes ``stroke-width``; None is left out. Floats
            are coordinates: two decimals.
    """
    inside = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(_value(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{inside}>")
    return Markup(f"<{tag}{inside}>{''.join(escaped(child) for child in children)}</{tag}>")


def _value(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"
