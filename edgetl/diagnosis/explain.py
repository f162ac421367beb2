"""What the golden inputs tell of an engine that does not answer as PyTorch did: its batches, its inputs, its outputs,
and whether the float graph of the bundle is of the same network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl import backends
from edgetl.backends.base import EngineRecord
from edgetl.backends.onnx_file import read_onnx
from edgetl.diagnosis import input_causes, output_causes
from edgetl.errors import BundleError, ModelError, ParityError, SetupError, UsageError
from edgetl.parity.numeric import MOST_DB, Explained, sqnr_db
from edgetl.runtime.bundle import Bundle, EngineEntry, Predictor
from edgetl.runtime.golden import Golden
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.runtime.preprocessing.tables import TablePreprocessing
from edgetl.runtime.preprocessing.text import TextPreprocessing
from edgetl.runtime.runner import Runner, run_batch

GRAPH = "model.onnx"
"""The float graph in a bundle."""
OTHER_GOLDEN = "the golden outputs are of another model"
_OTHER_DB = 30.0
"""A float graph that is further from PyTorch is not one of the same network: an export that passes is at 70 dB or more,
also where other kernels compute it."""
_ROUNDING = 4 / 255
"""Of a pixel on the scale 0 to 1: what versions of a decoder or a filter differ by."""
_ANOTHER = "the contract in manifest.json is not the one that the bundle was built with"
_NEARER_DB = 10.0
"""By which an engine must answer more like another model than like PyTorch, before that is said."""
_MOST_SAMPLES = 64
"""In one batch: activations take far more memory than inputs."""
_MOST_BYTES = 1 << 28
"""Of inputs in one batch; a batch that is allowed to be larger is tried as far as this."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a graph in a bundle, computed by ONNX Runtime on the processor, answers to the golden inputs."""

    outputs: NDArray[np.float32] | None = None
    """(n, k); None where it was not run."""
    db: float | None = None
    """SQNR against the golden outputs; None where it was not run."""
    skipped: str = ""
    """Why it was not."""

    @property
    def is_other(self) -> bool:
        """Of the float graph: whether it is of another network than the golden outputs."""
        return self.db is not None and self.db < _OTHER_DB


def float_graph(bundle: Bundle, golden: Golden) -> Answered:
    """Run the float graph of a bundle on the golden inputs.

    Raises:
        BundleError: It does not run them, or answers with arrays of another shape.
    """
    if GRAPH not in bundle.manifest["files"]:
        return Answered(skipped="the bundle has none")
    try:
        return _answered(bundle, golden, GRAPH, "the float graph", optimise=True)
    except ModelError as error:
        raise _does_not_run(bundle, GRAPH, "the float graph", error.message) from error


def engine_graph(bundle: Bundle, engine: EngineEntry, golden: Golden) -> Answered:
    """Run the graph that lies beside an engine on the golden inputs, one operator at a time.

    Raises:
        BundleError: It does not take them, or answers with arrays of another shape.
    """
    graph = EngineRecord.read(bundle.folder / engine.folder).graph
    name = f"{engine.folder}/{graph}"
    if not graph or name not in bundle.manifest["files"]:
        return Answered(skipped="it is not in the bundle")
    try:
        return _answered(bundle, golden, name, "the engine's graph", optimise=False)
    except ModelError as error:  # the device may have operators and types that this processor has not
        _check_readable(bundle, name)
        return Answered(skipped=f"ONNX Runtime does not compute it here: {error.message}")


def _answered(bundle: Bundle, golden: Golden, name: str, what: str, *, optimise: bool) -> Answered:
    if backends.backend("onnxruntime").version() is None:
        return Answered(skipped="onnxruntime is not installed")
    try:
        with _opened(bundle, name, optimise=optimise) as runner:
            found = _run(bundle, runner, golden.inputs)
    except UsageError as error:
        raise _does_not_run(bundle, name, what, error.message) from error
    if found.shape != golden.outputs.shape:
        is_, should = list(found.shape[1:]), list(golden.outputs.shape[1:])
        raise _does_not_run(bundle, name, what, f"it answers with arrays of {is_}, not {should}")
    return Answered(outputs=found, db=sqnr_db(golden.outputs, found) if np.isfinite(found).all() else -MOST_DB)


def _check_readable(bundle: Bundle, name: str) -> None:
    """Refuse what is no graph at all, as far as it can be told."""
    try:
        read_onnx(bundle.folder / name)
    except SetupError:  # of onnx-ir, which reads it
        return
    except ModelError as error:
        raise BundleError(
            f"{bundle.folder}: {name}, the engine's graph, cannot be read: {error.message}",
            hint="build the bundle again",
        ) from error


def _does_not_run(bundle: Bundle, name: str, what: str, why: str) -> BundleError:
    return BundleError(
        f"{bundle.folder}: {name}, {what}, does not run the golden inputs: {why}", hint="build the bundle again"
    )


def preprocessing(bundle: Bundle, golden: Golden, difference: float) -> tuple[str | None, str]:
    """Why golden tensors that are made here are others than the recorded ones, and what is to be done.

    Args:
        bundle: Whose contract makes them.
        golden: The bundle's.
        difference: The largest; inf where shapes differ.

    Returns:
        A clause, None where nothing explains it; and a hint.
    """
    contract, found = bundle.preprocessing, None
    if isinstance(contract, ImagePreprocessing):
        found = input_causes.preprocessing_cause(contract, golden.sources, golden.inputs)
    elif isinstance(contract, TablePreprocessing):
        made = contract.together([contract(source) for source in golden.sources])
        found = input_causes.feature_cause(contract.features, made, golden.inputs)
    elif isinstance(contract, TextPreprocessing):
        found = input_causes.token_cause([contract(source) for source in golden.sources], list(golden.inputs))
    if isinstance(contract, TextPreprocessing):
        return found, f"{_ANOTHER}; or compare the version of tokenizers with that in its provenance"
    if not isinstance(contract, ImagePreprocessing):
        return found, _ANOTHER
    if found is None and difference * max(contract.std) <= _ROUNDING:
        return None, "compare the version of Pillow with that in the bundle's provenance"
    return found, f"{_ANOTHER}, or the pictures in golden/ are not"


