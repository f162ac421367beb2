"""Numbers as they are told: beside the names of things, and beside limits."""

from __future__ import annotations

import pytest

from edgetl import numbers


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 processes"), (1, "1 process"), (1234, "1,234 processes"), (None, "– processes")]
)
def test_one_thing_has_another_name_than_several(number: int | None, text: str) -> None:
    assert numbers.counted(number, "process", "processes") == text


def test_most_names_have_an_s() -> None:
    assert [numbers.counted(number, "core") for number in (1, 2)] == ["1 core", "2 cores"]
