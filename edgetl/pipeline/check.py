"""Bundles that are already there: files, signature, golden inputs, and accuracy on data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.data.load import load_samples
from edgetl.data.loader import ImageSamples, batches
from edgetl.errors import BundleError, DataError, ParityError, SetupError
from edgetl.parity.compare import sqnr_db
from edgetl.runtime.bundle import Bundle, EngineEntry, Predictor, open_bundle

_TENSOR_TOLERANCE = 1e-4
"""Of a preprocessed value: rounding differs between builds of Pillow; a wrong mean or filter differs by far more."""


@dataclass(frozen=True, kw_only=True)
class CheckedEngine:
    """What one engine of a bundle did here."""

    name: str
    golden: int = 0
    """Golden inputs."""
    agreeing: int = 0
    """Of them, those that it names as PyTorch did."""
    sqnr_db: float = 0.0
    top1: float | None = None
    """On the given data."""
    samples: int = 0
    skipped: str = ""
    """Why it did not run."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found out about a bundle."""

    files: int
    signed_by: str | None
    preprocessing_difference: float
    engines: tuple[CheckedEngine, ...]


def verify_bundle(folder: Path, *, key: Path | None = None, data: Path | None = None) -> Checked:
    """Check a bundle, and run every engine of it that can run here.

    Args:
        folder: Of the bundle.
        key: Public key that must have signed it.
        data: Labelled images, to measure top-1 on.

    Raises:
        BundleError: A file, the signature or the preprocessing is not as it was built.
        ParityError: An engine answers the golden inputs in another way than where it was built.
        DataError: The data cannot be used, or has no labels that the bundle knows.
    """
    bundle = open_bundle(folder, key=key)
    expected = list(bundle.golden())
    difference = max(
        (float(np.abs(bundle.preprocessing(path) - tensor).max()) for path, tensor, _ in expected), default=0.0
    )
    if difference > _TENSOR_TOLERANCE:
        raise BundleError(
            f"{folder}: preprocessing on this machine differs from the recorded one by up to {difference:.1e}",
            hint="compare the versions of Pillow; the bundle was built with the one in its provenance",
        )
    samples = _labelled(bundle, data) if data else None
    tensors = np.stack([tensor for _, tensor, _ in expected])
    logits = np.stack([logit for _, _, logit in expected])
    return Checked(
        files=bundle.verified.files,
        signed_by=bundle.verified.signed_by,
        preprocessing_difference=difference,
        engines=tuple(_check(bundle, engine, tensors, logits, samples) for engine in bundle.engines),
    )


def _check(
    bundle: Bundle,
    engine: EngineEntry,
    tensors: NDArray[np.float32],
    logits: NDArray[np.float32],
    samples: ImageSamples | None,
) -> CheckedEngine:
    name = f"{engine.target} {engine.precision}"
    if engine.status == "build-on-device":
        return CheckedEngine(name=name, skipped=engine.note)
    try:
        opened = bundle.open(target=engine.target, precision=engine.precision)
    except SetupError as error:
        return CheckedEngine(name=name, skipped=error.message)
    with opened as model:
        got = np.concatenate([model.logits(tensor[None]) for tensor in tensors])
        top1 = _top1(model, samples) if samples else None
    agreeing = int((got.argmax(1) == logits.argmax(1)).sum())
    recorded = _recorded(bundle, engine).get("agreement")
    # Three times the recorded rate of disagreement, and at least one: eight inputs are few. An engine that never ran
    # where the bundle was built has nothing recorded, and may miss one.
    allowed = 1 if recorded is None else 0 if recorded == 1.0 else max(1, math.ceil(3 * (1.0 - recorded) * len(logits)))
    known = f"it agreed on {recorded:.2%} of the test split" if recorded is not None else "it did not run"
    if not np.isfinite(got).all() or len(logits) - agreeing > allowed:
        raise ParityError(
            f"{name} names {agreeing} of {len(logits)} golden inputs as PyTorch did; "
            f"where the bundle was built {known}",
            hint="build the engine again on this device, or ship another precision",
        )
    return CheckedEngine(
        name=name,
        golden=len(logits),
        agreeing=agreeing,
        sqnr_db=sqnr_db(logits, got),
        top1=top1,
        samples=len(samples) if samples else 0,
    )


def _recorded(bundle: Bundle, engine: EngineEntry) -> dict[str, float]:
    for entry in bundle.manifest["engines"]:
        if entry["target"] == engine.target and entry["precision"] == engine.precision:
            return dict(entry.get("parity", {}))
    return {}


def _labelled(bundle: Bundle, data: Path) -> ImageSamples:
    samples = load_samples(data, bundle.labels, max_pixels=bundle.preprocessing.max_pixels)
    if any(sample.label < 0 for sample in samples):
        raise DataError(
            f"{data} has no labels: its sub-folders should be named {', '.join(bundle.labels[:5])}",
            hint="a manifest with the columns path and label will do as well",
        )
    return ImageSamples(samples, bundle.preprocessing)


def _top1(model: Predictor, samples: ImageSamples) -> float:
    right = 0
    for images, labels in batches(samples, 1):
        right += int(model.logits(images).argmax(1)[0] == labels[0])
    return right / len(samples)
