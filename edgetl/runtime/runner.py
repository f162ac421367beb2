"""What every opened engine can do, whichever library runs it."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import UsageError

Tensors = Mapping[str, NDArray[np.generic]]
UNKNOWN = "unknown"
"""The precision of a node that does not tell what it computes in."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of an engine."""

    name: str
    shape: tuple[int | str, ...]
    """A string is a dynamic dimension's name."""
    dtype: str
    """NumPy's name: float32, int64 …"""


@dataclass(frozen=True, kw_only=True)
class EngineNode:
    """A node of the graph that an engine really runs, after its own optimisations."""

    name: str
    """The engine's name of it."""
    kind: str
    """Operator of the optimised graph, as the engine calls it: QLinearConv, FullyConnected …"""
    precision: str
    """What it computes in: int8 (signed or not), fp16, bf16, fp32; :data:`UNKNOWN`; else the engine's own word."""
    multiply_adds: int = 0
    """Of one inference, at batch 1 where the engine lets one choose it; 0 for what is neither a convolution nor a
    matrix product."""
    provider: str = ""
    """The execution provider or device that runs it."""
    inputs: tuple[str, ...] = ()
    """Tensors that it reads, without constants; empty where only constants are read or the engine does not tell."""
    outputs: tuple[str, ...] = ()
    """Tensors that it writes; empty where the engine does not tell."""
    output_precision: str = ""
    """Of its first output, in the words of ``precision``; empty where the engine does not tell."""
    origins: tuple[str, ...] = ()
    """Nodes of the graph that was compiled which were fused into this one, where the engine tells."""
    operators: tuple[str, ...] = ()
    """Operators of those nodes, where ``kind`` does not say them: HSwish of an Eltwise; in the engine's words."""
    weight_bytes: int = 0
    """Of the constants that it reads; 0 where the engine does not tell."""
    activation_bytes: int = 0
    """That it reads and writes otherwise; 0 of a node that only gives a tensor another shape, or that does not tell."""
    time_ms: float | None = None
    """What it takes, median over the inferences of a profile; None: it was not timed."""


def int8_share(multiply_adds: Mapping[str, int]) -> float | None:
    """Share of the multiply-adds that run in 8-bit integers.

    Args:
        multiply_adds: Precision → number.

    Returns:
        0 to 1; None where there are none, or the engine does not tell of all of them.
    """
    if multiply_adds.get(UNKNOWN):
        return None
    total = sum(multiply_adds.values())
    return multiply_adds.get("int8", 0) / total if total else None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the nodes of an engine's optimised graph really run."""

    provider: str
    """The execution provider or device that was asked for."""
    nodes: Mapping[str, int]
    """Provider or device → number of nodes of the optimised graph."""
    kinds: Mapping[str, int] = field(default_factory=dict)
    """Operator of the optimised graph, with its precision where the engine tells it → number of nodes."""
    multiply_adds: Mapping[str, int] = field(default_factory=dict)
    """Precision → multiply-adds of one inference that run in it; empty where the engine does not tell."""

    @classmethod
    def of(cls, provider: str, nodes: Iterable[EngineNode], *, kinds: Mapping[str, int] | None = None) -> Placement:
        """The counts of an engine's nodes.

        Args:
            provider: The one that was asked for.
            nodes: Of the optimised graph.
            kinds: Counted already, where they say more than the operator; None: count the operators.
        """
        nodes = tuple(nodes)
        multiply_adds: Counter[str] = Counter()
        for node in nodes:
            if node.multiply_adds:
                multiply_adds[node.precision] += node.multiply_adds
        return cls(
            provider=provider,
            nodes=dict(Counter(node.provider for node in nodes)),
            kinds=dict(Counter(node.kind for node in nodes) if kinds is None else kinds),
            multiply_adds=dict(multiply_adds),
        )

    @property
    def share(self) -> float:
        """Share of the nodes that run on the provider that was asked for, 0 to 1."""
        total = sum(self.nodes.values())
        return self.nodes.get(self.provider, 0) / total if total else 1.0

    @property
    def int8_share(self) -> float | None:
        """Share of the multiply-adds that really run in 8-bit integers, 0 to 1; None where the engine does not tell."""
        return int8_share(self.multiply_adds)


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

        Raises:
            UsageError: The feeds do not fit the inputs.
            ModelError: The engine failed on them.
        """

    def placement(self) -> Placement:
        """Where the nodes run; may run the engine once to find out."""

    def __enter__(self) -> Runner:
        """Itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back the engine's memory."""


class OpenRunner(Protocol):
    """Opens an ONNX file."""

    def __call__(self, model: Path, /, *, frugal: bool = False) -> Runner:
        """Open it.

        Args:
            model: The file.
            frugal: Whether its engine is to keep no memory for activations between inferences, so that it never has
                more than one of them needs.
        """


