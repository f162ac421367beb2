"""Golden inputs replayed where a bundle is opened: preprocessing, labels and one pass through the engine.

A bundle's hashes and signature show that it is what somebody sealed. Golden inputs show that what was sealed fits
together, on this machine: that its preprocessing makes of raw inputs what it made of them where the bundle was built,
that its labels are those that the network was trained with, and that the engine answers as PyTorch did.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BundleError, DataError, ModelError, ParityError, UsageError
from edgetl.runtime.decision import Similarity, cosines

if TYPE_CHECKING:
    from edgetl.runtime.bundle import Bundle, EngineEntry, Predictor
    from edgetl.runtime.golden import Golden

TENSOR_TOLERANCE = 1e-4
"""Of a preprocessed value: rounding differs between builds of Pillow; a wrong mean or filter differs by far more."""
CONTRACT = "golden/contract.json"
"""What the golden outputs were made and are read with. Eight pictures that are all square look the same whether they
are cropped or stretched, and a threshold shows in no tensor: what golden inputs cannot tell apart is compared as it
was written down."""
_HELD = ("task", "inputs", "outputs", "preprocessing", "decision")
"""Parts of a manifest that :data:`CONTRACT` repeats; the labels stand with the golden outputs."""
_POINTS_ALIKE = 0.9
"""Cosine above which an engine's embedding counts as PyTorch's: faces of one person are further apart."""
_RARE = 1e-3
"""How often an engine that is what it was may be refused, its disagreements falling on golden inputs by chance."""
_SPOKEN = 60
"""Characters of a value in a message."""
_OPT_OUT = "open_bundle(…, replay=False) and edgetl run --no-replay leave the golden inputs out"


def replay_contract(bundle: Bundle) -> None:
    """Refuse a bundle whose preprocessing or labels are not those that it was built with.

    Raises:
        BundleError: They are not, or the bundle has no golden inputs.
        MissingExtraError: What preprocesses is not installed.
    """
    golden = bundle.golden()
    refuse_contract(bundle)
    difference = tensor_difference(bundle, golden)
    if difference > TENSOR_TOLERANCE:
        raise BundleError(
            f"{bundle.folder}: preprocessing on this machine differs from the recorded one by up to {difference:.1e}",
            hint="edgetl verify BUNDLE names the cause, where it is a known one; other versions of Pillow or tokenizers"
            f" than in the bundle's provenance may be. {_OPT_OUT}",
        )
    refuse_labels(bundle, golden)


def replay_engine(bundle: Bundle, model: Predictor) -> None:
    """Refuse an engine that answers the golden inputs in another way than PyTorch did, beyond what was recorded of it.

    One inference for each golden input.

    Args:
        bundle: That it is of.
        model: Opened.

    Raises:
        BundleError: It takes other inputs, or gives outputs of another shape.
        ParityError: It does.
    """
    golden, engine = bundle.golden(), model.engine
    got = golden_answers(bundle, model, golden)
    name, agreed = f"{engine.target} {engine.precision}", agrees(bundle, got, golden.outputs)
    refused = not_finite(name, got) or refusal(name, recorded_parity(bundle, engine), agreed)
    if refused:
        raise ParityError(
            refused,
            hint=f"edgetl verify BUNDLE looks for the cause; build the engine again on this device. {_OPT_OUT}",
        )


def golden_answers(bundle: Bundle, model: Predictor, golden: Golden) -> NDArray[np.float32]:
    """An engine's outputs for the golden inputs, one at a time, (n, k).

    Raises:
        BundleError: It takes other inputs, or gives outputs of another shape, than the manifest says.
    """
    engine = model.engine
    try:
        got = np.concatenate([model.outputs(one[None]) for one in golden.inputs])
    except (ModelError, UsageError) as error:
        raise BundleError(
            f"{bundle.folder}: the engine for {engine.target} {engine.precision} does not run the golden inputs:"
            f" {error.message}",
            hint="build the bundle again",
        ) from error
    if got.shape != golden.outputs.shape:
        raise BundleError(
            f"{bundle.folder}: the engine for {engine.target} {engine.precision} answers with arrays of"
            f" {list(got.shape[1:])}, and PyTorch did with {list(golden.outputs.shape[1:])}",
            hint="build the bundle again",
        )
    return got


def write_contract(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write down, beside the golden inputs of a bundle that is being made, what they were answered with.

    Args:
        folder: Of the bundle, not sealed yet.
        manifest: Of the bundle.
    """
    held = {name: manifest[name] for name in _HELD}
    (folder / CONTRACT).write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def refuse_contract(bundle: Bundle) -> None:
    """Refuse a manifest that says otherwise than :data:`CONTRACT`, where the bundle has one.

    Raises:
        BundleError: It does, or there is something else in that file.
    """
    if CONTRACT not in bundle.manifest["files"]:
        return
    try:
        recorded = json.loads((bundle.folder / CONTRACT).read_text(encoding="utf-8"))
        wanted = {name: recorded[name] for name in _HELD}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{bundle.folder / CONTRACT} cannot be read: {error!r}") from None
    for place, there, was in _differences({name: bundle.manifest.get(name) for name in _HELD}, wanted, ""):
        raise BundleError(
            f"{bundle.folder}: {place} in manifest.json is {there}, and was {was} where the bundle was built",
            hint="publish the bundle again: edgetl build",
        )


