"""Memory: what a training step frees is kept for the next one, on a CPU; and what is said where a GPU's runs out."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from edgetl.errors import TrainingError

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3

_KEPT = (1 << 31) - 1
"""Bytes; mallopt takes an int. A tensor of more comes from the system each time, as before."""
_SETTLED_MMAP, _SETTLED_TRIM = 32 << 20, 64 << 20
"""What glibc's own thresholds grow to in a process that has freed a large block."""


@contextmanager
def kept_between_steps() -> Iterator[bool]:
    """Let the allocator keep freed memory for as long as this is open; then the system gets back all of it.

    A step of training frees all its activations, and glibc gives large blocks back to the system at once, which then
    fills pages of the next step with zeros, one by one. It holds for all threads of the process. Yields whether memory
    is kept: not by another allocator than glibc's, nor by glibc before 2.35, which takes no threshold above 32 MiB.
    """
    library = ctypes.CDLL(None)
    glibc = all(hasattr(library, name) for name in ("mallopt", "malloc_trim", "gnu_get_libc_version"))
    if not glibc or not _set(library, _MMAP_THRESHOLD, _KEPT):
        yield False
        return
    _set(library, _TRIM_THRESHOLD, _KEPT)
    try:
        yield True
    finally:
        _set(library, _MMAP_THRESHOLD, _SETTLED_MMAP)
        _set(library, _TRIM_THRESHOLD, _SETTLED_TRIM)
        library.malloc_trim(ctypes.c_size_t(0))


@contextmanager
def enough_on_gpu(what: str, hint: str) -> Iterator[None]:
    """Say what a GPU's memory did not hold, where it ran out while this was open.

    Args:
        what: "8 samples at a time".
        hint: What to change.

    Raises:
        TrainingError: It ran out.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(f"the GPU's memory does not hold {what}", hint=hint) from None


def _set(library: ctypes.CDLL, parameter: int, value: int) -> bool:
    """Whether the allocator took it; one that it refuses changes nothing."""
    return bool(library.mallopt(ctypes.c_int(parameter), ctypes.c_int(value)))
