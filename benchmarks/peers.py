"""One other quantizer on one model, in a process of its own: what edgetl's calibration is compared with.

    python benchmarks/peers.py TOOL --model M.onnx --samples feeds.npz --count N --output out.onnx

Writes the quantized model and prints one line of JSON: tool, version, prepare_s (imports, and what the tool's
documentation asks for before quantization), seconds (calibration and quantization alone), extra_peak_mb (resident
memory at the peak, beyond what was resident after imports, loading the samples and one inference) and samples. A tool
that fails prints tool, version and error, and the process ends with 0: a peer's failure is a result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a tool is given."""

    model: Path
    samples: list[Feeds]
    """One sample each: every array has a leading dimension of 1."""
    output: Path
    transformer: bool
    scratch: Path


Work = Callable[[], object]
"""Calibrates, quantizes and writes the output: the part that is timed."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A peer with its settings."""

    package: str
    prepare: Callable[[Job], Work]
    """Imports the library, does what its documentation asks for beforehand, and returns the rest."""
    suffix: str = ".onnx"


def ort_static(job: Job, *, method: str, **types: Any) -> Work:
    """onnxruntime.quantization.quantize_static; QDQ is its default format."""
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self._left = iter(job.samples)

        def get_next(self) -> Feeds | None:
            return next(self._left, None)

    kinds = {name: q.QuantType[value] if isinstance(value, str) else value for name, value in types.items()}
    return partial(
        q.quantize_static,
        _ort_prepared(job),
        job.output,
        Reader(),
        calibrate_method=q.CalibrationMethod[method],
        **kinds,
    )


def ort_dynamic(job: Job) -> Work:
    """onnxruntime.quantization.quantize_dynamic: only weights are quantized beforehand."""
    from onnxruntime import quantization as q

    return partial(q.quantize_dynamic, _ort_prepared(job), job.output, per_channel=True, weight_type=q.QuantType.QInt8)


def _ort_prepared(job: Job) -> Path:
    """Shape inference and graph optimisation, as ONNX Runtime's documentation recommends before quantization."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = job.scratch / "prepared.onnx"
    quant_pre_process(job.model, prepared)
    return prepared


def nncf(
    job: Job, *, preset: str, bias_correction: str = "fast", backend: str = "onnx", ranges: str | None = None
) -> Work:
    """nncf.quantize on an ONNX or an OpenVINO model; bias_correction is "fast", "sequential" or "none".

    ``ranges`` names one of its parameter sets for activations, as MINMAX; its default takes means over samples.
    """
    import nncf as library  # type: ignore[import-not-found]  # in the environment of the peers alone
    from nncf.quantization import range_estimator  # type: ignore[import-not-found]

    if backend == "onnx":
        import onnx

        model, save = onnx.load(job.model), onnx.save
    else:
        import openvino

        model, save = openvino.convert_model(job.model), openvino.save_model

    def work() -> None:
        quantized = library.quantize(
            model,
            library.Dataset(job.samples),
            preset=library.QuantizationPreset[preset],
            subset_size=len(job.samples),
            fast_bias_correction=bias_correction != "sequential",
            model_type=library.ModelType.TRANSFORMER if job.transformer else None,
            advanced_parameters=library.AdvancedQuantizationParameters(
                disable_bias_correction=bias_correction == "none",
                activations_range_estimator_params=(
                    getattr(range_estimator.RangeEstimatorParametersSet, ranges)
                    if ranges
                    else range_estimator.RangeEstimatorParameters()
                ),
            ),
        )
        save(quantized, job.output)

    return work


def modelopt(job: Job, *, method: str) -> Work:
    """modelopt.onnx.quantization.quantize on the CPU provider, with float32 between the int8 operators."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    together = {name: np.concatenate([feeds[name] for feeds in job.samples]) for name in job.samples[0]}
    return partial(
        quantize,
        str(job.model),
        quantize_mode="int8",
        calibration_data=together,
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(job.output),
    )


