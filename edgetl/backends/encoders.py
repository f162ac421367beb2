"""Networks for texts: token ids in, logits out, through one linear head.

``hf:<name>`` is an encoder of the library transformers (the BERT family); ``text:bilstm`` is a recurrent network. Both
take one array, int64 (n, length), and make their attention mask of it themselves: what has the id of the padding, at
the end of a text, is padding. The same text gives the same logits however far it is padded.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from edgetl.backends._encoder_source import Source as Source
from edgetl.backends._encoder_source import read_source as read_source
from edgetl.backends._encoder_source import transformers_config
from edgetl.errors import ModelError, TokenizerError, not_imported
from edgetl.tomlfile import did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn

POOLING = ("mean", "first")
BILSTM = "text:bilstm"
DROPOUT = 0.2
"""Of the recurrent network, where none is asked for."""
_HINT = "model.backbone in edgetl.toml"
# Configs call the dropout in front of a classifier by different names.
_DROPOUTS = ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "hidden_dropout")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What :func:`load_encoder` did. Every tensor of the encoder is copied, missing or mismatched."""

    copied: tuple[str, ...] = ()
    """Tensors of the network that have the values of the weights now."""
    missing: tuple[str, ...] = ()
    """Tensors of the encoder that keep their random values: the weights do not have them."""
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    """Tensors of the encoder that keep their random values: name, shape in the weights, shape here."""
    unused: tuple[str, ...] = ()
    """Tensors of the weights that the encoder does not have, under their names there."""


def build(
    backbone: str,
    outputs: int,
    *,
    config: Mapping[str, Any] | None,
    vocabulary: int,
    pad: int,
    pooling: str,
    dropout: float | None,
    width: int,
    depth: int,
    length: int | None = None,
) -> nn.Module:
    """A network with random weights: int64 (n, length) → logits float32 (n, outputs).

    Args:
        backbone: hf:<name>, whose network is what ``config`` says, or text:bilstm.
        outputs: Classes.
        config: With hf: the values of config.json; see :class:`Source`.
        vocabulary: One more than the largest id of the tokenizer.
        pad: Id of the padding.
        pooling: With hf: "mean" of the outputs of a text's tokens, or the "first" one's.
        dropout: Probability of dropping a feature before the head (text:bilstm: and before every layer). None: the
            config's; of text:bilstm 0.2.
        width: With text:bilstm: size of its token embeddings, and units per direction of every layer.
        depth: With text:bilstm: layers.
        length: Tokens of the longest text that it will be given, which is tried; None: untried.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ModelError: No such network, a wrong size, one that cannot read so long a text, or one that is no encoder of
            texts.
        TokenizerError: The tokenizer has more tokens than the network's vocabulary.
    """
    if dropout is not None and not 0.0 <= dropout < 1.0:
        raise ModelError(f"dropout is {dropout}; it is a probability from 0 to below 1")
    for what, size in (("outputs", outputs), ("vocabulary", vocabulary), ("width", width), ("depth", depth)):
        if size < 1:
            raise ModelError(f"{backbone} was asked for {what} = {size}; it needs at least one")
    if not 0 <= pad < vocabulary:
        raise TokenizerError(f"the padding has the id {pad}; the tokenizer has ids from 0 to {vocabulary - 1}")
    family = backbone.partition(":")[0]
    made = _classes()
    module: nn.Module
    if family == "hf":
        module = _encoder(backbone, outputs, config, vocabulary, pad, pooling, dropout)
        _try_one_text(module, backbone, outputs, pad, length or 2)
    elif backbone == BILSTM:
        module = made.bilstm(vocabulary, width, depth, outputs, pad, DROPOUT if dropout is None else dropout)
    else:
        raise ModelError(
            f"'{backbone}' names no network for texts; {did_you_mean(backbone, (BILSTM, 'hf:<name>'))}", hint=_HINT
        )
    return module


