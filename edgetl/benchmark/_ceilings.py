"""The process that measures ceilings: ``python -m edgetl.benchmark._ceilings DEVICE THREADS``, see `ceilings`.

It prints its result as the last line of stdout.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgetl.benchmark.ceilings import Ceiling, Ceilings, no_ceilings
from edgetl.benchmark.sampler import Sampler
from edgetl.benchmark.sensors import load
from edgetl.errors import EdgetlError

_TIME_S = 0.25
"""Each kernel is repeated for so long, and its best time counts."""
_SIDE = 1024
_LONGEST_SIDE, _LONGEST_SIDE_OF_A_GPU = 4096, 8192
_SHORT_S = 0.01
"""Products that take less are made larger: handing them out to threads would count."""
_CHAIN = 4
"""Products in a row in one graph, so that converting its input counts little."""
_SMALLEST = 1 << 18
"""Bytes: the smallest tensor whose bandwidth is measured; each next one is four times as large, up to 256 MiB."""
_MOVED = 1 << 25
"""Bytes that each thread moves in a call, at least."""
_OF_PRECISION = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

Call = Callable[[], object]


class Kernel(NamedTuple):
    """Something that computes large products in one precision."""

    precision: str
    library: str
    make: Callable[[int], tuple[Call, int]]
    """Side of the matrices → what computes, and how many multiply-adds that is."""


def main() -> None:
    """Measure, and tell."""
    device, threads = sys.argv[1], int(sys.argv[2])
    with Sampler(sources=[load.processor_times, load.own_times]) as sampler:
        found = _processor(threads) if device == "cpu" else _gpu(threads)
    shares = sampler.conditions().load()
    if shares.others is not None and shares.stolen is not None:
        found = replace(found, others=round(shares.others + shares.stolen, 4))
    print(json.dumps(found.to_json()))  # noqa: T201 - this is how the parent learns of it


def _processor(threads: int) -> Ceilings:
    products, unknown = _best([*_numpy(), *_onnxruntime(threads), *_openvino(threads)], ("fp32", "bf16", "int8"))
    with ThreadPoolExecutor(threads) as pool:
        bandwidth = falling([(size, _memory(pool, threads, size)) for size in _sizes()])
    return Ceilings(device="cpu", threads=threads, products=products, bandwidth=bandwidth, unknown=unknown)


def falling(bandwidth: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Bandwidths, ascending by size, with each at least that of the next larger size.

    What moves many bytes at a rate can move few at it. Where it did not, starting was what took the time: a copy that a
    GPU begins takes microseconds, in which it could have copied megabytes.
    """
    found: list[tuple[int, float]] = []
    for size, rate in reversed(bandwidth):
        found.append((size, max(rate, found[-1][1] if found else 0.0)))
    return tuple(reversed(found))


def _best(
    kernels: list[Kernel], wanted: tuple[str, ...], longest: int = _LONGEST_SIDE
) -> tuple[dict[str, Ceiling], dict[str, str]]:
    """The best of each precision, in products of matrices up to a side, and why there is none of another."""
    products: dict[str, Ceiling] = {}
    reasons: dict[str, list[str]] = {name: [] for name in wanted}
    for kernel in kernels:
        try:
            rate, side = _rate(kernel, longest)
        except (EdgetlError, ImportError, RuntimeError) as error:
            reasons.setdefault(kernel.precision, []).append(f"{kernel.library}: {' '.join(str(error).split())[:200]}")
            continue
        known = products.get(kernel.precision)
        if known is None or rate > known.multiply_adds_per_s:
            products[kernel.precision] = Ceiling(
                multiply_adds_per_s=rate, by=f"{kernel.library}, products of {side}\N{SUPERSCRIPT THREE}"
            )
    return products, {
        name: "; ".join(found) or "no installed library multiplies in it"
        for name, found in reasons.items()
        if name not in products
    }


def _rate(kernel: Kernel, longest: int) -> tuple[float, int]:
    """Multiply-adds per second, and at which side."""
    side = _SIDE
    call, multiply_adds = kernel.make(side)
    while side < longest and _shortest(call, 0.0) < _SHORT_S:
        side *= 2
        call, multiply_adds = kernel.make(side)
    return multiply_adds / _shortest(call, _TIME_S), side