def edgetl(job: Job, *, recipe: str, scheme: str) -> Work:
    """edgetl's own way from the float graph to the quantized one, its layer report included."""
    import onnx_ir as ir

    from edgetl import catalog
    from edgetl.quantize import changes, graph, recipes
    from edgetl.quantize.schemes import scheme as scheme_of
    from edgetl.quantize.tools import Tools
    from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

    chosen, wanted = catalog.recipe(recipe), scheme_of(scheme)
    tools = Tools(samples=lambda: job.samples, open_runner=OnnxRuntimeRunner)
    prepared = graph.prepare(graph.load(job.model))

    def work() -> None:
        statistics = recipes.calibrate(prepared, tools, [wanted])
        model = prepared
        if recipes.changes_graph(chosen):
            changed = changes.change(prepared, statistics, chosen, tools)
            model, statistics = changed.model, changed.statistics
        ir.save(recipes.make(model, statistics, wanted, chosen, tools).model, job.output)

    return work


def edgetl_estimators(job: Job) -> Work:
    """One calibration, and the ranges of every activation by all four estimators read from it."""
    from edgetl.quantize import graph, ranges, recipes, statistics
    from edgetl.quantize.schemes import scheme as scheme_of
    from edgetl.quantize.tools import Tools
    from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
    from edgetl.specs import Estimator

    wanted = scheme_of("onnxruntime-x86-vnni")
    tools = Tools(samples=lambda: job.samples, open_runner=OnnxRuntimeRunner)
    prepared = graph.prepare(graph.load(job.model))

    def work() -> None:
        found = recipes.calibrate(prepared, tools, [wanted])
        for method in ("minmax", "percentile", "entropy", "mse"):
            for sketch in found.sketches.values():
                ranges.activation_params(sketch, Estimator(method=method), wanted.activations)  # type: ignore[arg-type]
        statistics.save(found, job.output.parent)

    return work


_U8S8: dict[str, Any] = {"activation_type": "QUInt8", "weight_type": "QInt8", "per_channel": True}
_RECIPES = (
    *("int8-minmax", "int8-percentile", "int8-entropy", "int8-mse"),
    *("int8-mse-corrected", "int8-search", "int8-smoothquant", "int8-dynamic"),
)
_SCHEMES = ("onnxruntime-x86-vnni", "openvino-vnni")
_ORT, _NNCF, _MODELOPT = "onnxruntime", "nncf", "nvidia-modelopt"

TOOLS = {
    "ort-minmax": Tool(package=_ORT, prepare=partial(ort_static, method="MinMax", **_U8S8)),
    "ort-entropy": Tool(package=_ORT, prepare=partial(ort_static, method="Entropy", **_U8S8)),
    "ort-percentile": Tool(package=_ORT, prepare=partial(ort_static, method="Percentile", **_U8S8)),
    "ort-minmax-s8s8": Tool(package=_ORT, prepare=partial(ort_static, method="MinMax")),
    "ort-dynamic": Tool(package=_ORT, prepare=ort_dynamic),
    "nncf-performance": Tool(package=_NNCF, prepare=partial(nncf, preset="PERFORMANCE")),
    "nncf-mixed": Tool(package=_NNCF, prepare=partial(nncf, preset="MIXED")),
    "nncf-mixed-bc": Tool(package=_NNCF, prepare=partial(nncf, preset="MIXED", bias_correction="sequential")),
    "nncf-minmax": Tool(package=_NNCF, prepare=partial(nncf, preset="MIXED", ranges="MINMAX")),
    "nncf-performance-nobc": Tool(package=_NNCF, prepare=partial(nncf, preset="PERFORMANCE", bias_correction="none")),
    "nncf-mixed-nobc": Tool(package=_NNCF, prepare=partial(nncf, preset="MIXED", bias_correction="none")),
    "nncf-openvino-mixed": Tool(
        package=_NNCF, prepare=partial(nncf, preset="MIXED", backend="openvino"), suffix=".xml"
    ),
    "nncf-openvino-mixed-bc": Tool(
        package=_NNCF,
        prepare=partial(nncf, preset="MIXED", bias_correction="sequential", backend="openvino"),
        suffix=".xml",
    ),
    **{
        f"edgetl-{recipe}": Tool(package="edgetl", prepare=partial(edgetl, recipe=recipe, scheme=_SCHEMES[0]))
        for recipe in _RECIPES
    },
    **{
        f"edgetl-openvino-{recipe}": Tool(package="edgetl", prepare=partial(edgetl, recipe=recipe, scheme=_SCHEMES[1]))
        for recipe in _RECIPES
    },
    "edgetl-estimators": Tool(package="edgetl", prepare=edgetl_estimators),
    "modelopt-max": Tool(package=_MODELOPT, prepare=partial(modelopt, method="max")),
    "modelopt-entropy": Tool(package=_MODELOPT, prepare=partial(modelopt, method="entropy")),
}
"""Static ONNX Runtime in the types that its documentation recommends for x86-64 with VNNI; s8s8 is its default."""