def load_encoder(module: nn.Module, source: Source, *, partial: bool = False) -> Loaded:
    """Copy pretrained tensors into an encoder by name; the head keeps its values.

    What wrappers put in front of names ("bert.", "model.", "encoder." of an own checkpoint) is taken off, and the names
    of old files (LayerNorm.gamma and beta) are today's.

    Args:
        module: From :func:`build`, of hf:<name>.
        source: From :func:`read_source`; without weights nothing is copied.
        partial: Copy what fits by name and shape; otherwise a tensor of the encoder that finds none is an error.

    Raises:
        ModelError: The file is damaged, holds NaN, or does not fit.
        MissingExtraError: safetensors is not installed.
    """
    import torch

    encoder = module.get_submodule("encoder")
    wanted = encoder.state_dict()
    if source.weights is None:
        return Loaded(missing=tuple(f"encoder.{name}" for name in wanted))
    state = _read_state(source)
    prefixes = ("", f"{getattr(encoder, 'base_model_prefix', '')}.", "encoder.", "model.")
    partners = [_partners(wanted, state, prefix) for prefix in prefixes]
    partner = max(partners, key=len)
    fitting = {name: other for name, other in partner.items() if state[other].shape == wanted[name].shape}
    mismatched = tuple(
        (f"encoder.{name}", tuple(state[other].shape), tuple(wanted[name].shape))
        for name, other in partner.items()
        if name not in fitting
    )
    missing = tuple(f"encoder.{name}" for name in wanted if name not in partner)
    if not fitting or (not partial and (missing or mismatched)):
        wrong = [*missing, *(f"{name} ({list(there)}, not {list(here)})" for name, there, here in mismatched)]
        raise ModelError(
            f"{source.where} does not fit the network: {len(wrong)} of its {len(wanted)} tensors find no partner among"
            f" {len(state)}: {', '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}",
            hint="partial = true in [model] copies what fits",
        )
    broken = [other for other in fitting.values() if not bool(torch.isfinite(state[other]).all())]
    if broken:
        raise ModelError(f"{source.where} holds NaN or infinity in {len(broken)} tensors: {', '.join(broken[:3])}")
    encoder.load_state_dict({**wanted, **{name: state[other] for name, other in fitting.items()}})
    taken = set(partner.values())
    return Loaded(
        copied=tuple(f"encoder.{name}" for name in fitting),
        missing=missing,
        mismatched=mismatched,
        unused=tuple(name for name in state if name not in taken),
    )


def _partners(wanted: Mapping[str, Any], state: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """For tensors of the encoder: the name in the weights, where all have a prefix there."""
    today = {name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): name
             for name in state}  # fmt: skip
    return {name: today[prefix + name] for name in wanted if prefix + name in today}


def _read_state(source: Source) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise not_imported(error, "safetensors", extra="train", needed_for="reading weights") from None
    try:
        return dict(load_file(str(source.weights)))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{source.weights} cannot be read as weights: {error}") from None


def _encoder(
    backbone: str,
    outputs: int,
    config: Mapping[str, Any] | None,
    vocabulary: int,
    pad: int,
    pooling: str,
    dropout: float | None,
) -> nn.Module:
    if config is None:
        raise ModelError(f"{backbone} needs the config of its encoder: what config.json holds")
    if pooling not in POOLING:
        raise ModelError(f"pooling is '{pooling}'; {did_you_mean(pooling, POOLING)}", hint="model.pooling")
    values = transformers_config(config, pad)
    size = getattr(values, "vocab_size", None)
    if getattr(values, "is_encoder_decoder", False) or not isinstance(size, int):
        raise ModelError(f"{backbone} is of model_type '{values.model_type}', which is no encoder of texts", hint=_HINT)
    if size < vocabulary:
        raise TokenizerError(
            f"the tokenizer has {vocabulary} tokens and {backbone} a vocabulary of {size}: they do not belong together",
            hint=_HINT,
        )
    if dropout is None:
        rates = (getattr(values, name, None) for name in _DROPOUTS)
        dropout = next((float(rate) for rate in rates if isinstance(rate, (int, float))), 0.1)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModel

    models: Any = AutoModel
    try:
        # eager: softmax(q k / √d + mask) v in plain operators, which every engine reads.
        encoder = models.from_config(values, attn_implementation="eager").float()
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, StrictDataclassError) as error:
        raise ModelError(f"{backbone} cannot be built from its config: {error}", hint=_HINT) from None
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # a layer on the first token that pretraining used; nothing here would train it
    module: nn.Module = _classes().encoder(encoder, int(values.hidden_size), outputs, pad, pooling, dropout)
    return module


def _try_one_text(module: nn.Module, backbone: str, outputs: int, pad: int, length: int) -> None:
    """Run one text of the longest kind, and see what comes out."""
    import torch

    ids = torch.full((1, length), 1 if pad == 0 else 0, dtype=torch.int64)
    training = module.training
    try:
        with torch.inference_mode():
            logits = module.eval()(ids)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, AssertionError) as error:
        raise ModelError(
            f"{backbone} cannot read a text of {length} tokens: {error}",
            hint="a smaller data.max_length, or another model.backbone, in edgetl.toml",
        ) from None
    finally:
        module.train(training)
    if tuple(logits.shape) != (1, outputs):
        raise ModelError(f"{backbone} gives {list(logits.shape)} for one text; it should be [1, {outputs}]", hint=_HINT)


class _Classes(NamedTuple):
    encoder: Any
    bilstm: Any


