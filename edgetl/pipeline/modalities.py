"""Modalities: how images, texts and tables are read, and how a network for them starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgetl.backends import networks
from edgetl.config import Config, Data
from edgetl.data import leaks
from edgetl.data.dataset import Dataset, Sample
from edgetl.runtime.preprocessing import ImagePreprocessing, Preprocessing
from edgetl.runtime.preprocessing.text import TextPreprocessing
from edgetl.store import digest_of, file_digest

if TYPE_CHECKING:
    from torch import nn

    from edgetl.backends.encoders import Source
    from edgetl.finetune.copied import Copied

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Started:
    """A network before its first phase."""

    module: nn.Module
    preprocessing: Preprocessing
    options: dict[str, Any] = field(default_factory=dict)
    """For :func:`edgetl.backends.networks.build`."""
    copied: Copied
    """What of it is pretrained."""


class Modality(Protocol):
    """How one kind of inputs is read, and which network takes it."""

    kind: str
    """Of its preprocessing contracts: image, text or table."""

    def load(self, config: Data, *, progress: Progress | None = None) -> Dataset:
        """The data set of ``[data]``, read, checked and split."""

    def source_digest(self, config: Data) -> str:
        """SHA-256 of every byte that :meth:`load` would read."""

    def load_samples(
        self, path: Path, preprocessing: Preprocessing, classes: Sequence[str], *, progress: Progress | None = None
    ) -> tuple[Sample, ...]:
        """Samples of a folder or file, labelled where it has labels that are among the classes."""

    def check_calibration(self, samples: Sequence[Sample], dataset: Dataset) -> None:
        """Refuse samples for calibration that the network is measured on."""

    def start(self, config: Config, dataset: Dataset, outputs: tuple[str, ...], *, embeds: bool) -> Started:
        """The preprocessing contract and the network, with pretrained weights where they are asked for.

        Args:
            config: Of the project.
            dataset: The contract of a table or of a tokenizer of one's own is fitted on its train alone.
            outputs: Names of the network's outputs while it trains.
            embeds: Whether it is to put out embeddings.
        """

    def weights_digest(self, config: Config) -> Any:
        """What of the source of the pretrained weights a result depends on."""


class Images:
    """Images, in files of their own or parts of larger ones.

    Args:
        several: Whether one may have several labels.
    """

    kind = "image"

    def __init__(self, *, several: bool = False) -> None:
        self._several = several

    def load(self, config: Data, *, progress: Progress | None = None) -> Dataset:
        """See :func:`edgetl.data.load.load_dataset`."""
        from edgetl.data.load import load_dataset

        return load_dataset(config, progress=progress)

    def source_digest(self, config: Data) -> str:
        """See :func:`edgetl.data.load.source_digest`."""
        from edgetl.data.load import source_digest

        return source_digest(config)

    def load_samples(
        self, path: Path, preprocessing: Preprocessing, classes: Sequence[str], *, progress: Progress | None = None
    ) -> tuple[Sample, ...]:
        """See :func:`edgetl.data.load.load_samples`."""
        from edgetl.data.load import load_samples

        assert isinstance(preprocessing, ImagePreprocessing)
        return load_samples(
            path, classes, several=self._several, max_pixels=preprocessing.max_pixels, progress=progress
        )

    def check_calibration(self, samples: Sequence[Sample], dataset: Dataset) -> None:
        """See :func:`edgetl.data.leaks.check_calibration`."""
        leaks.check_calibration(samples, dataset)

    def start(self, config: Config, dataset: Dataset, outputs: tuple[str, ...], *, embeds: bool) -> Started:
        """A classifier, or an embedding on top of one."""
        from edgetl.backends import backbones, embedding
        from edgetl.finetune import weights

        model, data = config.model, config.data
        module: nn.Module = backbones.build(
            model.backbone, len(outputs), dropout=config.finetune.dropout, image_size=data.image_size
        )
        mean, std = data.mean, data.std
        if mean is None or std is None:
            own = backbones.preprocessing_of(module)
            mean, std = mean or own[0], std or own[1]
        contract = ImagePreprocessing(
            height=data.image_size,
            width=data.image_size,
            resize=data.resize,
            crop_pct=data.crop_pct,
            interpolation=data.interpolation,
            mean=mean,
            std=std,
            max_pixels=data.max_pixels,
        )
        options = {"embedding": model.embedding} if embeds else {}
        if embeds:
            module = embedding.from_classifier(module, len(outputs), model.embedding)
        # A checkpoint of an embedding has its layers, too; other weights are those of a classifier.
        as_it_is = not embeds or weights.embeds(model.weights)
        with nullcontext(module) if as_it_is else embedding.as_classifier(module) as part:
            copied = weights.load_pretrained(
                part, model.weights, backbone=model.backbone, partial=model.partial, classes=outputs
            )
        return Started(module=module, preprocessing=contract, options=options, copied=copied)

    def weights_digest(self, config: Config) -> Any:
        """Of the file, and of the checkpoint's record beside it."""
        from edgetl.finetune import weights

        return weights.source_digest(config.model.weights)