def _shortest(call: Call, time_s: float) -> float:
    """Seconds of the fastest call, of three at least."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < time_s:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _numpy() -> Iterator[Kernel]:
    def make(side: int) -> tuple[Call, int]:
        first, second = (_random(side) for _ in range(2))
        return lambda: np.matmul(first, second), side**3

    yield Kernel("fp32", "NumPy", make)


def _onnxruntime(threads: int) -> Iterator[Kernel]:
    for precision in ("fp32", "int8"):

        def make(side: int, precision: str = precision) -> tuple[Call, int]:
            from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "product.onnx"
                _save_product(path, side, precision)
                runner = OnnxRuntimeRunner(path, threads=threads)
                _insist(runner, precision)
            feeds = {"x": _random(side)}
            return lambda: runner.run(feeds), _CHAIN * side**3

        yield Kernel(precision, "ONNX Runtime", make)


def _openvino(threads: int) -> Iterator[Kernel]:
    for precision in ("fp32", "bf16", "int8"):

        def make(side: int, precision: str = precision) -> tuple[Call, int]:
            from edgetl.runtime.openvino import OpenVinoRunner

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "product.onnx"
                _save_product(path, side, precision)
                hint = _OF_PRECISION.get(precision, "f32")
                runner = OpenVinoRunner(path, threads=threads, inference_precision=hint)
                _insist(runner, precision)
            feeds = {"x": _random(side)}
            return lambda: runner.run(feeds), _CHAIN * side**3

        yield Kernel(precision, "OpenVINO", make)


def _insist(runner: Any, precision: str) -> None:
    """A library that computes in another precision than it was asked for has no ceiling of this one."""
    found = dict(runner.placement().multiply_adds)
    if set(found) != {precision}:
        raise RuntimeError(f"it computes the product in {' and '.join(found) or 'nothing that it tells'}")


def _save_product(path: Path, side: int, precision: str) -> None:
    """Products in a row with one constant matrix, as ONNX; for int8 with Q/DQ pairs as engines fuse them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    quantized = precision == "int8"
    generator = np.random.default_rng(0)
    weights = generator.integers(-64, 64, (side, side)).astype(np.int8) if quantized else _random(side)
    constants = [numpy_helper.from_array(weights, "w")]
    nodes = []
    if quantized:
        constants += [
            numpy_helper.from_array(np.float32(0.02), "xs"),
            numpy_helper.from_array(np.uint8(128), "xz"),
            numpy_helper.from_array(np.float32(1 / (37 * side**0.5)), "ws"),  # keeps the values of a chain in range
            numpy_helper.from_array(np.int8(0), "wz"),
        ]
        nodes.append(helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"]))
    last = "x"
    for index in range(_CHAIN):
        if quantized:
            nodes.append(helper.make_node("QuantizeLinear", [last, "xs", "xz"], [f"q{index}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{index}", "xs", "xz"], [f"d{index}"]))
            last = f"d{index}"
        nodes.append(helper.make_node("MatMul", [last, "wf" if quantized else "w"], [f"m{index}"], name=f"m{index}"))
        last = f"m{index}"
    shape = [side, side]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _random(side: int) -> Any:
    return (np.random.default_rng(side).normal(size=(side, side)) / side**0.5).astype(np.float32)


def _sizes() -> list[int]:
    return [_SMALLEST << step for step in range(0, 11, 2)]


def _memory(pool: ThreadPoolExecutor, threads: int, size: int) -> float:
    """Bytes per second of reading so many bytes again and again, or of copying half of them onto the other half."""
    share = max(size // threads // 16 * 16, 16)
    parts = [np.ones(share // 8, np.int64) for _ in range(threads)]
    turns = max(1, _MOVED // share)

    def read(part: Any) -> None:
        np.broadcast_to(part, (turns, len(part))).max(axis=1)  # one call: threads do not wait for each other's Python

    def copy(part: Any) -> None:
        source, copied = part[: len(part) // 2], part[len(part) // 2 :]
        for _ in range(turns):
            np.copyto(copied, source)

    moved = turns * share * threads
    return max(moved / _shortest(partial(_all, pool, work, parts), _TIME_S / 4) for work in (read, copy))


def _all(pool: ThreadPoolExecutor, work: Callable[[Any], None], parts: list[Any]) -> None:
    list(pool.map(work, parts))


def _gpu(threads: int) -> Ceilings:
    """The first NVIDIA GPU, by PyTorch."""
    try:
        import torch
    except ImportError:
        return no_ceilings("cuda", threads=threads, reason="PyTorch, which measures a GPU, is not installed")
    if not torch.cuda.is_available():
        return no_ceilings("cuda", threads=threads, reason="PyTorch finds no NVIDIA GPU")
    torch.backends.cuda.matmul.allow_tf32 = True  # engines take tensor cores for float32 products, too
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
    kernels = [Kernel(name, "PyTorch", _gpu_product(torch, kind)) for name, kind in kinds.items()]
    products, unknown = _best(kernels, tuple(kinds), _LONGEST_SIDE_OF_A_GPU)
    bandwidth = falling([(size, _gpu_memory(torch, size)) for size in _sizes()])
    return Ceilings(device="cuda", threads=threads, products=products, bandwidth=bandwidth, unknown=unknown)


def _gpu_product(torch: Any, kind: Any) -> Callable[[int], tuple[Call, int]]:
    def make(side: int) -> tuple[Call, int]:
        matrices = [torch.randn(side, side, device="cuda").mul(8).to(kind) for _ in range(2)]
        multiply = torch._int_mm if kind == torch.int8 else torch.matmul

        def call() -> None:
            for _ in range(_CHAIN):
                multiply(*matrices)
            torch.cuda.synchronize()

        return call, _CHAIN * side**3

    return make


def _gpu_memory(torch: Any, size: int) -> float:
    source, copied = (torch.zeros(size // 2, dtype=torch.int8, device="cuda") for _ in range(2))
    turns = max(1, 8 * _MOVED // size)

    def call() -> None:
        for _ in range(turns):
            copied.copy_(source)
        torch.cuda.synchronize()

    return turns * size / _shortest(call, _TIME_S / 4)


if __name__ == "__main__":
    main()
