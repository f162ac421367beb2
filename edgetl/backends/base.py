"""What a backend is: something that compiles an ONNX graph for a target, and opens what it compiled.

A folder with a compiled engine holds ``engine.json`` (see :class:`EngineRecord`) and the files that it names.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from edgetl.errors import BundleError
from edgetl.runtime.runner import EngineNode, Runner
from edgetl.specs import BatchRange, Precision, Target

Status = Literal["ready", "built", "build-on-device"]


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """What stands in an engine's folder, and how to open it: the content of ``engine.json``."""

    backend: str
    provider: str
    precision: Precision
    status: Status
    """ready: runs here; built: complete, but this machine cannot run it; build-on-device: only its sources are here."""
    files: tuple[str, ...]
    """Names in the folder, the one to open first."""
    versions: dict[str, str] = field(default_factory=dict)
    """Library → version that compiled it."""
    graph: str = ""
    """The ONNX graph that it was compiled from, a name in the folder, where the engine does not hold it; it is not
    needed to run the engine, but to look into it."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the library was told: plain JSON values."""
    note: str = ""
    """Why the status is not "ready", and what to do on the device; empty where it is."""

    @classmethod
    def read(cls, folder: Path) -> EngineRecord:
        """The record in an engine's folder.

        Raises:
            BundleError: There is none, or it is not one of this version.
        """
        try:
            values = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
            if values.pop("schema") != 1:
                raise ValueError("it has another schema")
            if not isinstance(values.get("graph", ""), str):
                raise ValueError(f"its graph is {values['graph']!r}")
            return cls(**{**values, "files": tuple(values["files"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{folder} holds no engine that this version can read: {error}") from None

    def write(self, folder: Path) -> None:
        """Write ``engine.json``."""
        text = json.dumps({"schema": 1, **asdict(self)}, indent=2, sort_keys=True)
        (folder / "engine.json").write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """One engine to make."""

    model: Path
    """ONNX graph that already has the precision in it (float32, float16, or Q/DQ); no external data."""
    folder: Path
    """An existing empty folder for the result."""
    target: Target
    precision: Precision
    batch: BatchRange
    longest: int | None = None
    """Largest size of dynamic dimensions besides the batch; None: there are none."""


class Backend(Protocol):
    """A library that makes and runs engines."""

    name: str
    """As in a target's ``backend``."""
    extra: str
    """The extra of edgetl that installs it."""

    def version(self) -> str | None:
        """The installed library's version, without importing it; None where it is not installed."""

    def why_not_here(self, target: Target, precision: Precision) -> str | None:
        """Why this machine cannot run the target's engines in that precision, in a clause; None where it can."""

    def compile(self, request: CompileRequest) -> EngineRecord:
        """Make the engine's files in ``request.folder``, with ``engine.json``.

        Raises:
            MissingExtraError: The library is needed and not installed.
            TargetError: The library refuses this graph for this target.
        """

    def open(self, folder: Path, *, threads: int | None = None) -> Runner:
        """Open what :meth:`compile` left in a folder.

        Args:
            folder: With ``engine.json``.
            threads: For the engine; None: as many as the process may use.

        Raises:
            MissingExtraError: The library is not installed.
            ProviderError: The recorded provider or device is not on this machine. Never a fallback.
        """

    def nodes(self, folder: Path, *, threads: int | None = None) -> tuple[EngineNode, ...]:
        """The nodes of the graph that the engine really runs, after its own optimisations.

        Args:
            folder: With ``engine.json``.
            threads: As for :meth:`open`.

        Returns:
            In the order of their execution; empty where the library has no such graph, or does not tell.

        Raises:
            MissingExtraError: The library is not installed.
            ProviderError: The recorded provider or device is not on this machine.
        """
