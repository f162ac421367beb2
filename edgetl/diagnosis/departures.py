"""``edgetl verify --layers``: where an engine leaves its own graph, and where that leaves the float graph.

Three computations of each golden input are held against each other, tensor by tensor: the float graph of the bundle;
the engine's own graph, quantizers and all, computed in float one operator at a time (what the engine promises); and the
engine. What lies between the first two is the price of the precision, between the last two the engine's own error.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import inside
from edgetl.diagnosis import scales
from edgetl.diagnosis.explain import GRAPH
from edgetl.diagnosis.layers import FAITHFUL_DB, Departure, Point, Step, departure
from edgetl.diagnosis.recorded import RECORD, Recorded
from edgetl.errors import MissingExtraError, ModelError, SetupError, UsageError
from edgetl.parity.numeric import MOST_DB, TOLERANCES, sqnr_db
from edgetl.runtime.bundle import Bundle, EngineEntry
from edgetl.runtime.golden import Golden

if TYPE_CHECKING:
    from edgetl.backends._inside_onnx import InsideOnnx

_OWN_ERROR_DB = 30.0
"""What an engine's own error may be, where its graph is quantized: steps of eight bits that are rounded to the other
side. Where quantization alone costs more, that is what it may be."""
_APART_DB = 10.0
"""By which the outputs of an engine that is looked into must lie nearer to the engine's own than those to its graph's:
else it is another engine that is looked at."""


_NAMED = 3
"""Scales that are told one by one."""
_FAR_DB = 15.0
"""Below it a tensor is no longer the float graph's in another precision."""
_NOT_LOOKED_FOR = (
    "; its graph is not the float graph in another precision, and where it leaves that cannot be told, as the recipe"
    " moved sizes between channels"
)
_NO_RECORD = f"the bundle has no {RECORD}: what calibration chose is not known, nor whether a recipe moved sizes"


