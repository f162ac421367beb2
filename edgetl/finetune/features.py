"""Features of a frozen backbone: computed once by the fastest engine that computes the same, and kept as files.

Features are what the head of a classifier is fed: float32 of shape (n, width). A folder of them holds
``features.npy`` (views, n, width), ``labels.npy`` and ``features.json``.
"""

from __future__ import annotations

import copy
import io
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, EdgetlError, ModelError, UsageError, not_imported
from edgetl.finetune.memory import enough_on_gpu
from edgetl.numbers import apart
from edgetl.runtime.runner import Runner, run_batch
from edgetl.store import file_digest

if TYPE_CHECKING:
    from torch import nn

FEATURES, LABELS, FACTS = "features.npy", "labels.npy", "features.json"
TOLERANCE = 1e-3
"""Largest difference from eager PyTorch, as a share of the features' root mean square. Engines in float32 differ by
some 1e-5 on convolutional networks; one that computes in bfloat16 or TF32 differs by 1e-2 to 1e-3 and more."""

_ON_CPU = 'smaller inputs or a smaller backbone; or finetune.device = "cpu"'

Images = NDArray[np.float32]
Batch = tuple[Images, NDArray[Any]]
Progress = Callable[[str, int, int], None]


class Extractor(Protocol):
    """Something that computes features."""

    @property
    def name(self) -> str:
        """torch, onnxruntime, openvino …"""

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """Features of some images.

        Args:
            images: float32 (n, 3, height, width), preprocessed, n ≥ 1.

        Returns:
            float32 (n, width), owned by the caller.
        """


class TorchExtractor:
    """Eager PyTorch in float32 (no TF32, no autocast), channels last. It works on a copy of the network.

    Args:
        module: A classifier.
        head: Name of its last layer, the one that is trained.
        device: cpu or cuda.

    Raises:
        TrainingError: The GPU's memory does not hold the network or, when it is called, the images.
    """

    def __init__(self, module: nn.Module, head: str, *, device: str = "cpu") -> None:
        torch = _torch()
        self._device = device
        self.name = "torch" if device == "cpu" else f"torch-{device}"
        with enough_on_gpu("the frozen backbone", hint=_ON_CPU):
            self._body = copy.deepcopy(body_of(module, head)).eval().to(device)
            self._body.to(memory_format=torch.channels_last)

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """See :class:`Extractor`."""
        torch = _torch()
        _check_batch(images)
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(allow_tf32=False),
            torch.autocast(self._device, enabled=False),
            enough_on_gpu(f"{len(images)} samples at a time, of which features are computed", hint=_ON_CPU),
        ):
            inputs = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
            if inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            found = self._body(inputs)
            return np.array(found.float().cpu().numpy())


class RunnerExtractor:
    """An opened engine whose first output is the features.

    Args:
        name: Of the engine.
        runner: Opened, with one input of images. The caller closes it.
        batch: Images per inference, for an engine whose input does not fix it.
    """

    def __init__(self, name: str, runner: Runner, *, batch: int = 32) -> None:
        fixed = runner.inputs[0].shape[0]
        self.name, self._runner = name, runner
        self._batch = fixed if isinstance(fixed, int) else batch

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """See :class:`Extractor`."""
        _check_images(images)
        starts = range(0, len(images), self._batch)
        parts = [run_batch(self._runner, images[start : start + self._batch]) for start in starts]
        return np.concatenate(parts).astype(np.float32, copy=False)


def body_of(module: nn.Module, head: str) -> nn.Module:
    """The network up to its head: a module that returns what the head is fed; it shares weights and mode.

    What the head is fed is caught in the forward pass and not rebuilt from the network's parts, so that it is the
    same for every family; what comes behind it is dead code, which an export leaves out.

    Args:
        module: Maps float32 (n, 3, H, W) to (n, classes).
        head: Name of the module that is the head.

    Raises:
        ModelError: There is no such module. When the result is called: the head runs not once, or is fed something
            else than (n, width).
    """
    torch = _torch()
    known = dict(module.named_modules())
    if not head or head not in known:
        tail = ", ".join(list(known)[-3:])
        raise ModelError(f"the network has no module '{head}' to be its head; its last modules are {tail}")

    class Body(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is imported when it is needed
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, images: Any) -> Any:
            caught: list[Any] = []
            handle = self.network.get_submodule(head).register_forward_pre_hook(
                lambda _, inputs: caught.append(inputs[0])
            )
            try:
                self.network(images)
            finally:
                handle.remove()
            if len(caught) != 1 or caught[0].ndim != 2:
                found = [list(tensor.shape) for tensor in caught]
                raise ModelError(f"the head '{head}' should be fed one tensor (n, width) per image; it is fed {found}")
            return caught[0]

    body: nn.Module = Body()
    body.training = module.training
    return body


def difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference of two arrays as a share of the root mean square of the second.

    Returns:
        0 for equal arrays; infinity or NaN where one of them is not finite, or the second is zero.

    Raises:
        ModelError: Their shapes differ.
    """
    if found.shape != expected.shape:
        raise ModelError(f"features have the shape {list(found.shape)}, not {list(expected.shape)}")
    scale = math.sqrt(float(np.mean(np.square(expected, dtype=np.float64))))
    with np.errstate(invalid="ignore"):
        largest = float(np.abs(found.astype(np.float64) - expected).max())
    if largest == 0.0:
        return 0.0
    return largest / scale if scale else math.inf


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which engine computes features, and why."""

    name: str
    images_per_s: Mapping[str, float]
    """Engine → images per second, for those that were measured."""
    differences: Mapping[str, float]
    """Engine → largest difference from eager PyTorch, as a share of the features' root mean square."""
    refused: Mapping[str, str]
    """Engine → why it was not taken, for those that were not measured or are not the same."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def fastest(
    extractors: Sequence[Extractor],
    images: Images,
    expected: NDArray[np.float32],
    *,
    tolerance: float = TOLERANCE,
    rounds: int = 3,
) -> Choice:
    """The fastest of the extractors that compute the expected features.

    Each runs once to warm up, and that answer is compared; then all run in turn, and the medians are compared, so
    that what else the machine does falls on all of them alike.

    Args:
        extractors: With different names.
        images: float32 (n, 3, height, width): one batch.
        expected: Eager PyTorch's features of it in float32, (n, width).
        tolerance: See :data:`TOLERANCE`.
        rounds: Timed runs of each.

    Raises:
        ModelError: PyTorch's features are not finite, or no extractor computes them.
        UsageError: There are no rounds.
    """
    if rounds < 1:
        raise UsageError(f"{rounds} rounds of timing were asked for; it takes at least 1")
    if not np.isfinite(expected).all():
        raise ModelError("the backbone's features are NaN or infinite", hint="look at its weights: model.weights")
    refused: dict[str, str] = {}
    differences: dict[str, float] = {}
    left = []
    for extractor in extractors:
        try:
            differs = difference(extractor(images), expected)
        except EdgetlError as error:
            refused[extractor.name] = error.message
            continue
        if math.isfinite(differs):
            differences[extractor.name] = differs
        if differs <= tolerance:
            left.append(extractor)
        else:
            found, allowed = apart(differs, tolerance, 1, "e")
            refused[extractor.name] = f"its features differ from PyTorch's by {found}; allowed are {allowed}"
    if not left:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "none was given"
        raise ModelError(f"no engine computes the backbone's features as PyTorch does: {reasons}", hint="edgetl doctor")
    seconds: dict[str, list[float]] = {extractor.name: [] for extractor in left}
    for _ in range(rounds):
        for extractor in left:
            began = time.perf_counter()
            extractor(images)
            seconds[extractor.name].append(time.perf_counter() - began)
    speeds = {name: round(len(images) / statistics.median(times), 1) for name, times in seconds.items()}
    name = max(speeds, key=lambda name: speeds[name])
    return Choice(name=name, images_per_s=speeds, differences=differences, refused=refused)


class Features(NamedTuple):
    """Features as they lie on the disk."""

    values: NDArray[np.float32]
    """(views, n, width), memory-mapped, read-only: index it before torch.from_numpy, which wants a copy."""
    labels: NDArray[Any]
    """(n, …), as the batches had them."""


def write(
    folder: Path,
    batches: Iterable[Batch],
    extractor: Extractor,
    *,
    count: int,
    views: int = 1,
    facts: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    what: str = "features",
) -> Features:
    """Compute features batch by batch, and write them; memory holds one batch and the labels.

    Args:
        folder: An existing one.
        batches: Pairs of images, float32 (b, 3, h, w), and labels, (b, …): all samples in their order, as often as
            there are views. A view is all samples with one draw of their random changes.
        extractor: Computes them.
        count: Samples.
        views: See ``batches``.
        facts: JSON values for ``features.json``.
        progress: Called with ``what``, samples done, and all of them.
        what: Words for the progress.

    Raises:
        DataError: There are no samples, batches come to another number, or a label is not the same in every view.
        ModelError: Features are not finite, or not float32 (b, width).
        OSError: The disk is full, or the folder cannot be written.
    """
    total, done, width = count * views, 0, 0
    if total < 1:
        raise DataError(f"there are no features to compute: {count} samples, {views} views")
    first: list[NDArray[Any]] = []
    with (folder / FEATURES).open("wb") as file:
        for images, targets in batches:
            if done + len(images) > total:
                raise DataError(f"the batches hold more than the {count} samples in {views} views that were announced")
            found = _checked(extractor(images), len(images), width, extractor.name)
            if not width:
                width = found.shape[1]
                file.write(_header((views, count, width)))
            # Written, not mapped: where the disk is full, a write raises, and a page of a map ends the process.
            file.write(np.ascontiguousarray(found, dtype="<f4").data)
            _keep_labels(first, targets, done, count)
            done += len(images)
            if progress:
                progress(what, done, total)
    if done != total:
        raise DataError(f"the batches hold {done} samples; {count} in {views} views were announced")
    labels = np.concatenate(first)[:count]
    np.save(folder / LABELS, labels, allow_pickle=False)
    record = {
        **(facts or {}),
        "schema": 1,
        "engine": extractor.name,
        "shape": [views, count, width],
        "labels_sha256": file_digest(folder / LABELS),
    }
    (folder / FACTS).write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
    return read(folder)


def read(folder: Path) -> Features:
    """Features that :func:`write` wrote; only the labels are loaded into memory.

    Raises:
        DataError: A file is missing, damaged, too short or too long, or not of this version.
    """
    path, hint = folder / FEATURES, "edgetl build --force features"
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        views, count, width = (int(size) for size in facts["shape"])
        labels_whole = file_digest(folder / LABELS) == facts["labels_sha256"]
        with path.open("rb") as file:
            header = _header((views, count, width))
            header_whole = file.read(len(header)) == header
            size, expected = path.stat().st_size, len(header) + 4 * views * count * width
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder} does not hold whole features: {error}", hint=hint) from None
    if not header_whole or size != expected:
        raise DataError(
            f"{path} is damaged: it has {size} bytes, and float32[{views}, {count}, {width}] are {expected}", hint=hint
        )
    if not labels_whole:
        raise DataError(f"{folder / LABELS} is not what was written with {path.name}", hint=hint)
    values: NDArray[np.float32] = np.memmap(path, "<f4", mode="r", offset=len(header), shape=(views, count, width))
    return Features(values, np.load(folder / LABELS, allow_pickle=False))


def _header(shape: tuple[int, int, int]) -> bytes:
    """The first bytes of a NumPy file of float32 of a shape. Compared and not parsed, they cannot mislead a reader."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _keep_labels(first: list[NDArray[Any]], targets: NDArray[Any], done: int, count: int) -> None:
    """Keep the labels of the first view, and compare those of the others with them."""
    inside = max(0, min(len(targets), count - done))
    if inside:
        first.append(np.array(targets[:inside]))
    if inside == len(targets):
        return
    whole = np.concatenate(first)
    first[:] = [whole]
    places = np.arange(done + inside, done + len(targets)) % count
    if not np.array_equal(whole[places], targets[inside:]):
        view = (done + inside) // count
        raise DataError(
            f"labels in view {view} are not those of view 0: views must hold the same samples in their order"
        )


def _checked(found: NDArray[np.float32], rows: int, width: int, name: str) -> NDArray[np.float32]:
    """Features of one batch, refused where they cannot be features."""
    if found.dtype != np.float32 or found.ndim != 2 or len(found) != rows or (width and found.shape[1] != width):
        wanted = f"float32[{rows}, {width or 'width'}]"
        raise ModelError(f"{name} returned {found.dtype}{list(found.shape)} as features, not {wanted}")
    if not np.isfinite(found).all():
        raise ModelError(
            f"{name} computed features that are NaN or infinite",
            hint="look at the weights of the backbone: model.weights in edgetl.toml",
        )
    return found


def _check_batch(arrays: Images) -> None:
    """Arrays of any kind; images are looked at more closely."""
    if arrays.ndim == 2 and len(arrays):
        return
    _check_images(arrays)


def _check_images(images: Images) -> None:
    if images.dtype != np.float32 or images.ndim != 4 or not len(images):
        raise UsageError(
            f"images are float32 (n, 3, height, width), n ≥ 1; given was {images.dtype}{list(images.shape)}"
        )


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise not_imported(error, "torch", extra="train", needed_for="computing features") from None
    return torch
