"""Which operators of ONNX Runtime and OpenVINO saturate on a processor without VNNI, and in which order they pair.

Runs tiny int8 graphs with weights and activations that would saturate, here and under `qemu-x86_64-static -cpu
Haswell-noTSX` (AVX2, no VNNI; Debian's package qemu-user-static), and compares each byte of the outputs with exact sums
and with emulations of vpmaddubsw. The findings are in docs/saturation.md.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgetl.quantize.saturation import emulate_pair_sums, exact_sums

CASES = {
    # name: operator, output channels, input channels, kernel, groups; a matrix product has rows in place of a kernel
    "Conv 1×1": ("Conv", 24, 960, 1, 1),
    "Conv 3×3": ("Conv", 24, 16, 3, 1),
    "Conv 3×3, 3 input channels": ("Conv", 24, 3, 3, 1),
    "Conv 3×3, 5 input channels": ("Conv", 24, 5, 3, 1),
    "Conv in 4 groups of 4 input channels": ("Conv", 16, 16, 3, 4),
    "Conv in 4 groups of 3 input channels": ("Conv", 12, 12, 3, 4),
    "depthwise 3×3": ("Conv", 16, 16, 3, 16),
    "depthwise 3×3, multiplier 2": ("Conv", 32, 16, 3, 16),
    "MatMul, 1 row": ("MatMul", 24, 512, 1, 1),
    "MatMul, 8 rows": ("MatMul", 24, 512, 8, 1),
    "Gemm, 1 row": ("Gemm", 24, 513, 1, 1),
    "Gemm, 8 rows": ("Gemm", 24, 513, 8, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("onnxruntime", "openvino"), help="measure here, and print JSON")
    parser.add_argument("--cpu", default="Haswell-noTSX", help="as `qemu-x86_64-static -cpu help` names them")
    arguments = parser.parse_args()
    if arguments.engine:
        print(json.dumps({name: verdict(arguments.engine, *case) for name, case in CASES.items()}))
        return
    emulator = shutil.which("qemu-x86_64-static")
    if emulator is None:
        print(
            "qemu-x86_64-static is not installed (Debian, Ubuntu: apt-get install qemu-user-static); only this machine:"
        )
    places = {"here": []} | ({arguments.cpu: [emulator, "-cpu", arguments.cpu]} if emulator else {})
    for engine in ("onnxruntime", "openvino"):
        found = {place: measure(prefix, engine) for place, prefix in places.items()}
        print(f"\n| {engine} | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
        for name in CASES:
            print(f"| {name} | {' | '.join(result[name] for result in found.values())} |")


def measure(prefix: list[str], engine: str) -> dict[str, str]:
    """The verdict by case, from a process of its own."""
    command = [*prefix, sys.executable, __file__, "--engine", engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def verdict(engine: str, operator: str, outputs: int, inputs: int, size: int, groups: int) -> str:
    """Which of the sums gives the engine's output in every byte; "saturates" where both layouts are the same."""
    random = np.random.default_rng(0)
    kernel = (size, size) if operator == "Conv" else ()
    weights = np.clip(np.rint(random.normal(size=(outputs, inputs // groups, *kernel)) * 80), -127, 127).astype(np.int8)
    shape = (1, inputs, 8, 8) if kernel else (size, inputs)
    activations = random.choice(np.asarray([0, 200, 250, 255], np.uint8), shape)
    scale = float(np.sqrt(weights[0].size) * 80 * 200 / 60)
    output = np.rint(
        run(engine, model(operator, weights, shape, groups, scale), activations.astype(np.float32)) / scale
    )
    matching = [name for name, sums in candidates(weights, activations, groups) if agrees(sums, output, scale)]
    if "exact" in matching:  # also where a layout has no pair to saturate
        return "exact"
    return "saturates" if len(matching) == 2 else ", ".join(matching) or "none of the candidates"


def agrees(sums: np.ndarray, output: np.ndarray, scale: float) -> bool:
    expected = np.clip(np.rint(sums.astype(np.float32) / np.float32(scale)), -128, 127)
    return np.array_equal(expected.T.reshape(output.shape) if output.ndim == 4 else expected, output)


def candidates(weights: np.ndarray, activations: np.ndarray, groups: int) -> Iterator[tuple[str, np.ndarray]]:
    """Exact and emulated sums, shape (rows, output channels), by name."""
    if weights.ndim == 2:
        yield "exact", exact_sums(activations, weights)
        yield "saturates", emulate_pair_sums(activations, weights)
        return
    kernel = weights.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(activations[0], kernel, axis=(1, 2))
    windows = windows.transpose(1, 2, 0, 3, 4).reshape(-1, activations.shape[1], int(np.prod(kernel)))
    parts = list(zip(np.split(windows, groups, axis=1), np.split(weights, groups), strict=True))
    for name, padding in (("exact", 0), ("saturates, flat", 0), ("saturates, each position padded", 4)):
        sums = []
        for columns, filters in parts:
            left = columns.transpose(0, 2, 1)
            right = filters.reshape(*filters.shape[:2], -1).transpose(0, 2, 1)
            if padding:
                extra = ((0, 0), (0, 0), (0, -left.shape[2] % padding))
                left, right = np.pad(left, extra), np.pad(right, extra)
            function = exact_sums if name == "exact" else emulate_pair_sums
            sums.append(function(left.reshape(len(left), -1), right.reshape(len(right), -1)))
        yield name, np.concatenate(sums, axis=1)


def model(operator: str, weights: np.ndarray, shape: tuple[int, ...], groups: int, scale: float) -> bytes:
    """A graph of one operator between its Q/DQ pairs; activations have scale 1, so do weights."""
    from onnx import TensorProto, helper, numpy_helper

    stored = weights.T.copy() if operator == "MatMul" else weights
    channels = len(weights)
    constants: dict[str, Any] = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "w": stored,
        "w_scale": np.ones(channels, np.float32),
        "w_zero": np.zeros(channels, np.int8),
        "y_scale": np.float32(scale),
        "y_zero": np.uint8(128),
    }
    attributes = {"Conv": {"group": groups}, "Gemm": {"transB": 1}, "MatMul": {}}[operator]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "one", "zero"], ["x_d"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_d"], axis=int(operator == "MatMul")),
        helper.make_node(operator, ["x_d", "w_d"], ["sums"], **attributes),
        helper.make_node("QuantizeLinear", ["sums", "y_scale", "y_zero"], ["y_q"]),
        helper.make_node("DequantizeLinear", ["y_q", "y_scale", "y_zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def run(engine: str, graph: bytes, activations: np.ndarray) -> np.ndarray:
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": activations})[0])
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    return np.asarray(core.compile_model(core.read_model(io.BytesIO(graph)), "CPU", settings)(activations)[0])


if __name__ == "__main__":
    main()
