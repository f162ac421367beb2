"""How near a quantized model is to the float one, and how fast: one measure for edgetl's graphs and for others'."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.benchmark import environment
from edgetl.benchmark.feeds import Feeds as FedFrom
from edgetl.benchmark.sampling import Plan, measure
from edgetl.benchmark.things import Thing
from edgetl.errors import DataError
from edgetl.parity.numeric import sqnr_db
from edgetl.pipeline.timing import latency_of
from edgetl.quantize.fidelity import Fidelity
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner
from edgetl.runtime.openvino import OpenVinoRunner

Engine = Literal["onnxruntime", "openvino"]
Feeds = Mapping[str, NDArray[np.generic]]


def opened(model: Path, engine: Engine, threads: int | None = None) -> OnnxRuntimeRunner | OpenVinoRunner:
    """A model on the CPU, float layers in float32, on all cores that this process may use where none are named."""
    threads = threads or environment.usable_cores()
    if engine == "openvino":
        return OpenVinoRunner(model, inference_precision="f32", threads=threads)
    return OnnxRuntimeRunner(model, threads=threads)


def outputs(model: Path, feeds: Feeds, engine: Engine = "onnxruntime") -> NDArray[np.float64]:
    """The first output of every sample, run one by one, as on an edge device.

    Args:
        model: An .onnx file; for OpenVINO an .xml file, too.
        feeds: Arrays by input name, shape (n, ...).
        engine: What runs it.

    Returns:
        Shape (n, ...).

    Raises:
        DataError: There is no sample, or the inputs have different numbers of them.
    """
    counts = {len(array) for array in feeds.values()}
    if len(counts) != 1 or counts == {0}:
        raise DataError(f"every input needs the same number of samples, at least one; there are {sorted(counts)}")
    with opened(model, engine, threads=1) as runner:  # threads that wait for each other spin, which costs others a core
        first = runner.outputs[0].name
        rows = [runner.run(sample(feeds, index))[first][0] for index in range(counts.pop())]
    return np.stack(rows).astype(np.float64)


def sample(feeds: Feeds, index: int) -> dict[str, NDArray[np.generic]]:
    """One sample, with a leading dimension of 1."""
    return {name: array[index : index + 1] for name, array in feeds.items()}


def evaluate(
    reference: NDArray[np.float64],
    quantized_model: Path,
    feeds: Feeds,
    labels: NDArray[np.integer] | None,
    engine: Engine,
) -> dict[str, Any]:
    """Compare a quantized model with the float one.

    Args:
        reference: The float model's :func:`outputs` for the same feeds, shape (n, classes).
        quantized_model: An .onnx file; for OpenVINO an .xml file, too.
        feeds: Arrays by input name, shape (n, ...).
        labels: The right classes, shape (n,), where they are known.
        engine: What runs the quantized model.

    Returns:
        samples; sqnr_db over all samples' outputs together, typical_db the mean of the samples' own; agreement (share
        of samples on which both name the same class) and differs, the places of the others; and with labels top1 and
        top1_float, as shares, lost and won: samples that only the float model, or only the quantized one, names
        rightly.
    """
    got = outputs(quantized_model, feeds, engine)
    if got.shape != reference.shape:
        raise DataError(f"the float model returns {list(reference.shape)}, {quantized_model.name} {list(got.shape)}")
    named, expected = got.argmax(-1), reference.argmax(-1)
    found: dict[str, Any] = {
        "samples": len(got),
        "sqnr_db": sqnr_db(reference, got),
        "agreement": float((named == expected).mean()),
    }
    found["differs"] = np.flatnonzero(named != expected).tolist()
    signal, noise = (np.square(array).reshape(len(array), -1).sum(1) for array in (reference, reference - got))
    found["typical_db"] = Fidelity(signal=signal, noise=noise).typical_db
    if labels is not None:
        right, was_right = named == labels, expected == labels
        found |= {"top1": float(right.mean()), "top1_float": float(was_right.mean())}
        found |= {"lost": int((was_right & ~right).sum()), "won": int((right & ~was_right).sum())}
    return found


def int8_share(model: Path, engine: Engine) -> float | None:
    """Share of the multiply-adds that an engine really runs in 8-bit integers, by its own optimised graph.

    Args:
        model: An .onnx file; for OpenVINO an .xml file, too.
        engine: What runs it, with every dynamic dimension 1.

    Returns:
        0 to 1; None of a model without multiply-adds.
    """
    with opened(model, engine) as runner:
        return runner.placement().int8_share


def latency(
    models: Mapping[str, Path], engine: Engine, feeds1: Feeds, *, samples: int = 200, warmup: int = 20
) -> dict[str, float]:
    """Median milliseconds per inference of some models, interleaved in fresh processes.

    Args:
        models: Name → file.
        engine: What runs all of them.
        feeds1: One sample, with a leading dimension of 1.
        samples: Calls per model that count.
        warmup: Calls per process that are planned for warming up.

    Returns:
        Name → median in ms.
    """
    imports = ("numpy", engine, f"edgetl.runtime.{engine}")
    things = [
        Thing(name=name, opener=engine, path=path.resolve(), imports=imports, provider="CPUExecutionProvider")
        for name, path in models.items()
    ]
    plan = Plan(samples=samples, warmup=warmup, threads=environment.usable_cores())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "feeds.npz"
        np.savez(file, **feeds1)
        return {each.thing.name: latency_of(each).p50_ms for each in measure(things, FedFrom(file=file), plan)}
