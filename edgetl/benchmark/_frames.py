"""How the two ends of a timing process talk: frames of JSON, each with raw bytes behind it where there are some."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

_AT_ONCE = 1 << 20
"""Bytes that are asked for; a pipe gives fewer."""
_HEAD = struct.Struct(">QQ")
"""Bytes of JSON, and bytes behind it."""


def write_frame(stream: BinaryIO, document: dict[str, Any], payload: bytes = b"") -> None:
    """Send one frame.

    Args:
        stream: The other end reads from it.
        document: Plain JSON values.
        payload: Raw bytes behind it.

    Raises:
        BrokenPipeError: Nobody reads any more.
    """
    text = json.dumps(document).encode()
    stream.write(_HEAD.pack(len(text), len(payload)) + text + payload)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Wait for one frame.

    Returns:
        The document and the bytes behind it; None where the other end is gone, even in the middle of a frame.
    """
    head = _exactly(stream, _HEAD.size)
    if len(head) < _HEAD.size:
        return None
    sizes = _HEAD.unpack(head)
    text, payload = (_exactly(stream, size) for size in sizes)
    if (len(text), len(payload)) != sizes:
        return None
    found: dict[str, Any] = json.loads(text)
    return found, payload


def _exactly(stream: BinaryIO, size: int) -> bytes:
    """So many bytes, also of a stream without a buffer; fewer where it ends."""
    parts = bytearray()
    while len(parts) < size and (part := stream.read(min(size - len(parts), _AT_ONCE))):
        parts += part
    return bytes(parts)