def refuse_digests(bundle: Bundle) -> None:
    """Refuse labels, a decision, a preprocessing or engines that are not those whose SHA-256 the manifest holds.

    Raises:
        BundleError: It is not.
    """
    for name, escaped in (("labels", False), ("decision", False), ("preprocessing", True)):
        wanted = bundle.manifest.get(f"{name}_sha256")
        if wanted is not None and _digest(bundle.manifest[name], escaped=escaped) != wanted:
            raise BundleError(
                f"{bundle.folder}: {name} in manifest.json changed after the bundle was built: the SHA-256 is not"
                f" the one that stands there as {name}_sha256",
                hint="publish the bundle again: edgetl build",
            )
    listed, entries = bundle.manifest["files"], bundle.manifest["engines"]
    for entry in entries:
        wanted, inside = entry.get("files_sha256"), f"{entry['folder']}/"
        if wanted is None:
            continue
        files = {name.removeprefix(inside): listed[name]["sha256"] for name in listed if name.startswith(inside)}
        digest = _digest(files)
        if digest == wanted:
            continue
        owner = next((other for other in entries if other.get("files_sha256") == digest), None)
        raise BundleError(
            f"{bundle.folder}: the files in {entry['folder']} are not those of the engine for {entry['target']}"
            f" {entry['precision']} that was measured: "
            + (
                f"they are those of the one for {owner['target']} {owner['precision']}"
                if owner
                else "their SHA-256 is not the one that stands in manifest.json as files_sha256"
            ),
            hint="publish the bundle again: edgetl build",
        )


def _digest(value: Any, *, escaped: bool = False) -> str:
    """SHA-256 of a JSON value's canonical text, in hexadecimal; of a preprocessing, with signs beyond ASCII escaped."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=escaped)
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_difference(bundle: Bundle, golden: Golden) -> float:
    """The largest difference of a golden tensor made here from the recorded one.

    It is inf where their shapes differ, or where either is not finite.

    Raises:
        BundleError: A raw golden input cannot be read, or the recorded tensors are of another dtype.
    """
    contract = bundle.preprocessing
    try:
        inputs = contract.together([contract(source) for source in golden.sources])
    except DataError as error:
        raise BundleError(
            f"{bundle.folder}: a golden input cannot be read: {error.message}", hint="build the bundle again"
        ) from error
    if inputs.dtype != golden.inputs.dtype:
        raise BundleError(
            f"{bundle.folder}: the golden inputs are recorded as {golden.inputs.dtype}, and the preprocessing makes"
            f" {inputs.dtype}",
            hint="build the bundle again",
        )
    if inputs.shape != golden.inputs.shape:
        return math.inf
    difference = float(np.abs(inputs.astype(np.float64) - golden.inputs).max(initial=0.0))
    return difference if math.isfinite(difference) else math.inf


def refuse_labels(bundle: Bundle, golden: Golden) -> None:
    """Refuse labels that are not the network's, and what was changed beside its digest: see :func:`refuse_digests`.

    Raises:
        BundleError: They are not.
    """
    if bundle.labels and golden.classes not in (None, bundle.labels):
        raise BundleError(
            f"{bundle.folder}: the labels in manifest.json are not those that the network was trained with:"
            f" {_first_difference(bundle.labels, golden.classes or ())}",
            hint="publish the bundle again: edgetl build",
        )
    if bundle.labels and len(bundle.labels) != golden.outputs.shape[1]:
        raise BundleError(
            f"{bundle.folder}: PyTorch's golden outputs are {golden.outputs.shape[1]} for each input, and"
            f" manifest.json has {len(bundle.labels)} labels",
            hint="build the bundle again",
        )
    refuse_digests(bundle)


def agrees(bundle: Bundle, got: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether an engine decides as PyTorch did: of embeddings, whether they point the same way.

    Args:
        bundle: That it is of.
        got: Its outputs, (n, k).
        wanted: PyTorch's.

    Returns:
        Shape (n, d): d decisions on every input, one for each label where there may be several. Outputs that are not
        finite decide nothing as PyTorch did.

    Raises:
        BundleError: The bundle's decision is for another number of outputs.
    """
    decision, whole = bundle.decision, np.asarray(np.isfinite(got).all(1))
    got = np.where(whole[:, None], got, np.float32(0.0))
    if isinstance(decision, Similarity):
        same = cosines(got, wanted) >= _POINTS_ALIKE
    else:
        try:
            same = np.equal(decision.decide(got), decision.decide(wanted))
        except ModelError as error:
            raise BundleError(
                f"{bundle.folder}: the decision in manifest.json is not of this network: {error.message}",
                hint="publish the bundle again: edgetl build",
            ) from error
    agreed: NDArray[np.bool_] = same.reshape(len(got), -1) & whole[:, None]
    return agreed


