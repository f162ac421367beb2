"""The search for the first tensor that is off: on chains, on branches, and with few looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.backends.inside import Place
from edgetl.diagnosis.layers import FAITHFUL_DB, Look, departure
from edgetl.errors import DataError


def graph_of(edges: Mapping[str, Sequence[str]]) -> list[Place]:
    return [Place(name=name, layer=f"Conv '{name}'", before=tuple(before)) for name, before in edges.items()]


def chain(length: int) -> list[Place]:
    return graph_of({f"t{place}": [f"t{place - 1}"] if place else [] for place in range(length)})


def looking(values: Mapping[str, float], seen: list[str] | None = None, most: int = 4) -> Look:
    def look(names: Sequence[str]) -> dict[str, float]:
        assert 0 < len(names) <= most
        for name in names:
            assert seen is None or name not in seen, f"{name} was looked at before"
        if seen is not None:
            seen.extend(names)
        return {name: values[name] for name in names}

    return look


@given(st.integers(2, 300), st.data(), st.floats(25, 60), st.floats(0, 15))
def test_a_cliff_on_a_chain_is_found_wherever_it_is(length: int, data: st.DataObject, high: float, low: float) -> None:
    place = data.draw(st.integers(0, length - 1))
    seen: list[str] = []
    values = {f"t{index}": high if index < place else low for index in range(length)}
    found = departure(chain(length), looking(values, seen))
    assert (found.first.name, found.sudden) == (f"t{place}", True)
    assert found.first.layer == f"Conv 't{place}'" and found.first.db == low
    assert found.first.fall_db == pytest.approx((high if place else FAITHFUL_DB) - low)
    assert len(seen) <= 22  # of 300: 2 at the ends, at most 4 in each of 4 rounds, those before the first
    assert [step.name for step in found.path] == sorted(seen, key=lambda name: int(name[1:]))


@given(st.integers(30, 200))
def test_what_is_lost_little_by_little_is_no_place(length: int) -> None:
    values = {f"t{place}": 45.0 - 30.0 * place / (length - 1) for place in range(length)}
    found = departure(chain(length), looking(values))
    assert not found.sudden


def test_nothing_but_rounding() -> None:
    found = departure(chain(20), looking(dict.fromkeys((f"t{place}" for place in range(20)), 130.0)))
    assert not found.sudden and found.first.fall_db == 0.0


BRANCHES = {
    "stem": [], "a1": ["stem"], "a2": ["a1"], "a3": ["a2"], "b1": ["stem"], "b2": ["b1"], "b3": ["b2"],
    "sum": ["a3", "b3"], "head": ["sum"],
}  # fmt: skip


@pytest.mark.parametrize("together", [1, 2, 4, 9])
@pytest.mark.parametrize("place", list(BRANCHES))
def test_on_branches_the_first_is_the_one_that_what_is_off_comes_from(place: str, together: int) -> None:
    graph = graph_of(BRANCHES)
    below = {place}
    for each in graph:
        if below & set(each.before):
            below.add(each.name)
    values = {name: 4.0 if name in below else 40.0 for name in BRANCHES}
    found = departure(graph, looking(values, [], together), together=together)
    assert found.first.name == place and found.sudden


def test_an_engine_that_is_off_from_the_first_tensor_on() -> None:
    found = departure(chain(9), looking({f"t{place}": -3.0 for place in range(9)}))
    assert found.first.name == "t0" and found.sudden and found.first.fall_db == FAITHFUL_DB + 3


def test_one_tensor_alone() -> None:
    assert departure(chain(1), looking({"t0": 5.0})).first.name == "t0"


def test_its_json_is_plain() -> None:
    found = departure(chain(3), looking({"t0": 50.0, "t1": 5.0, "t2": 5.0})).to_json()
    assert found["first"] == {"name": "t1", "layer": "Conv 't1'", "db": 5.0, "fall_db": 45.0}
    assert found["sudden"] is True and len(found["path"]) == 3


@pytest.mark.parametrize("edges", [{}, {"a": ["b"], "b": []}, {"a": ["nowhere"]}])
def test_places_that_make_no_path(edges: dict[str, list[str]]) -> None:
    with pytest.raises(DataError, match="tensor"):
        departure(graph_of(edges), looking({}))
