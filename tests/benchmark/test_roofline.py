"""Rooflines: bounds that follow from counts, and ceilings of this machine as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.benchmark._ceilings import Call, Kernel, _best, falling
from edgetl.benchmark.ceilings import Ceiling, Ceilings, device_of, measure_ceilings, no_ceilings
from edgetl.benchmark.plausibility import most_multiply_adds
from edgetl.benchmark.roofline import Layer, roofline
from edgetl.errors import MeasurementError, UsageError

CPU = Ceilings(
    device="cpu",
    threads=2,
    products={
        "fp32": Ceiling(multiply_adds_per_s=1e10, by="a test"),
        "int8": Ceiling(multiply_adds_per_s=4e10, by="a test"),
    },
    bandwidth=((1 << 18, 1e11), (1 << 22, 4e10), (1 << 26, 1e10)),
    unknown={"bf16": "no unit for it"},
)


def layer(**facts: Any) -> Layer:
    given_ = {"name": "conv", "kind": "Conv", "precision": "fp32", "provider": "CPU", "multiply_adds": 10**7,
              "weight_bytes": 0, "activation_bytes": 0, "time_ms": 2.0}  # fmt: skip
    return Layer(**{**given_, **facts})


def test_a_layer_is_limited_by_its_arithmetic_or_by_the_memory() -> None:
    found = roofline([layer(), layer(precision="int8"), layer(multiply_adds=0, activation_bytes=10**6)], {"cpu": CPU})
    assert [each.limit for each in found.layers] == ["fp32", "int8", "memory"]
    assert [each.least_ms for each in found.layers] == pytest.approx([1.0, 0.25, 1e3 * 1e6 / 1e11])
    assert found.least_ms == pytest.approx(1.26)
    assert found.share(2.52) == pytest.approx(0.5)
    assert list(found.limits) == ["fp32", "int8", "memory"] and sum(found.limits.values()) == pytest.approx(1)
    assert found.layers[0].share == pytest.approx(0.5)
    assert replace(found.layers[0], layer=layer(time_ms=None)).share is None
    document = json.loads(json.dumps(found.to_json(2.52)))
    assert document["share"] == pytest.approx(0.5) and document["layers"][2]["limit"] == "memory"


def test_weights_compete_for_the_caches_and_activations_do_not() -> None:
    small = layer(multiply_adds=1, weight_bytes=1 << 18)
    alone = roofline([small], {"cpu": CPU}).least_ms
    beside = roofline([small, layer(weight_bytes=1 << 26)], {"cpu": CPU}).layers[0].least_ms
    assert alone == pytest.approx(1e3 * (1 << 18) / 1e11)
    assert beside == pytest.approx(1e3 * (1 << 18) / 1e10)
    moved = roofline(
        [replace(small, weight_bytes=0, activation_bytes=1 << 18), layer(weight_bytes=1 << 26)], {"cpu": CPU}
    )
    assert moved.layers[0].least_ms == pytest.approx(alone)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "does not tell how much it computes"),
        ([layer(multiply_adds=0)], "does not tell how much it computes"),
        ([layer(precision="bf16")], "no ceiling of bf16: no unit for it"),
        ([layer(), layer(name="Myelin", precision="unknown")], "does not tell what 'Myelin' computes in"),
        ([layer(precision="fp64")], "no ceiling of fp64: it was not measured"),
        ([layer(), layer(provider="GPU.0")], "ceilings of GPU.0 were not measured"),
        ([layer(provider="CUDAExecutionProvider")], "CUDAExecutionProvider were not measured"),
        ([layer(provider="")], "its device"),
    ],
)
def test_what_is_not_known_is_told_with_its_reason(layers: list[Layer], said: str) -> None:
    found = roofline(layers, {"cpu": CPU})
    assert found.least_ms is None and found.share(1.0) is None and said in found.reason
    assert found.to_json(1.0)["share"] is None
    assert roofline([], {}, reason="the engine failed").reason == "the engine failed"


def test_without_a_bandwidth_nothing_is_claimed_of_what_moves_bytes() -> None:
    bare = replace(CPU, bandwidth=())
    assert "bandwidth" in roofline([layer(weight_bytes=8)], {"cpu": bare}).reason
    assert roofline([layer()], {"cpu": bare}).least_ms == pytest.approx(1.0)


counts = st.integers(0, 10**9)


@given(st.lists(st.tuples(counts, counts, counts), min_size=1, max_size=6), counts, st.integers(0, 2))
def test_more_work_never_needs_less_time(found: list[tuple[int, int, int]], more: int, what: int) -> None:
    layers = [
        layer(multiply_adds=macs + 1, weight_bytes=weights, activation_bytes=moved) for macs, weights, moved in found
    ]
    name = ("multiply_adds", "weight_bytes", "activation_bytes")[what]
    larger = [replace(layers[0], **{name: getattr(layers[0], name) + more}), *layers[1:]]
    before, after = roofline(layers, {"cpu": CPU}), roofline(larger, {"cpu": CPU})
    assert before.least_ms is not None and after.least_ms is not None
    assert after.least_ms >= before.least_ms * (1 - 1e-9)
    assert before.least_ms == pytest.approx(sum(each.least_ms for each in before.layers))


@given(st.integers(0, 1 << 40))
def test_a_bandwidth_is_that_of_the_size_below(size: int) -> None:
    known = [entry for entry in CPU.bandwidth if entry[0] <= size] or [CPU.bandwidth[0]]
    assert CPU.bytes_per_s(size) == known[-1][1]


def test_ceilings_come_back_from_json() -> None:
    assert Ceilings.from_json(json.loads(json.dumps(CPU.to_json()))) == CPU
    nothing = no_ceilings("cuda", threads=1, reason="no GPU")
    assert Ceilings.from_json(nothing.to_json()) == nothing and nothing.unknown["int8"] == "no GPU"


@pytest.mark.parametrize(
    ("provider", "device"),
    [
        *(("CPUExecutionProvider", "cpu"), ("CPU", "cpu"), ("cpu", "cpu")),
        *(("CUDAExecutionProvider", "cuda"), ("gpu:1", "cuda"), ("cuda:0", "cuda")),
        *(("GPU", None), ("GPU.1", None), ("NPU", None), ("", None)),
    ],
)
def test_the_device_of_a_provider(provider: str, device: str | None) -> None:
    assert device_of(provider) == device


def test_this_machine_has_ceilings() -> None:
    pytest.importorskip("openvino")
    found = measure_ceilings(threads=1)
    assert found.device == "cpu" and found.threads == 1
    assert set(found.products) | set(found.unknown) == {"fp32", "bf16", "int8"}
    assert all(found.products[name].multiply_adds_per_s > 1e8 for name in ("fp32", "int8"))
    assert all("products of" in each.by for each in found.products.values())
    assert all(found.unknown.values())
    sizes = [size for size, _ in found.bandwidth]
    assert sizes == sorted(sizes) and len(sizes) >= 5 and all(rate > 1e8 for _, rate in found.bandwidth)
    assert found.others is not None and 0 <= found.others <= 1
    quiet = replace(found, others=0.0)
    assert most_multiply_adds(1, quiet)["fp32"] == pytest.approx(2 * found.products["fp32"].multiply_adds_per_s)


_MEASURED = """
import sys, time
from edgetl.benchmark import _ceilings
from edgetl.benchmark.ceilings import no_ceilings
def wait(threads):
    time.sleep(0.5)
    return no_ceilings("cpu", threads=threads, reason="a test")
