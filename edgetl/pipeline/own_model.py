"""Models that edgetl did not train: quantize and time any ONNX classifier."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import catalog
from edgetl.benchmark import latency
from edgetl.data.load import load_samples
from edgetl.data.loader import ImageSamples, batches
from edgetl.data.splits import draw_calibration
from edgetl.errors import ModelError, TargetError, UsageError
from edgetl.parity.compare import sqnr_db
from edgetl.pipeline.engines import open_graph
from edgetl.pipeline.session import Reporter, Silent
from edgetl.quantize import calibrate, graph, placement, schemes
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.runtime.runner import Runner, run_images
from edgetl.store import storage_errors

_CHECKED = 64
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """What ``edgetl quantize`` came to."""

    output: Path
    scheme: str
    recipe: str
    samples: int
    quantized: dict[str, int]
    left_in_float: dict[str, int]
    size_before_bytes: int
    size_after_bytes: int
    sqnr_db: float
    """Of the outputs on samples of the data, quantized against float, both on ONNX Runtime."""
    agreement: float
    """Share of those samples on which both name the same class."""


def quantize_model(
    model: Path,
    data: Path,
    output: Path,
    *,
    target: str,
    recipe: str = "int8-mse",
    samples: int = 256,
    seed: int = 0,
    memory_mb: int = 256,
    preprocessing: dict[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> QuantizedModel:
    """Quantize an ONNX image classifier for a target.

    Args:
        model: With one float32 input of shape (N, 3, H, W); not changed.
        data: Images: a folder at any depth, or a manifest.
        output: Of the quantized graph. Written whole or not at all.
        target: Name or file; its scheme is used.
        recipe: Name or file.
        samples: How many images to calibrate with, at most.
        seed: Of their draw.
        memory_mb: Of activations alive at once.
        preprocessing: Fields of :class:`ImagePreprocessing` that are stronger than the model's metadata.
        reporter: Is told how it goes.

    Raises:
        ModelError: Not such a model.
        TargetError: The target has no int8 scheme.
        DataError: No usable image.
        StorageError: The output cannot be written.
    """
    reporter = reporter or Silent()
    wanted = catalog.target(target)
    if not wanted.scheme:
        raise TargetError(
            f"the target {wanted.name} takes no int8 graph: it offers {', '.join(wanted.precisions)}",
            hint="edgetl targets",
        )
    scheme, chosen = schemes.scheme(wanted.scheme), catalog.recipe(recipe)
    _check_output(model, output)
    loaded = graph.load(model)
    _check_quantizable(model, loaded)
    prepared = graph.prepare(loaded)
    contract = preprocessing_of(prepared, preprocessing or {})
    drawn = draw_calibration(load_samples(data, max_pixels=contract.max_pixels), samples, seed)
    images = ImageSamples(drawn, contract)
    reporter.started("calibrate", f"{len(drawn)} samples of {data}")
    statistics = calibrate.calibrate(
        prepared,
        placement.points(prepared, [scheme]),
        (found for found, _ in batches(images, graph.fixed_batch(prepared) or _BATCH)),
        open_runner=open_graph,
        memory_mb=memory_mb,
        progress=lambda seen: reporter.progress("calibration samples", seen, len(drawn)),
        describe=lambda index: str(drawn[index].path),
    )
    reporter.started("quantize", f"{chosen.name} in the scheme {scheme.name}")
    done = placement.quantize(prepared, statistics.sketches, scheme, chosen)
    done.model.metadata_props["edgetl.preprocessing"] = json.dumps(contract.to_json(), sort_keys=True)
    with storage_errors(output.parent), _whole(output) as draft:
        import onnx_ir as ir

        ir.save(done.model, draft)
        quality, agreement = _compare(model, draft, images)
    return QuantizedModel(
        output=output,
        scheme=scheme.name,
        recipe=chosen.name,
        samples=len(drawn),
        quantized=dict(done.quantized),
        left_in_float=dict(done.left_in_float),
        size_before_bytes=model.stat().st_size,
        size_after_bytes=output.stat().st_size,
        sqnr_db=quality,
        agreement=agreement,
    )


def _check_output(model: Path, output: Path) -> None:
    """Refuse an output that is the input, or no file name, before any work is done."""
    if output.exists() and model.exists() and output.samefile(model):
        raise UsageError(f"the output {output} is the model itself", hint="-o with another name")
    if output.is_dir():
        raise UsageError(f"the output {output} is a folder", hint=f"-o {output / (model.stem + '-int8.onnx')}")


def _check_quantizable(path: Path, model: Any) -> None:
    """Refuse what calibration cannot run, with a message about the user's file and not about a copy of it.

    Args:
        path: Of the model.
        model: onnx_ir.Model, as it was read.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for node in model.graph):
        raise ModelError(f"{path} is quantized already", hint="give the float graph that it was made from")
    with open_graph(path) as runner:
        if len(runner.inputs) != 1:
            names = ", ".join(spec.name for spec in runner.inputs)
            raise ModelError(f"edgetl quantize feeds one input; {path} has {len(runner.inputs)}: {names}")
        spec = runner.inputs[0]
        if spec.dtype != "float32":
            raise ModelError(f"edgetl quantize starts from a float32 graph; '{spec.name}' of {path} is {spec.dtype}")