@runtime_checkable
class Clocked(Protocol):
    """A runner whose engine has a clock of its own."""

    @property
    def latency_ms(self) -> float:
        """What it says of the last :meth:`Runner.run`: without the call from Python; NaN before the first."""


@runtime_checkable
class CopiesApart(Protocol):
    """A runner whose engine has a memory of its own, and that can tell the copies to it and from it apart."""

    def run_apart(self, feeds: Tensors) -> tuple[dict[str, NDArray[np.generic]], dict[str, int]]:
        """One inference as :meth:`Runner.run` does it.

        Returns:
            The outputs, and "host-to-device" and "device-to-host" → nanoseconds of it.
        """


@runtime_checkable
class Profiled(Protocol):
    """A runner whose engine can time its nodes one by one."""

    def profile(self, feeds: Tensors, *, runs: int) -> tuple[EngineNode, ...]:
        """The nodes of the optimised graph, as they run on some inputs.

        Timing every node makes an inference slower: the times tell nodes apart and do not add up to a latency.

        Args:
            feeds: As of :meth:`Runner.run`.
            runs: Inferences whose times count.

        Returns:
            In the order of their execution, with multiply-adds and bytes at these inputs' shapes, and times.

        Raises:
            UsageError: The feeds do not fit the inputs.
            ModelError: The engine failed on them.
        """


Run = Callable[[Tensors], Mapping[str, NDArray[np.generic]]]
"""One inference."""


def run_batch(
    runner: Runner, images: NDArray[np.float32], *, smallest: int = 1, run: Run | None = None
) -> NDArray[np.generic]:
    """The first output for some images, however few an engine's smallest batch lets one feed at once.

    Args:
        runner: With one input, whose leading dimension is the batch.
        images: Shape (n, 3, height, width).
        smallest: The smallest batch that the engine accepts, where its input's shape does not tell.
        run: What runs the engine; None: ``runner.run``.

    Returns:
        Shape (n, ...). A batch that is too small is filled up with copies of its last image, and cut again.
    """
    fixed = runner.inputs[0].shape[0]
    wanted = fixed if isinstance(fixed, int) else smallest
    count = len(images)
    if count < wanted:
        images = np.concatenate([images, np.repeat(images[-1:], wanted - count, axis=0)])
    outputs = (run or runner.run)({runner.inputs[0].name: images})
    return np.asarray(outputs[runner.outputs[0].name])[:count]


def check_feeds(feeds: Tensors, inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse arrays that do not fit the inputs, before a library answers with a message of its own.

    Raises:
        UsageError: A name is missing or unknown, a dtype or a fixed dimension differs.
    """
    if len(feeds) != len(inputs) or any(spec.name not in feeds for spec in inputs):
        raise UsageError(f"the engine's inputs are {sorted(spec.name for spec in inputs)}; given were {sorted(feeds)}")
    for spec in inputs:
        array = feeds[spec.name]
        if array.dtype != _dtype(spec.dtype) or not (array.shape == spec.shape or _fits(array.shape, spec.shape)):
            raise UsageError(
                f"input '{spec.name}' is {spec.dtype}{list(spec.shape)}; "
                f"given was {array.dtype.name}{list(array.shape)}"
            )


class FeedsCheck:
    """:func:`check_feeds` of an engine's inputs, but for the arrays that the inference before had, too.

    Right after an inference, which swept the caches, a check takes several times what it takes by itself: 6 µs of a
    call of 0.26 ms. Weak references remember what was checked: no array lives longer for it.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...]) -> None:
        """Of an engine with these inputs."""
        self._inputs = inputs
        self._known: dict[str, _Known] = {}

    def __call__(self, feeds: Tensors) -> None:
        """Check them; see :func:`check_feeds`."""
        known = self._known  # another thread may have others in a moment
        if known and len(feeds) == len(known):
            for name, (checked, shape, dtype) in known.items():
                array = feeds.get(name)
                if array is None or checked() is not array or array.shape != shape or array.dtype is not dtype:
                    break
            else:
                return
        self._known = {}
        check_feeds(feeds, self._inputs)
        with contextlib.suppress(TypeError):  # a scalar of NumPy cannot be referred to weakly
            self._known = {name: (weakref.ref(array), array.shape, array.dtype) for name, array in feeds.items()}


_Known = tuple["weakref.ref[NDArray[np.generic]]", tuple[int, ...], np.dtype[np.generic]]


def _fits(given: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return len(given) == len(wanted) and all(
        isinstance(want, str) or want == got for want, got in zip(wanted, given, strict=True)
    )


@cache
def _dtype(name: str) -> np.dtype[np.generic] | None:
    """NumPy's type of that name, kept: this is asked at every inference. None where NumPy has none."""
    try:
        return np.dtype(name)
    except TypeError:
        return None
