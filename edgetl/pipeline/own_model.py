"""Models that edgetl did not train: quantize any ONNX classifier."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl import catalog
from edgetl.data.load import load_samples
from edgetl.data.loader import Samples, batches
from edgetl.data.splits import draw_calibration
from edgetl.drafts import draft_name, is_abandoned
from edgetl.errors import DataError, ModelError, TargetError, UsageError
from edgetl.numbers import counted
from edgetl.parity.numeric import sqnr_db
from edgetl.pipeline.engines import open_graph
from edgetl.pipeline.precisions import is_halved
from edgetl.pipeline.quantized import without_nan
from edgetl.pipeline.session import Reporter, Silent
from edgetl.quantize import emulation, graph, placement, recipes, schemes
from edgetl.quantize.changes import change
from edgetl.quantize.tools import Tools
from edgetl.quantize.walk import batches_of
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.specs import Recipe
from edgetl.store import check_output, storage_errors

if TYPE_CHECKING:
    import onnx_ir as ir

_CHECKED = 64
_BATCH = 16
_DRAFT = ".edgetl-"


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
    """Of the first output on samples of the data, quantized against float, both on ONNX Runtime."""
    agreement: float
    """Share of those samples on which both name the same class."""
    layers: dict[str, Any] | None
    """The layer report, worst layers first; None of a recipe without one."""
    notes: dict[str, Any]
    """What changes of the float graph, corrections and searches did."""


def quantize_model(
    model: Path,
    data: Path,
    output: Path,
    *,
    target: str,
    recipe: str = "int8-mse",
    samples: int = 256,
    seed: int = 0,
    memory_mb: int = 512,
    preprocessing: dict[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> QuantizedModel:
    """Quantize an ONNX model for a target, or put it into float16.

    Args:
        model: Not changed. With images for data, it has one float32 input of shape (N, 3, H, W).
        data: Images: a folder at any depth, or a manifest. Or an .npz file of arrays by input name, of any dtypes and
            one length, fed as they are: for models of text, tables or anything else.
        output: Of the quantized graph. Written whole or not at all.
        target: Name or file; its scheme is used, of a recipe of kind "float16" none.
        recipe: Name or file.
        samples: How many samples to calibrate with, at most.
        seed: Of their draw.
        memory_mb: Of activations alive at once.
        preprocessing: Fields of :class:`ImagePreprocessing` that are stronger than the model's metadata.
        reporter: Is told how it goes.

    Raises:
        ModelError: Not such a model.
        TargetError: The target has no int8 scheme, takes no graph in float16, or cannot run such a recipe.
        UnknownNameError: No such target or recipe, or the recipe keeps something in float that the model does not have.
        DataError: No usable sample.
        StorageError: The output cannot be written.
    """
    reporter = reporter or Silent()
    chosen = catalog.recipe(recipe)
    scheme = _scheme_of(target, chosen)
    loaded = graph.load(model)
    _check_quantizable(model, loaded, images=data.suffix != ".npz")
    prepared = graph.prepare(loaded)
    placement.refuse_unknown(chosen.keep_float, prepared.graph)  # before minutes of calibration
    _check_output(model, output)
    source = _source(data, prepared, samples, seed, preprocessing or {})
    tools = Tools(
        samples=source.feeds,
        open_runner=open_graph,
        memory_mb=memory_mb,
        progress=lambda what, done, total: reporter.progress(what, done, total or source.count),
        describe=source.describe,
    )
    made, changes = _made(prepared, scheme, chosen, tools, reporter, f"{counted(source.count, 'sample')} of {data}")
    with _whole(output) as draft:
        import onnx_ir as ir

        ir.save(made.model, draft)
        quality, agreement = _compare(model, made.model, source, graph.fixed_batch(prepared))
    return QuantizedModel(
        output=output,
        scheme=scheme.name if scheme is not None else "float16",
        recipe=chosen.name,
        samples=source.count,
        quantized=dict(made.quantized),
        left_in_float=dict(made.left_in_float),
        size_before_bytes=model.stat().st_size,
        size_after_bytes=output.stat().st_size,
        sqnr_db=quality,
        agreement=agreement,
        layers=asdict(made.report) if made.report is not None else None,
        notes={**changes, **made.notes},
    )


def _scheme_of(target: str, recipe: Recipe) -> schemes.Scheme | None:
    """The int8 scheme of a target, given by name or file; None for float16, which needs none."""
    wanted = catalog.target(target)
    if recipe.kind == "float16":
        if not is_halved(wanted, "fp16"):
            how = "converts to float16 by itself" if "fp16" in wanted.precisions else "takes no float16"
            raise TargetError(
                f"the recipe {recipe.name} puts float16 into the graph, and the target {wanted.name} {how}: "
                f"it offers {', '.join(wanted.precisions)} on {wanted.backend}",
                hint="edgetl targets; or an int8 recipe: edgetl recipes",
            )
        return None
    if not wanted.scheme:
        raise TargetError(
            f"the target {wanted.name} takes no int8 graph: it offers {', '.join(wanted.precisions)}",
            hint="--recipe fp16" if is_halved(wanted, "fp16") else "edgetl targets",
        )
    return schemes.scheme(wanted.scheme)


def _made(
    prepared: ir.Model, scheme: schemes.Scheme | None, recipe: Recipe, tools: Tools, reporter: Reporter, samples: str
) -> tuple[recipes.Made, dict[str, Any]]:
    """Calibrate, change the float graph where the recipe wants it, quantize; the graph, and what was changed."""
    if scheme is None:
        reporter.started("half", f"{recipe.name}, by {samples}")
        return recipes.make_half(prepared, recipe, tools), {}
    reporter.started("calibrate", samples)
    statistics = recipes.calibrate(prepared, tools, [scheme])
    changes: dict[str, Any] = {}
    unchanged = None
    if recipes.changes_graph(recipe):
        reporter.started("equalize", f"channels as {recipe.name} wants them")
        unchanged = recipes.Unchanged(model=prepared, statistics=statistics)
        changed = change(prepared, statistics, recipe, tools)
        prepared, statistics = changed.model, changed.statistics
        changes["equalized"] = without_nan([asdict(item) for item in changed.equalized])
        changes["separated"] = without_nan([asdict(item) for item in changed.separated])
        changes["smoothed"] = without_nan([asdict(item) for item in changed.smoothed])
    reporter.started("quantize", f"{recipe.name} in the scheme {scheme.name}")
    return recipes.make(prepared, statistics, scheme, recipe, tools, unchanged), changes


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Samples to calibrate with."""

    count: int
    feeds: Callable[[], Iterator[dict[str, NDArray[Any]]]]
    """Gives them anew each time, in batches."""
    describe: Callable[[int], str]