@dataclass(frozen=True, kw_only=True)
class EngineLayers:
    """What was found out about an engine from the inside."""

    total_db: float
    """SQNR of its first output, against the float graph's."""
    promise_db: float
    """Of its graph's, computed in float, against the float graph's: the price of the precision."""
    engine_db: float
    """Of its own, against its graph's: the engine's own error."""
    engine: Departure | None
    """Where it leaves its own graph; None where it keeps to it."""
    quantization: Departure | None
    """Where its graph leaves the float graph; None where it does not, or the recipe changed tensors' sizes."""
    causes: tuple[str, ...]
    """Scales that are not what they should be, in words."""
    altering: tuple[str, ...]
    """Tensors that made another engine when they were put out: what was seen there is of that one."""
    failed: bool
    """Whether the engine is not what its graph promises, or a scale is wrong."""
    statement: str
    """The finding in a sentence or more."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def look_into(bundle: Bundle, engine: EngineEntry, golden: Golden) -> EngineLayers | str:
    """Compare an engine with its own graph and with the float graph, tensor by tensor, on the golden inputs.

    Args:
        bundle: That it is in.
        engine: One that runs here.
        golden: The bundle's.

    Returns:
        What was found, or why nothing can be.

    Raises:
        MissingExtraError: onnx-ir or onnxscript is not installed.
        ModelError: A graph cannot be read.
    """
    reason = inside.why_not(engine.backend) or _no_graph(bundle)
    if reason:
        return reason
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        exact = _float_graph(bundle, Path(folder))
        opened = inside.look_into(bundle.folder / engine.folder, exact.tensors, workplace=Path(folder))
        output = opened.places[-1].name
        if output not in exact.tensors:
            return f"its output '{output}' is no tensor of model.onnx, the float graph of the bundle"
        try:
            meter = _Meter(exact, opened, bundle, golden)
        except UsageError as error:
            return f"it does not take a batch of {bundle.manifest['inputs'][0].get('batch', [1])[0]}: {error.message}"
        record = Recorded.of(bundle, engine)
        return _found(meter, exact, opened, record, engine.precision)


@contextmanager
def reading_scales(bundle: Bundle) -> Iterator[Callable[[EngineEntry], tuple[str, ...] | str]]:
    """Hold the scales of a bundle's int8 engines against calibration and the float weights; no inference is made.

    It is what :func:`look_into` does first, and cheap: for every verification.

    Returns:
        A context with a function of an engine that was opened before (what opens it tells of a damaged file or record):
        a clause for each scale that is wrong, none of a precision without integers; or why they could not be read.
    """
    with tempfile.TemporaryDirectory(prefix="edgetl-") as workplace:

        @cache
        def exact() -> InsideOnnx:
            return _float_graph(bundle, Path(workplace))

        def wrong(engine: EngineEntry) -> tuple[str, ...] | str:
            if engine.precision != "int8":
                return ()
            reason = inside.why_not(engine.backend) or _no_graph(bundle)
            if reason:
                return reason
            folder = Path(tempfile.mkdtemp(dir=workplace))
            try:
                opened = inside.look_into(bundle.folder / engine.folder, exact().tensors, workplace=folder)
            except (SetupError, ModelError) as error:
                return error.message
            record = Recorded.of(bundle, engine)
            causes, unnamed = _causes(exact(), opened, record), _no_names(exact(), opened, record)
            if not record.known and not causes:
                return _NO_RECORD
            return unnamed or tuple(dict.fromkeys(causes))

        yield wrong


@dataclass(kw_only=True)
class _Sums:
    """Powers of what was seen at a tensor, summed over the golden inputs."""

    exact: float = 0.0
    promise: float = 0.0
    promised: float = 0.0
    """Power of the promise minus the float graph."""
    own: float = 0.0
    """Of the engine minus the promise."""
    total: float = 0.0
    """Of the engine minus the float graph."""
    product: float = 0.0
    """Of the float graph and the engine."""

    def add(self, exact: NDArray[np.float64], promise: NDArray[np.float64], engine: NDArray[np.float64]) -> None:
        flat = [array.ravel() for array in (exact, promise, engine)]
        exact, promise, engine = flat
        self.exact += float(exact @ exact)
        self.promise += float(promise @ promise)
        self.promised += float(np.square(promise - exact).sum())
        self.own += float(np.square(engine - promise).sum())
        self.total += float(np.square(engine - exact).sum())
        self.product += float(exact @ engine)

    @property
    def alike(self) -> float:
        """Correlation of the engine's values with the float graph's."""
        engine = self.total + 2.0 * self.product - self.exact
        powers = self.exact * engine
        return self.product / math.sqrt(powers) if math.isfinite(powers) and powers > 0 else 0.0

    @property
    def gain(self) -> float:
        """Slope of the engine's values over the float graph's."""
        return self.product / self.exact if self.exact > 0 and math.isfinite(self.product) else 1.0


class _Meter:
    """Looks at tensors of an engine, of its promise and of the float graph on all golden inputs, and remembers them."""

    def __init__(self, exact: InsideOnnx, opened: inside.Inside, bundle: Bundle, golden: Golden) -> None:
        self._exact, self._opened = exact, opened
        spec = bundle.manifest["inputs"][0]
        smallest = int(spec.get("batch", [1])[0])
        self._feeds = [{spec["name"]: np.repeat(one[None], smallest, axis=0)} for one in golden.inputs]
        self.output = opened.places[-1].name
        self.sums: dict[str, _Sums] = {}
        self.altering: list[str] = []
        self.mending: list[str] = []
        """Tensors that made the engine keep its promise when they were put out."""
        self._usual: NDArray[np.float64] | None = None
        self._usual = self._see([self.output])
        self.engine_db = _db(self.sums[self.output].promise, self.sums[self.output].own)

    def own(self, names: Sequence[str]) -> dict[str, float]:
        """SQNR of the engine against its promise."""
        self._make_sure(names)
        return {name: _db(self.sums[name].promise, self.sums[name].own) for name in names}

    def promised(self, names: Sequence[str]) -> dict[str, float]:
        """SQNR of the promise against the float graph."""
        self._make_sure(names)
        return {name: _db(self.sums[name].exact, self.sums[name].promised) for name in names}

    def _make_sure(self, names: Sequence[str]) -> None:
        new = [name for name in names if name not in self.sums]
        if not new:
            return
        outputs = self._see(new)
        assert self._usual is not None  # of the first look
        apart = sqnr_db(self._usual, outputs)
        if apart < min(FAITHFUL_DB, self.engine_db + _APART_DB):
            self.altering += new

    def _see(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Sum up what is seen at some tensors.

        Returns:
            The engine's first output for all golden inputs, (n, ...).
        """
        sums = {name: _Sums() for name in names}
        outputs, promises = [], []
        with (
            self._exact.promise(names) as exact,
            self._opened.promise(names) as promise,
            self._opened.engine(names) as engine,
        ):
            for feeds in self._feeds:
                seen = [runner.run(feeds) for runner in (exact, promise, engine)]
                for name in names:
                    sums[name].add(*(found[name] for found in seen))
                outputs.append(inside.plain(engine.outputs[:1]))
                promises.append(inside.plain(promise.outputs[:1]))
        self.sums.update(sums)
        found = np.concatenate(outputs)
        if self._usual is not None:
            nearer = sqnr_db(np.concatenate(promises), found)
            if nearer >= min(FAITHFUL_DB, self.engine_db + _APART_DB) and self.engine_db < _OWN_ERROR_DB:
                self.mending += names
        return found


