"""Distributions of times for the report, from what the benchmark kept."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.pipeline.spread import distributions

histogram = pytest.importorskip("hdrh.histogram", reason="extra bench")


def encoded(times_ns):
    made = histogram.HdrHistogram(1, 3_600_000_000_000, 3)
    for value in times_ns:
        made.record_value(value)
    return made.encode().decode("ascii")


@settings(max_examples=20)
@given(st.lists(st.integers(1_000, 10**10), min_size=20, max_size=900))
def test_times_come_back_with_their_ends(times):
    found = distributions({"histogram": {"an engine": encoded(times)}})[0]
    assert (found.name, found.samples) == ("an engine", len(times))
    assert len(found.times_ms) == min(len(times), 400) and list(found.times_ms) == sorted(found.times_ms)
    assert found.times_ms[0] == pytest.approx(min(times) / 1e6, rel=2e-3)
    assert found.times_ms[-1] == pytest.approx(max(times) / 1e6, rel=2e-3)
    if len(times) <= 400:
        assert found.times_ms == pytest.approx([value / 1e6 for value in sorted(times)], rel=2e-3)


def test_what_has_no_histogram_or_few_calls_is_left_out():
    assert distributions({}) == ()
    assert distributions({"histogram": {"a": None, "b": encoded([1000] * 19)}}) == ()