def run_peer(
    tool: str, model: Path, samples: Path, count: int, output: Path, *, python: Path, transformer: bool, timeout_s: int
) -> dict[str, Any]:
    """Run this script in a process of its own.

    Args:
        tool: A key of :data:`TOOLS`.
        model: The float ONNX model.
        samples: An .npz of arrays by input name, shape (n, ...).
        count: How many of the samples to calibrate with.
        output: Where the quantized model goes.
        python: The interpreter of the environment that has the tool.
        transformer: Tell the tool that the model is a transformer, where it asks.
        timeout_s: After which the process is ended.

    Returns:
        The line that it printed; with "error" where it failed, was killed or took too long.
    """
    command = [str(python), __file__, tool, "--model", str(model), "--samples", str(samples), "--count", str(count)]
    command += ["--output", str(output), *(["--transformer"] if transformer else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return {"tool": tool, "error": f"took more than {timeout_s} s"}
    if done.returncode:
        return {"tool": tool, "error": f"ended with {done.returncode}: {done.stderr.strip()[-500:]}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measured(name: str, job: Job) -> dict[str, Any]:
    began = time.perf_counter()
    work = TOOLS[name].prepare(job)
    prepared = time.perf_counter()
    session = _warm(job)
    before = _memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    del session
    started = time.perf_counter()
    work()
    ended = time.perf_counter()
    return {
        "prepare_s": round(prepared - began, 3),
        "seconds": round(ended - started, 3),
        "extra_peak_mb": round(_memory_mb("VmHWM") - before, 1),
        "samples": len(job.samples),
    }


def _warm(job: Job) -> Any:
    """A session of the float model after one inference: what any quantizer that runs the model has to hold."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(job.model), providers=["CPUExecutionProvider"])
    session.run(None, job.samples[0])
    return session


def _memory_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1000
    raise RuntimeError(f"/proc/self/status has no {field}")


def _version(package: str) -> str | None:
    for name in (package, f"{package}-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return None


def _one_by_one(samples: Path, count: int) -> list[Feeds]:
    with np.load(samples) as arrays:
        feeds = {name: arrays[name][:count] for name in arrays.files}
    there = min(map(len, feeds.values()))
    if there < count:
        raise SystemExit(f"{samples} has {there} samples; {count} were asked for")
    return [{name: array[index : index + 1] for name, array in feeds.items()} for index in range(count)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--transformer", action="store_true")
    given = parser.parse_args(arguments)
    if given.output.suffix != TOOLS[given.tool].suffix:
        parser.error(f"{given.tool} writes {TOOLS[given.tool].suffix} files; --output is {given.output.name}")
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        job = Job(
            model=given.model,
            samples=_one_by_one(given.samples, given.count),
            output=given.output,
            transformer=given.transformer,
            scratch=Path(scratch),
        )
        found: dict[str, Any] = {"tool": given.tool, "version": _version(TOOLS[given.tool].package)}
        try:
            found |= _measured(given.tool, job)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
            found["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
