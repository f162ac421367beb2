"""``edgetl verify --layers``: where an engine leaves its own graph, and where that leaves the float graph.

Three computations of each golden input are held against each other, tensor by tensor: the float graph of the bundle;
the engine's own graph, quantizers and all, computed in float one operator at a time (what the engine promises); and the
engine. What lies between the first two is the price of the precision, between the last two the engine's own error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.backends import inside
from edgetl.backends.base import EngineRecord
from edgetl.diagnosis import scales
from edgetl.diagnosis.explain import GRAPH
from edgetl.diagnosis.layers import FAITHFUL_DB, Departure, Step, departure
from edgetl.diagnosis.meter import OWN_ERROR_DB, Meter, ratio_db
from edgetl.diagnosis.recorded import RECORD, Recorded
from edgetl.errors import ModelError, SetupError, UsageError, not_imported
from edgetl.parity.numeric import TOLERANCES
from edgetl.runtime.bundle import Bundle, EngineEntry
from edgetl.runtime.golden import Golden

if TYPE_CHECKING:
    from edgetl.backends._inside_onnx import InsideOnnx

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
    built = EngineRecord.read(bundle.folder / engine.folder)
    reason = inside.why_not(built) or inside.why_not_run(built) or _no_graph(bundle)
    if reason:
        return reason
    with tempfile.TemporaryDirectory(prefix="edgetl-") as folder:
        exact = _float_graph(bundle, Path(folder))
        opened = inside.look_into(bundle.folder / engine.folder, exact.tensors, workplace=Path(folder))
        output = opened.places[-1].name
        if output not in exact.tensors:
            return f"its output '{output}' is no tensor of model.onnx, the float graph of the bundle"
        try:
            meter = Meter(exact, opened, bundle, golden)
        except UsageError as error:
            return f"it does not take a batch of {bundle.manifest['inputs'][0].get('batch', [1])[0]}: {error.message}"
        return _found(meter, exact, opened, Recorded.of(bundle, engine), engine.precision)


@contextmanager
def reading_scales(bundle: Bundle) -> Iterator[Callable[[EngineEntry], tuple[str, ...] | str]]:
    """Hold the scales of a bundle's int8 engines against calibration and the float weights; no inference is made.

    It is what :func:`look_into` does first, and cheap: for every verification.

    Returns:
        A context with a function of an engine: a clause for each scale that is wrong, none of a precision without
        integers; or why they could not be read. One that runs here was opened before, which tells of damaged files.
    """
    with tempfile.TemporaryDirectory(prefix="edgetl-") as workplace:

        @cache
        def exact() -> InsideOnnx:
            return _float_graph(bundle, Path(workplace))

        def wrong(engine: EngineEntry) -> tuple[str, ...] | str:
            if engine.precision != "int8":
                return ()
            built = EngineRecord.read(bundle.folder / engine.folder)
            reason = inside.why_not(built) or _no_graph(bundle)
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


def _no_graph(bundle: Bundle) -> str | None:
    """Why there is nothing to compare with; None where there is."""
    return None if GRAPH in bundle.manifest["files"] else f"the bundle has no {GRAPH}, the float graph"


def _float_graph(bundle: Bundle, folder: Path) -> InsideOnnx:
    """The bundle's float graph with what quantization folds folded, so that its tensors have the same names."""
    try:
        import onnx_ir as ir
        import onnxscript  # noqa: F401  # preparing the graph takes it
    except ImportError as error:
        raise not_imported(
            error, error.name or "onnx_ir", extra="export", needed_for="looking into an engine"
        ) from None

    from edgetl.backends._inside_onnx import InsideOnnx
    from edgetl.quantize import graph

    path = folder / "float.onnx"
    ir.save(graph.prepare(graph.load(bundle.folder / GRAPH)), path)
    return InsideOnnx(path, (), folder)


def _found(meter: Meter, exact: InsideOnnx, opened: inside.Inside, record: Recorded, precision: str) -> EngineLayers:
    output = meter.sums[meter.output]
    promise_db, total_db = ratio_db(output.exact, output.promised), ratio_db(output.exact, output.total)
    limit = _limit(precision)
    off = meter.engine_db < (min(promise_db, OWN_ERROR_DB) if limit is None else limit)
    engine = departure(opened.places, meter.own, together=opened.together) if off else None
    quantization = None
    if promise_db < FAITHFUL_DB and not record.resized:
        quantization = departure(opened.places, meter.promised, together=opened.together)
    causes = _causes(exact, opened, record)
    for place in (engine, quantization):
        if place is not None and place.sudden and not causes and not record.resized:
            name, seen = place.first.name, meter.sums[place.first.name]
            said = scales.gain_cause(name, seen.gain, seen.alike) if seen.finite else None
            said = said or (None if seen.finite else scales.overflow_cause(name, seen.peak))
            causes += [said] if said else []
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
    said = scales.pair_causes(opened.quantizers, record.chosen)
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
        cause = scales.constant_cause(each, wanted, clips=record.clips)
        said += [cause] if cause else []
    return said


def _statement(
    meter: Meter,
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