class Texts:
    """Rows of text."""

    kind = "text"

    def load(self, config: Data, *, progress: Progress | None = None) -> Dataset:
        """See :func:`edgetl.data.texts.load_texts`."""
        from edgetl.data.texts import load_texts

        return load_texts(config, progress=progress)

    def source_digest(self, config: Data) -> str:
        """See :func:`edgetl.data.texts.texts_digest`."""
        from edgetl.data.texts import texts_digest

        return texts_digest(config)

    def load_samples(
        self, path: Path, preprocessing: Preprocessing, classes: Sequence[str], *, progress: Progress | None = None
    ) -> tuple[Sample, ...]:
        """See :func:`edgetl.data.texts.load_text_samples`."""
        from edgetl.data.texts import load_text_samples

        return load_text_samples(path, classes)

    def check_calibration(self, samples: Sequence[Sample], dataset: Dataset) -> None:
        """See :func:`edgetl.data.leaks.check_calibration`."""
        leaks.check_calibration(samples, dataset)

    def start(self, config: Config, dataset: Dataset, outputs: tuple[str, ...], *, embeds: bool) -> Started:
        """An encoder with the tokenizer that belongs to it, or a recurrent network with one learned from train."""
        from edgetl.finetune import weights

        model, data = config.model, config.data
        options: dict[str, Any] = {"pooling": model.pooling, "width": model.width, "depth": model.depth}
        source = _encoder(config)
        if source is not None:
            tokenizer, pad = source.tokenizer, source.pad
            options |= {"config": dict(source.config), "vocabulary": source.vocabulary}
        else:
            from edgetl.data.texts import train_tokenizer

            tokenizer, pad = train_tokenizer((str(sample.raw) for sample in dataset.train), _VOCABULARY), 0
        contract = TextPreprocessing.from_tokenizer(tokenizer, max_length=data.max_length, pad=pad)
        options |= {"vocabulary": contract.vocabulary, "pad": pad} if source is None else {"pad": pad}
        module = networks.build(
            model.backbone, len(outputs), contract, options=options, dropout=config.finetune.dropout
        )
        if source is None or weights.is_checkpoint(model.weights):
            copied = weights.load_pretrained(
                module, model.weights, backbone=model.backbone, partial=model.partial, classes=outputs
            )
        else:
            copied = _encoder_copied(module, source, partial=model.partial)
        return Started(module=module, preprocessing=contract, options=options, copied=copied)

    def weights_digest(self, config: Config) -> Any:
        """Of the weights, the configuration and the tokenizer."""
        from edgetl.finetune import weights

        source = _encoder(config)
        if source is None:
            return weights.source_digest(config.model.weights)
        return [
            source.where,
            digest_of([dict(source.config), source.tokenizer, source.pad]),
            file_digest(source.weights) if source.weights else "",
        ]


_VOCABULARY = 8192
"""Tokens of a tokenizer that is learned from train, at most."""


def _encoder(config: Config) -> Source | None:
    """What a pretrained encoder is made of; None for networks that bring none."""
    from edgetl.backends.encoders import read_source

    if not config.model.backbone.startswith("hf:"):
        return None
    return read_source(config.model.weights, config.model.backbone)


def _encoder_copied(module: nn.Module, source: Source, *, partial: bool) -> Copied:
    from edgetl.backends.encoders import load_encoder
    from edgetl.finetune.copied import Copied, Mismatch

    loaded = load_encoder(module, source, partial=partial)
    wrong = tuple(Mismatch(name=name, there=there, here=here) for name, there, here in loaded.mismatched)
    known = {*loaded.copied, *(mismatch.name for mismatch in wrong)}
    return Copied(
        source=source.where,
        copied=loaded.copied,
        skipped=tuple(name for name in module.state_dict() if name not in known),
        mismatched=wrong,
        unused=loaded.unused,
    )


class Tables:
    """Rows of a table."""

    kind = "table"

    def load(self, config: Data, *, progress: Progress | None = None) -> Dataset:
        """See :func:`edgetl.data.tables.load_table`."""
        from edgetl.data.tables import load_table

        return load_table(config, progress=progress)

    def source_digest(self, config: Data) -> str:
        """See :func:`edgetl.data.tables.table_digest`."""
        from edgetl.data.tables import table_digest

        return table_digest(config)

    def load_samples(
        self, path: Path, preprocessing: Preprocessing, classes: Sequence[str], *, progress: Progress | None = None
    ) -> tuple[Sample, ...]:
        """See :func:`edgetl.data.tables.load_rows`."""
        from edgetl.data.tables import load_rows
        from edgetl.runtime.preprocessing.tables import TablePreprocessing

        assert isinstance(preprocessing, TablePreprocessing)
        return load_rows(path, preprocessing, classes)

    def check_calibration(self, samples: Sequence[Sample], dataset: Dataset) -> None:
        """See :func:`edgetl.data.leaks.check_calibration_rows`."""
        leaks.check_calibration_rows(samples, dataset)

    def start(self, config: Config, dataset: Dataset, outputs: tuple[str, ...], *, embeds: bool) -> Started:
        """A network for the features that the contract, fitted on train, makes of a row."""
        from edgetl.data.tables import fit_table
        from edgetl.finetune import weights

        model = config.model
        contract = fit_table(config.data, dataset.train)
        options = {"width": model.width, "depth": model.depth}
        module = networks.build(
            model.backbone, len(outputs), contract, options=options, dropout=config.finetune.dropout
        )
        copied = weights.load_pretrained(
            module, model.weights, backbone=model.backbone, partial=model.partial, classes=outputs
        )
        return Started(module=module, preprocessing=contract, options=options, copied=copied)

    def weights_digest(self, config: Config) -> Any:
        """Of the file, and of the checkpoint's record beside it."""
        from edgetl.finetune import weights

        return weights.source_digest(config.model.weights)
