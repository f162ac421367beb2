"""What a training step frees is kept for the next one, on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

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
    fills pages of the next step with zeros, one by one. Its threads are all of the process's. Yields whether there is a
    glibc; other allocators stay as they are.
    """
    library = ctypes.CDLL(None)
    if not all(hasattr(library, name) for name in ("mallopt", "malloc_trim", "gnu_get_libc_version")):
        yield False
        return
    _set(library, mmap=_KEPT, trim=_KEPT)
    try:
        yield True
    finally:
        _set(library, mmap=_SETTLED_MMAP, trim=_SETTLED_TRIM)
        library.malloc_trim(ctypes.c_size_t(0))


def _set(library: ctypes.CDLL, *, mmap: int, trim: int) -> None:
    library.mallopt(ctypes.c_int(_MMAP_THRESHOLD), ctypes.c_int(mmap))
    library.mallopt(ctypes.c_int(_TRIM_THRESHOLD), ctypes.c_int(trim))
