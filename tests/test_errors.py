"""The exception tree and its exit codes."""

from __future__ import annotations

import re

import pytest

from edgetl import errors


def _classes() -> dict[str, type[errors.EdgetlError]]:
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    return {name: value for name, value in found.items() if issubclass(value, errors.EdgetlError)}


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    drawn, above = {}, {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([│ ├└─]*)(\w+Error)\s+(\d)  ", line)
        if match:
            depth = len(match[1]) // 4
            drawn[match[2]] = int(match[3])
            above[depth] = match[2]
            if depth:
                parent = _classes()[match[2]].__base__
                assert parent is not None
                assert parent.__name__ == above[depth - 1], line
    assert drawn == {name: kind.exit_code for name, kind in _classes().items()}


def test_exit_codes_are_the_documented_ones() -> None:
    assert {kind.exit_code for kind in _classes().values()} == {1, 2, 3, 4, 5, 6, 7, 8}


def test_message_and_hint() -> None:
    error = errors.DataError("no image in a/b", hint="look there")
    assert (str(error), error.message, error.hint) == ("no image in a/b", "no image in a/b", "look there")
    assert errors.DataError("x").hint is None


def test_a_missing_extra_names_its_install_command() -> None:
    error = errors.MissingExtraError("timm", extra="train", needed_for="fine-tuning")
    assert error.message == "fine-tuning needs the Python package 'timm', which is not installed"
    assert error.hint == "pip install 'edgetl[train]'"
    assert error.exit_code == 8


def test_every_class_can_be_caught_as_edgetl_error() -> None:
    for name, kind in _classes().items():
        if kind is errors.MissingExtraError:
            continue
        with pytest.raises(errors.EdgetlError):
            raise kind(name)
