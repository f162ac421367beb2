"""Synthetic rows for the small classes of a table: SMOTE, by the package imbalanced-learn.

Chawla et al. 2002 (arXiv:1106.1813): a new row lies between a row of the class and one of its nearest neighbours in the
class. Of tables with names it is their SMOTE-NC (section 6.1): numbers are interpolated, a name is the most frequent
one among the neighbours. Of tables that hold names alone it is SMOTE-N (section 6.2).

It works on the vectors that the preprocessing contract makes of rows, since SMOTE takes no missing values and measures
distances: there numbers are standardised, and missing ones filled and flagged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, not_imported
from edgetl.finetune.samplers import Key
from edgetl.runtime.preprocessing.tables import Numeric, TablePreprocessing

if TYPE_CHECKING:
    import torch

NEIGHBOURS = 5
"""Of the class, that a synthetic row is drawn from, as in the paper; a class of fewer rows has as many as there are."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Vectors with labels, by key (epoch, index), for a torch DataLoader; every epoch has the same."""

    vectors: NDArray[np.float32]
    """(n, features)."""
    labels: NDArray[np.int64]
    """(n,)."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[Key]) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch at once, which a DataLoader asks for where it can: float32 (n, features), and labels int64 (n,)."""
        import torch

        indices = np.asarray([index for _, index in keys])
        return torch.from_numpy(self.vectors[indices]), torch.from_numpy(self.labels[indices])

    @staticmethod
    def collate(batch: Any) -> Any:
        """A batch is one already."""
        return batch


def oversampled(rows: Rows, contract: TablePreprocessing, classes: Sequence[str], seed: int) -> Rows:
    """As many rows of every class as the largest one has: first the given ones in their order, then synthetic ones.

    A synthetic row is one that the contract could have made: of every column of names one input is 1 at most, as in the
    class's rows, and a number that is flagged as missing has the value that stands for missing ones. Every number lies
    between the least and the greatest of its class. The result depends on nothing but the arguments, not on the number
    of threads either.

    Args:
        rows: Of train, at least two classes among them.
        contract: That made the vectors.
        classes: Names by label, for messages.
        seed: Of all draws.

    Raises:
        DataError: A class that needs synthetic rows has a single one.
        MissingExtraError: imbalanced-learn is not installed.
    """
    try:
        import imblearn  # noqa: F401 - asked for here, where its absence can be explained
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise not_imported(error, error.name or "imblearn", extra="train", needed_for='balance = "smote"') from None
    labels, counts = np.unique(rows.labels, return_counts=True)
    short = [(int(label), int(count)) for label, count in zip(labels, counts, strict=True) if count < counts.max()]
    alone = [classes[label] for label, count in short if count == 1]
    if alone:
        raise DataError(
            f"train has a single row of the class '{alone[0]}': SMOTE draws new rows between two of a class",
            hint='balance = "sampler" or "loss" in [finetune], or more rows of the class',
        )
    packed = _Packed.of(contract, rows.vectors)
    # Neighbours at equal distance may come in another order where threads share the search.
    with threadpool_limits(1):
        made = [packed.unpacked(packed.synthetic(rows.labels, label, count, seed)) for label, count in short]
    fresh = np.repeat([label for label, _ in short], [len(vectors) for vectors in made]).astype(np.int64)
    return Rows(
        vectors=np.concatenate([rows.vectors, *made]).astype(np.float32, copy=False),
        labels=np.concatenate([rows.labels, fresh]),
    )


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """Vectors with one column per number and one code per column of names or flag."""

    numbers: tuple[int, ...]
    """Places of the numbers in a vector."""
    groups: tuple[tuple[int, ...], ...]
    """Places of which one is 1 at most: of a column of names, or of a flag."""
    fills: tuple[tuple[int, int, float], ...]
    """Of every flag: its place, the number's, and the value that stands for a missing one."""
    values: NDArray[np.float64]
    """(n, numbers + groups); the code of a group is the index of the 1 in it, or its size where all are 0."""

    @classmethod
    def of(cls, contract: TablePreprocessing, vectors: NDArray[np.float32]) -> _Packed:
        numbers: list[int] = []
        groups: list[tuple[int, ...]] = []
        fills: list[tuple[int, int, float]] = []
        place = 0
        for column in contract.columns:
            places = tuple(range(place, place + len(column.features)))
            place += len(places)
            if not isinstance(column, Numeric):
                groups.append(places)
                continue
            numbers.append(places[0])
            if column.missing:
                groups.append(places[1:])
                fill = np.clip((column.fill - column.mean) / column.std, -contract.clip, contract.clip)
                fills.append((places[1], places[0], float(np.float32(fill))))
        codes = [np.where(vectors[:, at].any(1), vectors[:, at].argmax(1), len(at)) for at in map(list, groups)]
        return cls(
            numbers=tuple(numbers),
            groups=tuple(groups),
            fills=tuple(fills),
            values=np.column_stack([vectors[:, numbers].astype(np.float64), *codes]),
        )

    def synthetic(self, labels: NDArray[np.int64], label: int, count: int, seed: int) -> NDArray[np.float64]:
        """New rows of a class that has so many; (m, numbers + groups)."""
        from imblearn.over_sampling import SMOTE, SMOTEN, SMOTENC

        options: dict[str, Any] = {
            "sampling_strategy": {label: int(np.bincount(labels).max())},
            "k_neighbors": min(NEIGHBOURS, count - 1),
            "random_state": int(np.random.SeedSequence((seed, label)).generate_state(1)[0]),
        }
        if not self.groups:
            sampler = SMOTE(**options)
        elif not self.numbers:
            sampler = SMOTEN(**options)
        else:
            codes = list(range(len(self.numbers), self.values.shape[1]))
            sampler = SMOTENC(categorical_features=codes, **options)
        found: NDArray[np.float64] = sampler.fit_resample(self.values, labels)[0][len(labels) :]
        return found

    def unpacked(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """The vectors (m, features) of packed rows."""
        numbers = len(self.numbers)
        vectors = np.zeros((len(values), numbers + sum(map(len, self.groups))), dtype=np.float32)
        vectors[:, list(self.numbers)] = values[:, :numbers]
        for codes, places in zip(values[:, numbers:].T, self.groups, strict=True):
            for code, at in enumerate(places):
                vectors[codes == code, at] = 1.0
        for flag, number, fill in self.fills:
            vectors[vectors[:, flag] == 1.0, number] = fill
        return vectors
