"""What every opened engine can do, whichever library runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import UsageError

Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of an engine."""

    name: str
    shape: tuple[int | str, ...]
    """A string is a dynamic dimension's name."""
    dtype: str
    """NumPy's name: float32, int64 …"""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the nodes of an engine's optimised graph really run."""

    provider: str
    """The execution provider or device that was asked for."""
    nodes: Mapping[str, int]
    """Provider or device → number of nodes of the optimised graph."""
    kinds: Mapping[str, int] = field(default_factory=dict)
    """Operator of the optimised graph, with its precision where the engine tells it → number of nodes."""

    @property
    def share(self) -> float:
        """Share of the nodes that run on the provider that was asked for, 0 to 1."""
        total = sum(self.nodes.values())
        return self.nodes.get(self.provider, 0) / total if total else 1.0


class Runner(Protocol):
    """An opened engine: a context manager that maps named arrays to named arrays."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """In the engine's order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """In the engine's order."""

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        """One synchronous inference.

        Args:
            feeds: Input name → array of the input's dtype and shape; the leading dimension is the batch.

        Returns:
            Output name → array, which the caller owns.
        """

    def placement(self) -> Placement:
        """Where the nodes run; may run the engine once to find out."""

    def __enter__(self) -> Runner:
        """Itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back the engine's memory."""


def run_images(runner: Runner, images: NDArray[np.float32], *, smallest: int = 1) -> NDArray[np.generic]:
    """The first output for some images, however few an engine's smallest batch lets one feed at once.

    Args:
        runner: With one input, whose leading dimension is the batch.
        images: Shape (n, 3, height, width).
        smallest: The smallest batch that the engine accepts, where its input's shape does not tell.

    Returns:
        Shape (n, ...). A batch that is too small is filled up with copies of its last image, and cut again.
    """
    fixed = runner.inputs[0].shape[0]
    wanted = fixed if isinstance(fixed, int) else smallest
    count = len(images)
    if count < wanted:
        images = np.concatenate([images, np.repeat(images[-1:], wanted - count, axis=0)])
    outputs = runner.run({runner.inputs[0].name: images})
    return np.asarray(outputs[runner.outputs[0].name])[:count]


def check_feeds(feeds: Tensors, inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse arrays that do not fit the inputs, before a library answers with a message of its own.

    Raises:
        UsageError: A name is missing or unknown, a dtype or a fixed dimension differs.
    """
    names = {spec.name for spec in inputs}
    if set(feeds) != names:
        raise UsageError(f"the engine's inputs are {sorted(names)}; given were {sorted(feeds)}")
    for spec in inputs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype.name != spec.dtype:
            raise UsageError(
                f"input '{spec.name}' is {spec.dtype}{list(spec.shape)}; "
                f"given was {array.dtype.name}{list(array.shape)}"
            )
