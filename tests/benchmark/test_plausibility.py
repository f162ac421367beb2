"""Results that cannot be true."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgetl.benchmark.ceilings import Ceiling, Ceilings
from edgetl.benchmark.plausibility import implausible, most_multiply_adds
from edgetl.benchmark.process import Check
from edgetl.benchmark.summary import Latency


def latency(**given: Any) -> Latency:
    values: dict[str, Any] = {
        "p50_ms": 1.0, "p90_ms": 1.2, "p99_ms": None, "p999_ms": None, "p50_interval_ms": None,
        "p90_interval_ms": None, "p99_interval_ms": None, "p999_interval_ms": None, "confidence": 0.95,
        "mean_ms": 1.0, "min_ms": 0.9, "max_ms": 1.5, "samples": 100, "processes": 5,
    }  # fmt: skip
    return Latency(**{**values, **given})


def doubts(measured: Latency, *, depends: bool | None = True, **multiply_adds: int) -> tuple[str, ...]:
    check = Check(depends_on_input=depends, multiply_adds=multiply_adds)
    return implausible(measured, check, timer_ns=60, ceilings=most_multiply_adds(2))


def test_what_is_plausible() -> None:
    assert doubts(latency(), int8=390_000_000) == ()
    assert doubts(latency(), depends=None) == ()


def test_quicker_than_the_clock_can_tell() -> None:
    quick = latency(p50_ms=0.0001, min_ms=0.0001)
    assert doubts(quick) == ("a call takes 100 ns, and timing nothing takes 60 ns",)


def test_outputs_that_do_not_depend_on_inputs() -> None:
    assert doubts(latency(), depends=False) == ("its outputs are the same whatever it is fed",)


def test_outputs_that_are_no_numbers_are_told_as_such() -> None:
    check = Check(depends_on_input=False, multiply_adds={}, finite=False)
    assert implausible(latency(), check, timer_ns=60) == ("its outputs are NaN or infinite, all of them",)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"p50_ms": 1.3}, "its p50 (1.3000 ms) is above its p90 (1.2000 ms)"),
     ({"min_ms": 1.1}, "its least (1.1000 ms) is above its p50"),
     ({"max_ms": 1.0}, "its p90 (1.2000 ms) is above its greatest")],
)  # fmt: skip
def test_percentiles_that_are_not_in_order(wrong: dict[str, float], words: str) -> None:
    (found,) = doubts(latency(**wrong))
    assert words in found


def test_faster_than_any_processor_multiplies() -> None:
    (found,) = doubts(latency(), fp32=10**10)
    assert "10000.0 million multiply-adds" in found
    check = Check(depends_on_input=True, multiply_adds={"fp32": 10**10})
    assert implausible(latency(), check, timer_ns=60) == ()  # nothing is known of the machine
    assert implausible(latency(), check, timer_ns=60, ceilings={"int8": 1.0}) == ()  # nor of this precision
    measured = {"fp32": 1e12}  # a ceiling of 1e12 multiply-adds per second: 10 ms
    assert (
        len(
            implausible(latency(p50_ms=9.0, p90_ms=9.5, min_ms=8.0, max_ms=10.0), check, timer_ns=60, ceilings=measured)
        )
        == 1
    )
    assert implausible(latency(p50_ms=11.0, p90_ms=12.0, max_ms=13.0), check, timer_ns=60, ceilings=measured) == ()


def test_a_core_with_tiles_for_fp32_is_believed() -> None:
    """An Apple M4 does 2 TFLOPS on one core (Remke and Breuer 2024, arXiv:2409.18779): 1e9 multiply-adds in 1 ms."""
    check = Check(depends_on_input=True, multiply_adds={"fp32": 10**9})
    assert implausible(latency(), check, timer_ns=60, ceilings=most_multiply_adds(1)) == ()


def test_a_machines_own_ceilings_are_narrower_than_any_machines() -> None:
    measured = Ceilings(
        device="cpu", threads=2, bandwidth=(), products={"fp32": Ceiling(multiply_adds_per_s=1e10, by="a test")}
    )
    found = most_multiply_adds(2, measured)
    assert found["fp32"] == 2e10 < most_multiply_adds(2)["fp32"]
    assert found["int8"] == most_multiply_adds(2)["int8"]  # which was not measured


def test_ceilings_that_others_lowered_refuse_nothing() -> None:
    """A third of the true one was measured beside a busy neighbour: an engine at 70% of that one is no wonder."""
    products = {"fp32": Ceiling(multiply_adds_per_s=1e10, by="a test")}
    beside = Ceilings(device="cpu", threads=2, bandwidth=(), products=products, others=0.45)
    assert most_multiply_adds(2, beside) == most_multiply_adds(2)
    assert most_multiply_adds(2, replace(beside, others=0.02))["fp32"] == 2e10
