"""Bundles on the device: check them, open an engine, predict.

with open_bundle(Path("digits-1.0.0")).open(target="x86-64-cpu") as model:
    print(model.predict([Path("seven.png")]))

Opening an engine replays the bundle's golden inputs: see :mod:`edgetl.runtime.replay`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BundleError, ModelError, TargetError, UnknownNameError, UsageError
from edgetl.runtime import seal
from edgetl.runtime.decision import Prediction, Similarity, cosines
from edgetl.runtime.decision import from_json as read_decision
from edgetl.runtime.golden import Golden, read_golden
from edgetl.runtime.manifest import refuse_malformed
from edgetl.runtime.opening import open_engine
from edgetl.runtime.preprocessing import Array
from edgetl.runtime.preprocessing import from_json as read_preprocessing
from edgetl.runtime.replay import replay_contract, replay_engine
from edgetl.runtime.runner import CopiesApart, Runner, Tensors, run_batch


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """An engine in a bundle, from its manifest."""

    target: str
    precision: str
    folder: str
    backend: str
    provider: str
    status: str
    """ready, built or build-on-device."""
    latency: Mapping[str, Any]
    """Percentiles where it was built; empty where it did not run there."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What a model that embeds says of two inputs."""

    cosine: float
    """Of their embeddings, -1 to 1."""
    same: bool
    """Whether it takes them for one identity."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the check of a bundle found."""

    files: int
    signed_by: str | None
    """Fingerprint of the key whose signature fits; None for an unsigned bundle."""