def _no_graph(bundle: Bundle) -> str | None:
    """Why there is nothing to compare with; None where there is."""
    return None if GRAPH in bundle.manifest["files"] else f"the bundle has no {GRAPH}, the float graph"


def _float_graph(bundle: Bundle, folder: Path) -> InsideOnnx:
    """The bundle's float graph with what quantization folds folded, so that its tensors have the same names."""
    try:
        import onnx_ir as ir
        import onnxscript  # noqa: F401  # preparing the graph takes it
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx_ir", extra="export", needed_for="looking into an engine") from None

    from edgetl.backends._inside_onnx import InsideOnnx
    from edgetl.quantize import graph

    path = folder / "float.onnx"
    ir.save(graph.prepare(graph.load(bundle.folder / GRAPH)), path)
    return InsideOnnx(path, (), folder)


def _found(meter: _Meter, exact: InsideOnnx, opened: inside.Inside, record: Recorded, precision: str) -> EngineLayers:
    points = [Point(name=place.name, layer=place.layer, before=place.before) for place in opened.places]
    output = meter.sums[meter.output]
    promise_db, total_db = _db(output.exact, output.promised), _db(output.exact, output.total)
    limit = _limit(precision)
    off = meter.engine_db < (min(promise_db, _OWN_ERROR_DB) if limit is None else limit)
    engine = departure(points, meter.own) if off else None
    quantization = None
    if promise_db < FAITHFUL_DB and not record.resized:
        quantization = departure(points, meter.promised)
    causes = _causes(exact, opened, record)
    for place in (engine, quantization):
        if place is not None and place.sudden and not causes and not record.resized:
            seen = meter.sums[place.first.name]
            said = scales.gain_cause(place.first.name, seen.gain, seen.alike)
            causes += [said] if said and math.isfinite(place.first.db) else []
    return EngineLayers(
        total_db=total_db,
        promise_db=promise_db,
        engine_db=meter.engine_db,
        engine=engine,
        quantization=quantization,
        causes=tuple(dict.fromkeys(causes)),
        altering=tuple(meter.altering),
        failed=off or bool(causes) or (limit is not None and total_db < limit),
        statement=_statement(meter, engine, quantization, causes, promise_db, total_db)
        + (_NOT_LOOKED_FOR if record.resized and promise_db < _FAR_DB else "")
        + ("" if record.known else f"; {_NO_RECORD}"),
    )