def refuse_other(bundle: Bundle, graph: Answered, *, ran: bool) -> None:
    """Refuse a bundle whose float graph is of another network.

    Args:
        bundle: Whose engines that ran answer as PyTorch did.
        graph: Of the bundle.
        ran: Whether any engine ran.

    Raises:
        BundleError: It is.
    """
    if graph.is_other:
        raise BundleError(
            f"{bundle.folder}: {GRAPH}, the float graph, is {graph.db:.1f} dB from PyTorch on the golden inputs: it is"
            " of another model" + (" than the engines, which answer as PyTorch did" if ran else ""),
            hint="build the bundle again; the file may be of another build",
        )


def cause(model: Predictor, bundle: Bundle, golden: Golden, got: NDArray[np.float32], graph: Answered) -> str | None:
    """Why an engine answers otherwise than PyTorch, where its outputs or its inputs are in another order or form.

    Args:
        model: Opened.
        bundle: That it is of.
        golden: The bundle's.
        got: The model's outputs for the golden inputs, one at a time.
        graph: The bundle's float graph.
    """
    if graph.is_other and graph.outputs is not None and np.isfinite(graph.outputs).all():
        nearer = sqnr_db(graph.outputs, got)
        if nearer >= max(sqnr_db(golden.outputs, got), 0.0) + _NEARER_DB:
            return f"it answers as {GRAPH}, the float graph of the bundle, does: {OTHER_GOLDEN}"
    found = output_causes.order_cause(golden.outputs, got, bundle.labels) if bundle.labels else None
    found = found or dependence(model, bundle, golden, got)
    if found:
        return found
    # What is best explained by a function of its outputs may be explained still better by one of its inputs.
    tried = [output_causes.output_cause(golden.outputs, got), _input_cause(model, bundle, golden, got, graph)]
    best = max((each for each in tried if each), key=lambda each: each.db, default=None)
    return best.said if best else None


def _input_cause(
    model: Predictor, bundle: Bundle, golden: Golden, got: NDArray[np.float32], graph: Answered
) -> Explained | None:
    """What a picture would have to be for the engine, or what the engine does to it."""
    contract = bundle.preprocessing
    if not isinstance(contract, ImagePreprocessing):
        return None

    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([model.outputs(one[None]) for one in inputs])

    found = input_causes.input_cause(contract, run, golden.inputs, golden.outputs, got)
    if found or graph.outputs is None or graph.is_other:
        return found
    with _opened(bundle, GRAPH, optimise=True) as runner:
        return input_causes.changed_input_cause(
            contract, lambda inputs: _run(bundle, runner, inputs), golden.inputs, golden.outputs, got
        )


def dependence(model: Predictor, bundle: Bundle, golden: Golden, got: NDArray[np.float32]) -> str | None:
    """On what answers depend besides their input: the batch, or how far it is filled up.

    A batch that fails is a ParityError, too: the engine was built for it.

    Args:
        model: Opened.
        bundle: That it is of.
        golden: The bundle's.
        got: The model's outputs for the golden inputs, one at a time.
    """
    for size in batches_of(model, golden):
        places = np.arange(size) % len(got)
        try:
            together = model.outputs(golden.inputs[places])
        except (ModelError, UsageError) as error:
            raise ParityError(
                f"{model.engine.target} {model.engine.precision} does not run the batch of {size} that it was built"
                f" for: {error.message}",
                hint="a smaller export.batch.max",
            ) from error
        found = output_causes.batch_cause(golden.outputs[places], got[places], together)
        if found:
            return found
    contract = bundle.preprocessing
    if not isinstance(contract, TextPreprocessing):
        return None
    texts = [one[: int((one != contract.pad).sum())] for one in golden.inputs]
    if min(map(len, texts)) >= contract.max_length > 1:  # no padding fits behind them
        texts = [text[: contract.max_length // 2] for text in texts]
    sizes = [len(text) for text in texts]
    alone = np.concatenate([model.outputs(text[None]) for text in texts])
    for size in dict.fromkeys((min(max(sizes) + 1, contract.max_length), contract.max_length)):
        filled = [np.pad(text, (0, size - len(text)), constant_values=contract.pad) for text in texts]
        padded = np.concatenate([model.outputs(text[None]) for text in filled])
        found = output_causes.length_cause(golden.outputs, alone, padded, sizes, size)
        if found:
            return found
    return None


def batches_of(model: Predictor, golden: Golden) -> tuple[int, ...]:
    """Sizes of batches to try: as many as there are golden inputs, and the largest that the engine takes."""
    fitting = max(1, _MOST_BYTES // max(1, golden.inputs[0].nbytes))
    largest = min(model.largest_batch, fitting, _MOST_SAMPLES)
    return tuple(sorted({min(len(golden.inputs), largest), largest}))


def _opened(bundle: Bundle, name: str, *, optimise: bool) -> Runner:
    from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(bundle.folder / name, provider="CPUExecutionProvider", optimise=optimise, frugal=True)


def _run(bundle: Bundle, runner: Runner, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    smallest = int(bundle.manifest["inputs"][0].get("batch", [1])[0])
    return np.concatenate([run_batch(runner, one[None], smallest=smallest) for one in inputs]).astype(np.float32)