_ceilings._processor, sys.argv = wait, ["", "cpu", "1"]
_ceilings.main()
"""


def test_ceilings_beside_a_busy_neighbour_know_of_it() -> None:
    places = os.pathsep.join(str(Path(place).absolute()) for place in sys.path if place)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as hog:
        try:
            done = subprocess.run(
                [sys.executable, "-c", _MEASURED], env={**os.environ, "PYTHONPATH": places}, check=True,
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        finally:
            hog.kill()
    found = Ceilings.from_json(json.loads(done.stdout))
    assert 0 < (found.others or 0) <= 1
    assert replace(found, others=0.2).disturbed and not replace(found, others=0.05).disturbed
    assert not replace(found, others=None).disturbed


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one thread"):
        measure_ceilings(threads=0)
    monkeypatch.setattr("sys.executable", str(tmp_path / "false"))
    (tmp_path / "false").write_text("#!/bin/sh\necho no memory >&2; exit 3\n")
    (tmp_path / "false").chmod(0o755)
    with pytest.raises(MeasurementError, match="could not be measured: no memory"):
        measure_ceilings(threads=1)


def test_small_tensors_have_at_least_the_bandwidth_of_large_ones() -> None:
    """A GPU's copies of 256 KiB are launches, and little else."""
    launched = [(1 << 18, 2e11), (1 << 20, 8e11), (1 << 22, 2.5e12), (1 << 24, 5e12), (1 << 28, 4e12)]
    assert falling(launched) == ((1 << 18, 5e12), (1 << 20, 5e12), (1 << 22, 5e12), (1 << 24, 5e12), (1 << 28, 4e12))


@pytest.mark.parametrize(("longest", "sides"), [(4096, [1024, 2048, 4096]), (8192, [1024, 2048, 4096, 8192])])
def test_products_that_are_over_at_once_are_made_larger(longest: int, sides: list[int]) -> None:
    """Handing them out would be some of the time."""
    tried: list[int] = []

    def make(side: int) -> tuple[Call, int]:
        tried.append(side)
        return lambda: time.sleep(0.002), side**3

    products, unknown = _best([Kernel("bf16", "a test", make)], ("bf16", "int8"), longest)
    assert tried == sides and products["bf16"].by == f"a test, products of {longest}³"
    assert unknown == {"int8": "no installed library multiplies in it"}