def _limit(precision: str) -> float | None:
    """Least SQNR of an engine against the float graph; None where a precision has none."""
    return TOLERANCES[precision].sqnr_db if precision in TOLERANCES else None  # type: ignore[index]


def _no_names(exact: InsideOnnx, opened: inside.Inside, record: Recorded) -> str | None:
    """Why the scales of an engine say nothing, though there are some; None where they can be compared."""
    names = any(each.tensor in record.chosen for each in opened.quantizers)
    names = names or any((each.node, each.kind) in exact.constants for each in opened.restored)
    if names or not opened.quantizers or not record.chosen:
        return None
    return f"its tensors and layers have other names than those of {GRAPH} and of the record of calibration"


def _causes(exact: InsideOnnx, opened: inside.Inside, record: Recorded) -> list[str]:
    """Scales that are wrong, whatever comes of them."""
    pairs = [scales.Pair(**asdict(each)) for each in opened.quantizers]
    said = scales.pair_causes(pairs, record.chosen)
    if record.chosen and not opened.quantizers:
        said.append(
            f"no activation in it is quantized, and calibration chose {len(record.chosen)} scales: it is not the engine"
            " that was built"
        )
    if record.resized or not record.known:
        return said
    for each in opened.restored:
        wanted = exact.constants.get((each.node, each.kind))
        if wanted is None or wanted.size != each.values.size:
            continue
        constant = scales.Constant(
            what=f"the {'biases' if each.kind == 'bias' else each.kind} of '{each.node}'",
            values=each.values,
            axis=each.axis,
            steps=each.steps,
        )
        cause = scales.constant_cause(constant, wanted, clips=record.clips)
        said += [cause] if cause else []
    return said


def _statement(
    meter: _Meter,
    engine: Departure | None,
    quantization: Departure | None,
    causes: Sequence[str],
    promise_db: float,
    total_db: float,
) -> str:
    said = [
        f"SQNR {total_db:.1f} dB against the float graph; its graph in float {promise_db:.1f} dB, the engine against"
        f" its graph {meter.engine_db:.1f} dB"
    ]
    if engine is not None:
        said.append(_place(engine, "the engine leaves its own graph", "the engine moves away from its own graph"))
    if meter.mending:
        said.append(f"it does not where '{meter.mending[0]}' is put out: what is fused around that tensor is at fault")
    if quantization is not None:
        far = quantization.first.db < _FAR_DB
        leaves = "its graph leaves the float graph" if far else "the precision costs most"
        moves = "its graph moves away from the float graph" if far else "the precision costs accuracy"
        said.append(_place(quantization, leaves, moves))
    if meter.altering:
        said.append(
            f"{len(meter.altering)} of {len(meter.sums)} tensors could be looked at in another engine only, which they"
            f" made when they were put out ('{meter.altering[0]}')"
        )
    return "; ".join([*([spoken(causes)] if causes else []), *said])


def spoken(causes: Sequence[str]) -> str:
    """Scales that are wrong as one text: of many, the first."""
    more = [f"and {len(causes) - _NAMED} more like these"] if len(causes) > _NAMED else []
    return "; ".join([*causes[:_NAMED], *more])


def _place(found: Departure, leaves: str, moves: str) -> str:
    step, path = found.first, _path(found.path)
    if found.sudden:
        return (
            f"{leaves} at {step.layer}, tensor '{step.name}', where SQNR falls by {step.fall_db:.1f} to"
            f" {step.db:.1f} dB ({path})"
        )
    most = max(found.path, key=lambda each: each.fall_db)
    return f"{moves} little by little, most at {most.layer}: by {most.fall_db:.1f} dB ({path})"


def _path(path: Sequence[Step]) -> str:
    """What was seen along the path."""
    return ", ".join(f"{step.name} {step.db:.1f}" for step in path)


def _db(signal: float, noise: float) -> float:
    if not math.isfinite(noise) or not math.isfinite(signal):
        return -MOST_DB
    if noise <= signal * 1e-20:
        return MOST_DB
    return 10.0 * math.log10(signal / noise) if signal > 0 else -MOST_DB