def preprocessing_of(model: Any, given: dict[str, Any]) -> ImagePreprocessing:
    """The contract of a model: its metadata, overruled by what is given, with the size from its input.

    Args:
        model: onnx_ir.Model.
        given: Fields of :class:`ImagePreprocessing`.

    Raises:
        ModelError: The input is not (N, 3, H, W) of float32, or mean and standard deviation are not known.
    """
    shape = model.graph.inputs[0].shape
    sizes = [size if isinstance(size, int) else None for size in shape] if shape is not None else []
    if len(sizes) != 4 or sizes[1] not in (3, None):
        raise ModelError(f"edgetl quantize feeds images: an input of (N, 3, H, W); this model takes {shape}")
    text = model.metadata_props.get("edgetl.preprocessing")
    try:
        values = dict(json.loads(text)) if text else {}
    except ValueError:
        raise ModelError("the model's metadata edgetl.preprocessing is not JSON") from None
    values.update(given)
    for name, size in (("height", sizes[2]), ("width", sizes[3])):
        if size and given.get(name, size) != size:
            raise ModelError(f"the model's {name} is fixed to {size}; {given[name]} was given", hint="leave out --size")
        values[name] = size or values.get(name)
        if not values[name]:
            raise ModelError(f"the model's input has a dynamic {name}, and none was given", hint="--size 224")
    missing = [name for name in ("mean", "std") if name not in values]
    if missing:
        raise ModelError(
            f"the model does not say how its images are normalised: {' and '.join(missing)} are not in its metadata",
            hint="--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 (what it was trained with)",
        )
    return ImagePreprocessing.from_json(values)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Latency of one thing that was benchmarked."""

    name: str
    latency: latency.Latency
    inputs: tuple[str, ...]
    """As "input float32[1, 3, 224, 224]"."""


def bench_things(
    things: list[Path],
    *,
    samples: int,
    warmup: int,
    threads: int,
    batch_size: int,
    size: int | None = None,
    provider: str = "CPUExecutionProvider",
    reporter: Reporter | None = None,
) -> list[Measured]:
    """Time models and bundles side by side on the same random inputs.

    Args:
        things: .onnx, .xml and .engine files, and bundles.
        samples: Timed calls each.
        warmup: Calls each before the first timed one.
        threads: Per engine.
        batch_size: For dynamic leading dimensions.
        size: For every other dynamic dimension: height and width, or the length of a sequence.
        provider: ONNX Runtime's, for .onnx files.
        reporter: Is told how it goes.

    Raises:
        UsageError: Something is none of these, or has a dynamic dimension for which no size was given.
    """
    reporter = reporter or Silent()
    with contextlib.ExitStack() as stack:
        runners: dict[str, Runner] = {}
        for thing in things:
            name = str(thing) if str(thing) not in runners else f"{thing} (again)"
            runners[name] = stack.enter_context(_open(thing, threads, provider))
        feeds = {name: _random_feeds(name, runner, batch_size, size) for name, runner in runners.items()}
        times = latency.measure(
            {name: _calling(runner, feeds[name]) for name, runner in runners.items()},
            samples=samples,
            warmup=warmup,
            progress=lambda done, total: reporter.progress("timed calls", done, total),
        )
        return [
            Measured(
                name=name,
                latency=latency.summarise(found),
                inputs=tuple(f"{key} {array.dtype}{list(array.shape)}" for key, array in feeds[name].items()),
            )
            for name, found in times.items()
        ]


def _open(thing: Path, threads: int, provider: str) -> Runner:
    if not thing.exists():
        raise UsageError(f"there is no {thing}")
    if thing.suffix == ".onnx":
        from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(thing, provider=provider, threads=threads)
    if thing.suffix == ".xml":
        from edgetl.runtime.openvino import OpenVinoRunner

        return OpenVinoRunner(thing, threads=threads)
    if thing.suffix == ".engine":
        from edgetl.runtime.tensorrt import TensorRTRunner

        return TensorRTRunner(thing, library="tensorrt", provider="GPU")
    if (thing / "manifest.json").is_file():
        from edgetl.runtime.bundle import open_engine

        bundle = open_bundle(thing)
        return open_engine(thing / bundle.choose().folder, threads=threads)
    raise UsageError(f"{thing} is neither a bundle nor a file ending in .onnx, .xml or .engine")


def _random_feeds(name: str, runner: Runner, batch_size: int, size: int | None) -> dict[str, NDArray[np.generic]]:
    generator = np.random.default_rng(0)
    feeds: dict[str, NDArray[np.generic]] = {}
    for spec in runner.inputs:
        shape = []
        for axis, length in enumerate(spec.shape):
            chosen = length if isinstance(length, int) else (batch_size if axis == 0 else size)
            if chosen is None:  # a model timed at some length of our choosing would be another model
                raise UsageError(
                    f"the input '{spec.name}' of {name} has the dynamic dimension '{length}'", hint="--size 224"
                )
            shape.append(chosen)
        dtype = np.dtype(spec.dtype)
        values = generator.normal(size=shape) if dtype.kind == "f" else np.zeros(shape)
        feeds[spec.name] = values.astype(dtype)
    return feeds


def _calling(runner: Runner, feeds: dict[str, NDArray[np.generic]]) -> Any:
    return lambda: runner.run(feeds)


def _compare(model: Path, quantized: Path, images: ImageSamples) -> tuple[float, float]:
    """SQNR in dB and top-1 agreement of two graphs on some of the images."""
    few = ImageSamples(images.samples[:_CHECKED], images.preprocessing)
    results: tuple[list[NDArray[np.float64]], ...] = ([], [])
    with open_graph(model) as before, open_graph(quantized) as after:
        size = before.inputs[0].shape[0]
        for found, _ in batches(few, size if isinstance(size, int) else _BATCH):
            for runner, outputs in zip((before, after), results, strict=True):
                outputs.append(run_images(runner, found).astype(np.float64))
    first, second = (np.concatenate(outputs) for outputs in results)
    flat = [array.reshape(len(array), -1) for array in (first, second)]
    return sqnr_db(first, second), float((flat[0].argmax(1) == flat[1].argmax(1)).mean())


@contextlib.contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """A draft beside the output, renamed to it only where everything went well."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.stem}.{uuid.uuid4().hex}.onnx")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