class Bundle:
    """A bundle whose files were checked against its manifest.

    Args:
        folder: Of the bundle.
        manifest: Its content.
        verified: What the check found.
        replay: Whether :meth:`open` replays the golden inputs.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], verified: Verified, *, replay: bool = True) -> None:
        self._to_replay, self._contract_replayed = replay, False
        self.folder = folder
        self.manifest = manifest
        self.verified = verified
        self.labels: tuple[str, ...] = tuple(manifest["labels"])
        self.preprocessing = read_preprocessing(manifest["preprocessing"])
        self.decision = read_decision(manifest["decision"])
        fields = EngineEntry.__dataclass_fields__
        self.engines = tuple(
            EngineEntry(**{name: value for name, value in engine.items() if name in fields})
            for engine in manifest["engines"]
        )

    def choose(self, target: str | None = None, precision: str | None = None) -> EngineEntry:
        """The engine for a target, or the fastest that ran where the bundle was built.

        Raises:
            UnknownNameError: No engine is for that target and precision.
            TargetError: There is one, and it must first be built on its device.
            BundleError: The engine's folder is not among the files that were checked.
        """
        fitting = [
            engine
            for engine in self.engines
            if (target is None or engine.target == target) and (precision is None or engine.precision == precision)
        ]
        if not fitting:
            there = ", ".join(f"{engine.target} {engine.precision}" for engine in self.engines) or "none"
            wanted = " ".join(name for name in (target, precision) if name)
            raise UnknownNameError(
                f"the bundle has no engine for {wanted or 'any target'}; it has {there}",
                hint="one of these, by its target's name; `edgetl build` makes others",
            )
        usable = [engine for engine in fitting if engine.status == "ready"]
        usable = usable or [engine for engine in fitting if engine.status == "built"]
        if not usable:
            raise TargetError(f"the engine for {fitting[0].target} is built on its device: {fitting[0].note}")
        if target is None:  # the fastest of those whose library is on this machine
            usable = [engine for engine in usable if _installed(engine.backend)] or usable
        engine = min(usable, key=lambda engine: float(engine.latency.get("p50_ms", float("inf"))))
        if f"{engine.folder}/engine.json" not in self.manifest["files"]:  # only what was hashed is opened
            raise BundleError(f"{self.folder}: the manifest lists no file {engine.folder}/engine.json")
        return engine

    def open(self, *, target: str | None = None, precision: str | None = None, threads: int | None = None) -> Predictor:
        """Open an engine (see :meth:`choose`), and replay the golden inputs on it.

        The replay costs the preprocessing of some raw inputs, once per bundle, and an inference of each; nothing of it
        is kept.

        Raises:
            BundleError: Preprocessing or labels are not those that the bundle was built with, or the engine's file
                cannot be opened.
            MissingExtraError: What preprocesses is not installed: ``replay=False`` does without.
            ParityError: The engine answers golden inputs in another way than where the bundle was built.
        """
        engine = self.choose(target, precision)
        if self._to_replay and not self._contract_replayed:
            replay_contract(self)
            self._contract_replayed = True
        try:
            runner = open_engine(self.folder / engine.folder, of=(engine.backend, engine.precision), threads=threads)
        except ModelError as error:
            raise BundleError(
                f"{self.folder}: the engine for {engine.target} {engine.precision} cannot be opened: {error.message}",
                hint="edgetl compile BUNDLE on this device, or the library's version that the manifest names",
            ) from error
        predictor = Predictor(self, engine, runner)
        if self._to_replay:
            with ExitStack() as failing:
                failing.push(predictor)
                replay_engine(self, predictor)
                failing.pop_all()
        return predictor

    def golden(self) -> Golden:
        """Raw inputs with what the reference made of them.

        Raises:
            BundleError: There are none, or they are not what a build writes.
        """
        return read_golden(self.folder, self.manifest["files"])


class Predictor:
    """An opened engine with its preprocessing, decision and labels; a context manager."""

    def __init__(self, bundle: Bundle, engine: EngineEntry, runner: Runner) -> None:
        self.engine = engine
        self._bundle = bundle
        self._runner = runner
        self._smallest = int(bundle.manifest["inputs"][0].get("batch", [1])[0])

    @property
    def largest_batch(self) -> int:
        """Samples that the engine takes at once."""
        return int(self._bundle.manifest["inputs"][0].get("batch", [1])[-1])

    def outputs(self, inputs: Array) -> NDArray[np.float32]:
        """Run the engine.

        Args:
            inputs: A batch (n, ...), from the bundle's preprocessing.

        Returns:
            float32 (n, classes) logits, or (n, d) embeddings.
        """
        return run_batch(self._runner, inputs, smallest=self._smallest).astype(np.float32, copy=False)

    def predict(self, sources: Sequence[Path | bytes | str]) -> list[Prediction]:
        """Answer for raw inputs: files, bytes of files, texts, or rows as the text of JSON objects.

        Raises:
            UsageError: The model embeds its inputs: see :meth:`compare`.
            DataError: An input cannot be read.
        """
        decision = self._bundle.decision
        if isinstance(decision, Similarity):
            raise UsageError("this model compares inputs, two at a time", hint="edgetl run BUNDLE FIRST SECOND …")
        found = []
        for source in sources:  # one at a time: as on a device, and as small as its memory
            found += decision.answers(self._one(source), self._bundle.labels)
        return found

    def compare(self, first: Path | bytes | str, others: Sequence[Path | bytes | str]) -> list[Likeness]:
        """Compare one raw input with others, where the model embeds.

        Raises:
            UsageError: The model names classes: see :meth:`predict`.
            DataError: An input cannot be read.
        """
        decision = self._bundle.decision
        if not isinstance(decision, Similarity):
            raise UsageError("this model names classes, and compares nothing", hint="edgetl run BUNDLE INPUT")
        one = self._one(first)
        found = []
        for other in others:
            two = self._one(other)
            found.append(Likeness(cosine=float(cosines(one, two)[0]), same=bool(decision.same(one, two)[0])))
        return found

    def answer(self, source: Path | bytes | str) -> list[Prediction] | NDArray[np.float32]:
        """What :meth:`predict` says of one raw input; where the model embeds, the embedding (1, d).

        Raises:
            DataError: The input cannot be read.
        """
        outputs, decision = self._one(source), self._bundle.decision
        return outputs if isinstance(decision, Similarity) else decision.answers(outputs, self._bundle.labels)

    def answer_in_stages(
        self, source: Path | bytes | str, now: Callable[[], int] = time.perf_counter_ns
    ) -> tuple[list[Prediction] | NDArray[np.float32], dict[str, int]]:
        """The same answer, with the time of every stage on the way.

        Args:
            source: A raw input.
            now: The clock, in nanoseconds.

        Returns:
            The answer, and stage → nanoseconds in their order: decode, preprocess, host-to-device, compute,
            device-to-host, postprocess; without those that there are not. "compute" holds all of the engine's run that
            is no copy: checks and launches, too.
        """
        contract, decision, runner = self._bundle.preprocessing, self._bundle.decision, self._runner
        copies: dict[str, int] = {}
        apart = runner if isinstance(runner, CopiesApart) else None

        def run(feeds: Tensors) -> Mapping[str, NDArray[np.generic]]:
            if apart is None:
                return runner.run(feeds)
            found, told = apart.run_apart(feeds)
            copies.update(told)
            return found

        began = now()
        decoded = contract.decode(source)
        read = now()
        inputs = contract.together([contract.prepare(decoded)])
        prepared = now()
        outputs = run_batch(runner, inputs, smallest=self._smallest, run=run).astype(np.float32, copy=False)
        ran = now()
        stages = {"decode": read - began, "preprocess": prepared - read}
        if "host-to-device" in copies:
            stages["host-to-device"] = copies["host-to-device"]
        stages["compute"] = ran - prepared - sum(copies.values())
        if "device-to-host" in copies:
            stages["device-to-host"] = copies["device-to-host"]
        if isinstance(decision, Similarity):
            return outputs, stages
        answers = decision.answers(outputs, self._bundle.labels)
        stages["postprocess"] = now() - ran
        return answers, stages

    def _one(self, source: Path | bytes | str) -> NDArray[np.float32]:
        contract = self._bundle.preprocessing
        return self.outputs(contract.together([contract(source)]))

    def __enter__(self) -> Predictor:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)


def open_bundle(folder: Path, *, key: Path | None = None, replay: bool = True) -> Bundle:
    """Check a bundle and read it.

    Every file is hashed before anything in the bundle is opened: engines are executable code.

    Args:
        folder: Of the bundle.
        key: An Ed25519 public key (PEM) that must have signed it. Without one, a signature is checked against the key
            in the bundle itself, which shows that it is whole, not who made it.
        replay: Whether :meth:`Bundle.open` replays the golden inputs; a device that opens the same bundle again and
            again may do without.

    Raises:
        BundleError: Not a bundle, a file is missing, added or changed, or the signature does not fit.
    """
    manifest = seal.read_manifest(folder)
    try:
        seal.check_files(folder, manifest)
        signed_by = seal.check_signature(folder, manifest, key)
        refuse_malformed(manifest, str(folder / seal.MANIFEST))
        verified = Verified(files=len(manifest["files"]), signed_by=signed_by)
        return Bundle(folder, manifest, verified, replay=replay)
    except (KeyError, TypeError, AttributeError, ModelError) as error:
        raise BundleError(f"{folder / seal.MANIFEST} is not a manifest of schema 1: {error!r}") from None


def _installed(backend: str) -> bool:
    """Whether the library that opens an engine is there, without importing it."""
    return find_spec({"tensorrt_rtx": "tensorrt_rtx_bindings"}.get(backend, backend)) is not None
