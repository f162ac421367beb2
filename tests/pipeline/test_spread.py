"""What the benchmark kept beside percentiles, for the report."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.benchmark.sampler import Sampler
from edgetl.pipeline.spread import conditions, distributions, rooflines

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


def test_the_device_of_a_roofline_is_that_of_most_of_its_multiply_adds():
    def layer(provider, multiply_adds):
        return {
            "name": "conv",
            "kind": "Conv",
            "precision": "fp32",
            "provider": provider,
            "time_ms": None,
            "multiply_adds": multiply_adds,
            "weight_bytes": 1,
            "activation_bytes": 2,
            "least_ms": 0.1,
            "limit": "fp32",
        }

    def device(*layers):
        found = {"least_ms": 0.2, "share": 0.5, "limits": {"fp32": 1.0}, "layers": list(layers), "reason": ""}
        return rooflines({"roofline": {"an engine": found}})[0].device

    assert device(layer("CUDAExecutionProvider", 900), layer("CPUExecutionProvider", 10)) == "cuda"
    assert device(layer("CUDAExecutionProvider", 10), layer("CPUExecutionProvider", 900)) == "cpu"
    assert device() == "cpu"


def test_conditions_are_those_of_the_benchmark_or_none() -> None:
    with Sampler() as sampler:
        sampler.read()
    found = conditions({"conditions": sampler.conditions().to_json(values=False)})
    assert {"cpu.model", "cpu.governor", "processors used by others"} <= {each.name for each in found}
    assert all(each.source and (each.value is None) == bool(each.why) for each in found)
    assert conditions({"conditions": None}) == conditions({}) == ()
