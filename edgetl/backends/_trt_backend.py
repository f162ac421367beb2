"""What the backends of TensorRT and of TensorRT-RTX have in common: engines are opened and read in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from edgetl.backends._trt_build import engine_to_open, installed_version
from edgetl.runtime.runner import EngineNode, Runner
from edgetl.runtime.tensorrt import Library, TensorRTRunner


class TrtBackend:
    """All of a backend but what is built, and for whom.

    Args:
        workspace_mib: Limit of a layer's scratch memory at build and run time, in MiB; None: all of the GPU's.
    """

    name: str
    extra: str
    library: ClassVar[Library]
    """As :mod:`edgetl.runtime.tensorrt` calls it."""
    module: ClassVar[str]
    """Its import name."""
    distributions: ClassVar[tuple[str, ...]]
    """Names under which its wheels or the system's package may be registered, likeliest first."""

    def __init__(self, *, workspace_mib: int | None = None) -> None:
        self._workspace_mib = workspace_mib

    def version(self) -> str | None:
        """The installed library's version, without importing it; None where it is not installed."""
        return installed_version(self.module, self.distributions)

    def open(self, folder: Path, *, threads: int | None = None) -> Runner:
        """Open an engine on the GPU that its record names; one of TensorRT-RTX makes its kernels at the first run.

        Args:
            folder: With ``engine.json``.
            threads: Not used: a GPU engine runs on no threads of the process.

        Returns:
            The opened engine.

        Raises:
            MissingExtraError: The library or cuda-python is not installed.
            ProviderError: No such GPU, another version of the library, or the engine was never built.
            BundleError: There is no record of this backend in the folder.
        """
        del threads
        return self._opened(folder)

    def nodes(self, folder: Path, *, threads: int | None = None) -> tuple[EngineNode, ...]:
        """The engine's layers after fusion, from its inspector; empty where it was built without details.

        Args:
            folder: With ``engine.json``.
            threads: Not used.

        Raises:
            MissingExtraError: The library or cuda-python is not installed.
            ProviderError: No such GPU, another version of the library, or the engine was never built.
            BundleError: There is no record of this backend in the folder.
        """
        del threads
        with self._opened(folder) as runner:
            return runner.nodes()

    def _opened(self, folder: Path) -> TensorRTRunner:
        engine, record = engine_to_open(folder, self.name)
        told = {name: record.options[name] for name in ("dla_core", "multiply_adds") if name in record.options}
        return TensorRTRunner(engine, library=self.library, provider=record.provider, **told)