def recorded_parity(bundle: Bundle, engine: EngineEntry) -> dict[str, Any]:
    """What was recorded of an engine where the bundle was built; empty where it did not run there."""
    for entry in bundle.manifest["engines"]:
        if entry["target"] == engine.target and entry["precision"] == engine.precision:
            return dict(entry.get("parity", {}))
    return {}


def not_finite(name: str, got: NDArray[np.float32]) -> str | None:
    """Why an engine is refused whatever was recorded of it: NaN and infinity are no answers; None where there is none.

    Args:
        name: Of the engine.
        got: Its outputs for the golden inputs, (n, k).
    """
    wrong = int((~np.isfinite(got).all(1)).sum())
    return f"{name} returned NaN or infinite values for {wrong} of {len(got)} golden inputs" if wrong else None


def refusal(name: str, parity: Mapping[str, Any], agreed: NDArray[np.bool_]) -> str | None:
    """Why an engine is not the one that the bundle was built with, by its answers to the golden inputs.

    Args:
        name: Of the engine.
        parity: From :func:`recorded_parity`.
        agreed: From :func:`agrees`.
    """
    agreement, samples = parity.get("agreement"), parity.get("samples")
    # An engine that never ran where the bundle was built has nothing recorded, and may miss one input.
    allowed = agreed.shape[1]
    if agreement is not None:
        seen = (samples or math.inf) * agreed.shape[1]
        share = 1.0 - agreement if agreement < 1.0 else 1.0 / (2.0 + seen)
        allowed = _most_by_chance(agreed.size, share)
    if int((~agreed).sum()) <= allowed:
        return None
    agreeing, golden = int(agreed.all(1).sum()), len(agreed)
    known = f"it agreed on {agreement:.2%} of the test split" if agreement is not None else "it did not run"
    return f"{name} answers {agreeing} of {golden} golden inputs as PyTorch did; where the bundle was built {known}"


def _most_by_chance(count: int, share: float) -> int:
    """So many decisions of some that chance alone exceeds in one of a thousand such engines: a binomial quantile."""
    left, chance = 1.0, (1.0 - share) ** count
    for number in range(count):
        left -= chance
        if left < _RARE:
            return number
        chance *= (count - number) / (number + 1) * share / (1.0 - share) if share < 1.0 else 0.0
    return count


def _first_difference(labels: Sequence[str], classes: Sequence[str]) -> str:
    if len(labels) != len(classes):
        return f"{len(labels)} instead of {len(classes)}"
    place = next(place for place, name in enumerate(labels) if name != classes[place])
    return f"output {place} is '{labels[place]}' there, and was '{classes[place]}'"


def _differences(there: Any, was: Any, place: str) -> Iterator[tuple[str, str, str]]:
    """Where two JSON values differ, and what stands there and there, in words."""
    if isinstance(there, dict) and isinstance(was, dict):
        for name in dict.fromkeys((*was, *there)):
            inside = f"{place}.{name}" if place else name
            if name in there and name in was:
                yield from _differences(there[name], was[name], inside)
            else:
                one, other = (_spoken(each[name]) if name in each else "nothing" for each in (there, was))
                yield inside, one, other
    elif json.dumps(there, sort_keys=True) != json.dumps(was, sort_keys=True):  # told apart: 1, 1.0 and true
        yield place, _spoken(there), _spoken(was)


def _spoken(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SPOKEN else f"{text[:_SPOKEN]} …"