@functools.cache
def _classes() -> _Classes:
    """The classes of the modules, made where torch is there."""
    try:
        import torch
        from torch import nn
    except ImportError as error:
        raise not_imported(error, "torch", extra="train", needed_for="building the network") from None

    class EncoderClassifier(nn.Module):
        """Token ids, int64 (n, length) → logits (n, classes)."""

        def __init__(
            self, encoder: nn.Module, width: int, outputs: int, pad: int, pooling: str, dropout: float
        ) -> None:
            super().__init__()
            self.pad, self.pooling = pad, pooling
            self.encoder = encoder
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(width, outputs)

        def features(self, ids_nt: torch.Tensor) -> torch.Tensor:
            """What the head is fed: (n, d)."""
            real_nt = ids_nt != self.pad
            x_ntd: torch.Tensor = self.encoder(input_ids=ids_nt, attention_mask=real_nt.long()).last_hidden_state
            if self.pooling == "first":
                return x_ntd[:, 0]
            weight_nt1 = real_nt.unsqueeze(-1).to(x_ntd.dtype)
            return (x_ntd * weight_nt1).sum(1) / weight_nt1.sum(1).clamp(min=1.0)

        def forward(self, ids_nt: torch.Tensor) -> torch.Tensor:
            logits_nc: torch.Tensor = self.head(self.dropout(self.features(ids_nt)))
            return logits_nc

    class Direction(nn.LSTM):
        """An LSTM from left to right: (n, t, d) → (n, t, h)."""

        def __init__(self, inputs: int, width: int) -> None:
            super().__init__(inputs, width, batch_first=True)

        def forward(self, x_ntd: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # the states are not used
            if not torch.onnx.is_in_onnx_export():
                y_nth: torch.Tensor = super().forward(x_ntd)[0]
                return y_nth
            # torch.export takes the length of an LSTM's input for a constant, so ONNX's operator is written down
            # directly. Its gates are in the order input, output, forget, cell; PyTorch's: input, forget, cell, output.
            h = self.hidden_size

            def onnx_gates(part: torch.Tensor) -> torch.Tensor:
                return torch.cat([part[:h], part[3 * h :], part[h : 3 * h]])[None]

            own: Any = self
            bias = torch.cat([onnx_gates(own.bias_ih_l0), onnx_gates(own.bias_hh_l0)], 1)
            y_t1nh = torch.onnx.ops.symbolic(
                "LSTM",
                [x_ntd.transpose(0, 1), onnx_gates(own.weight_ih_l0), onnx_gates(own.weight_hh_l0), bias],
                attrs={"hidden_size": h},
                dtype=x_ntd.dtype,
                shape=(x_ntd.shape[1], 1, x_ntd.shape[0], h),
                version=14,
            )
            return y_t1nh[:, 0].transpose(0, 1)

    class Layer(nn.Module):
        """Both directions: (n, t, d) → (n, t, 2h)."""

        def __init__(self, inputs: int, width: int, dropout: float) -> None:
            super().__init__()
            self.dropout = nn.Dropout(dropout)
            self.right, self.left = Direction(inputs, width), Direction(inputs, width)

        def forward(self, x_ntd: torch.Tensor, turned_nt: torch.Tensor) -> torch.Tensor:
            x_ntd = self.dropout(x_ntd)
            return torch.cat([self.right(x_ntd), _taken(self.left(_taken(x_ntd, turned_nt)), turned_nt)], 2)

    class BiLstm(nn.Module):
        """Embedding, bidirectional LSTM layers, the largest output over a text's tokens, head.

        Pooling as in Conneau et al. 2017, arXiv:1705.02364. Each text is turned around within its own length, so that
        no direction sees padding before words.
        """

        def __init__(self, vocabulary: int, width: int, depth: int, outputs: int, pad: int, dropout: float) -> None:
            super().__init__()
            self.pad = pad
            self.embedding = nn.Embedding(vocabulary, width, padding_idx=pad)
            self.layers = nn.ModuleList(
                Layer(width if number == 0 else 2 * width, width, dropout) for number in range(depth)
            )
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(2 * width, outputs)

        def forward(self, ids_nt: torch.Tensor) -> torch.Tensor:
            real_nt = ids_nt != self.pad
            place_1t = torch.arange(ids_nt.shape[1], device=ids_nt.device)[None]
            turned_nt = torch.where(real_nt, real_nt.sum(1, keepdim=True) - 1 - place_1t, place_1t)
            x_ntd = self.embedding(ids_nt)
            for layer in self.layers:
                x_ntd = layer(x_ntd, turned_nt)
            # An LSTM's outputs lie above -1: padding is never the largest.
            pooled_nd = x_ntd.masked_fill(~real_nt[:, :, None], -1.0).amax(1)
            logits_nc: torch.Tensor = self.head(self.dropout(pooled_nd))
            return logits_nc

    return _Classes(EncoderClassifier, BiLstm)


def _taken(x_ntd: torch.Tensor, places_nt: torch.Tensor) -> torch.Tensor:
    """Of every text, its rows in another order."""
    return x_ntd.gather(1, places_nt[:, :, None].expand(-1, -1, x_ntd.shape[2]))