def _source(data: Path, model: ir.Model, most: int, seed: int, preprocessing: dict[str, Any]) -> _Source:
    """The samples of a file of arrays; or of images, whose preprocessing is then noted in the model's metadata."""
    if data.suffix == ".npz":
        return _arrays(data, most, seed)
    contract = preprocessing_of(model, preprocessing)
    model.metadata_props["edgetl.preprocessing"] = json.dumps(contract.to_json(), sort_keys=True)
    return _pictures(data, contract, model, most, seed)


def _pictures(data: Path, contract: ImagePreprocessing, model: ir.Model, most: int, seed: int) -> _Source:
    drawn = draw_calibration(load_samples(data, max_pixels=contract.max_pixels), most, seed)
    images = Samples(drawn, contract)
    name, size = str(model.graph.inputs[0].name), graph.fixed_batch(model) or _BATCH
    return _Source(
        count=len(drawn),
        feeds=lambda: ({name: found} for found, _ in batches(images, size)),
        describe=lambda index: drawn[index].where,
    )


def _arrays(data: Path, most: int, seed: int) -> _Source:
    """Samples that are arrays already.

    Raises:
        DataError: Not such a file, arrays of different lengths, or none.
    """
    if not data.is_file():
        raise DataError(f"there is no {data}")
    try:
        with np.load(data, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:  # EOFError: an empty file
        raise DataError(f"{data} is no .npz file of plain arrays: {error}") from None
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        found = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "nothing"
        raise DataError(f"{data} needs one array per input, all with as many samples; it holds {found}")
    count = next(iter(lengths.values()))
    chosen = _drawn(arrays, count, seed)[:most]
    return _Source(
        count=len(chosen),
        feeds=lambda: (
            {name: array[chosen[start : start + _BATCH]] for name, array in arrays.items()}
            for start in range(0, len(chosen), _BATCH)
        ),
        describe=lambda index: f"{chosen[index]} of {data.name}",
    )


def _drawn(arrays: Mapping[str, NDArray[Any]], count: int, seed: int) -> list[int]:
    """All samples in an order that their content and the seed alone decide: recipes look at the first of them."""

    def rank(index: int) -> bytes:
        content = hashlib.sha256(f"{seed}".encode())
        for name in sorted(arrays):
            content.update(np.ascontiguousarray(arrays[name][index]).tobytes())
        return content.digest()

    return sorted(range(count), key=rank)


def _check_output(model: Path, output: Path) -> None:
    """Refuse an output that is the input, or no place for a file, before minutes of calibration."""
    if output.exists() and model.exists() and output.samefile(model):
        raise UsageError(f"the output {output} is the model itself", hint="-o with another name")
    check_output("-o", output, f"{model.stem}-int8.onnx")
    if output.exists() and not output.is_file():
        raise UsageError(f"-o {output} is a device or a pipe, and a graph is a file", hint="-o with another name")


def _check_quantizable(path: Path, model: ir.Model, *, images: bool) -> None:
    """Refuse what calibration cannot run, with a message about the user's file and not about a copy of it.

    Args:
        path: Of the model.
        model: As it was read.
        images: Whether it will be fed with images, and not with arrays for each input.
    """
    graph.refuse_quantized(model, str(path))
    if not images:
        return
    with open_graph(path) as runner:
        if len(runner.inputs) != 1:
            names = ", ".join(spec.name for spec in runner.inputs)
            raise ModelError(
                f"images are for one input; {path} has {len(runner.inputs)}: {names}",
                hint="--data FILE.npz, with an array for each input",
            )
        spec = runner.inputs[0]
        if spec.dtype != "float32":
            raise ModelError(
                f"images are fed as float32; the input '{spec.name}' of {path} is {spec.dtype}",
                hint="--data FILE.npz, with an array for each input",
            )


def preprocessing_of(model: ir.Model, given: dict[str, Any]) -> ImagePreprocessing:
    """The contract of a model: its metadata, overruled by what is given, with the size from its input.

    Args:
        model: Whose metadata and first input tell.
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


def _compare(model: Path, quantized: ir.Model, source: _Source, fixed: int | None) -> tuple[float, float]:
    """SQNR in dB and top-1 agreement of two graphs on some of the samples; float16 is rounded to as an engine does."""
    import onnx_ir as ir

    results: tuple[list[NDArray[np.float64]], ...] = ([], [])
    parts = batches_of(source.feeds(), size=fixed or min(_BATCH, source.count), most=_CHECKED)
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(emulation.in_float32(quantized), path)
        with open_graph(model) as before, open_graph(path) as after:
            name = before.outputs[0].name
            for feeds in parts:
                for runner, outputs in zip((before, after), results, strict=True):
                    outputs.append(np.asarray(runner.run(feeds)[name], dtype=np.float64))
    first, second = (np.concatenate(outputs) for outputs in results)
    flat = [array.reshape(len(array), -1) for array in (first, second)]
    return sqnr_db(first, second), float((flat[0].argmax(1) == flat[1].argmax(1)).mean())


@contextlib.contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """A draft elsewhere, which becomes the output only where everything went well.

    Beside the output, where the rename needs it, the draft is only for as long as a copy takes. What a process left
    there that was killed just then is removed.
    """
    with storage_errors(output.parent):
        for left in output.parent.glob(f"{_DRAFT}*"):
            if is_abandoned(left, _DRAFT):
                left.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        draft = Path(folder) / "model.onnx"
        with storage_errors(Path(folder)):
            yield draft
        beside = output.with_name(_DRAFT + draft_name())
        with storage_errors(output.parent):
            try:
                shutil.copyfile(draft, beside)
                with beside.open("rb") as file:
                    os.fsync(file.fileno())
                beside.replace(output)
            finally:
                beside.unlink(missing_ok=True)
