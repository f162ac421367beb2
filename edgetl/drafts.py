"""Names of what a process writes before it is whole, by which a later one knows what nobody writes any more."""

from __future__ import annotations

import os
import platform
import re
import time
import uuid
import zlib
from pathlib import Path

_NAME = re.compile("([0-9]+)-([0-9a-f]{8})-[0-9a-f]{32}")
_OTHERS_S = 30 * 86400.0
"""So old is what another machine left for good: whether a process still runs there nobody can tell here."""


def draft_name() -> str:
    """A new name, with the process and the machine that it belongs to."""
    return f"{os.getpid()}-{_machine()}-{uuid.uuid4().hex}"


def is_abandoned(draft: Path, prefix: str = "") -> bool:
    """Whether a file or folder is a draft of which nobody will make anything.

    Args:
        draft: What is there; anything without such a name is somebody else's.
        prefix: What stands before :func:`draft_name` in its name.
    """
    found = _NAME.fullmatch(draft.name.removeprefix(prefix)) if draft.name.startswith(prefix) else None
    if found is None:
        return False
    if found[2] == _machine():
        return not _is_alive(int(found[1]))
    try:
        return time.time() - draft.lstat().st_mtime > _OTHERS_S
    except OSError:  # it is gone
        return False


def _machine() -> str:
    """This machine by its name: on a network drive there are drafts of several, whose processes have numbers alike."""
    return f"{zlib.crc32(platform.node().encode(errors='replace')):08x}"


def _is_alive(process: int) -> bool:
    """Whether a process of this machine, given by its number, still runs."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
