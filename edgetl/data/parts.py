"""One image inside a larger file: a member of a shard, or a value of an Arrow file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgetl.errors import ImageError


@dataclass(frozen=True, order=True, slots=True)
class Part:
    """Where the bytes of an image stand in a file that holds many. Nothing is open between two reads."""

    file: Path
    """Absolute."""
    offset: int
    """Of the first byte."""
    size: int
    """In bytes."""
    name: str
    """Inside the file, for messages; its suffix is the image's."""

    @property
    def suffix(self) -> str:
        """Of the name, with its dot; "" where it has none."""
        return PurePosixPath(self.name).suffix

    def read_bytes(self) -> bytes:
        """The encoded image.

        Raises:
            ImageError: The file is gone, cannot be read, or ends too early: it is not the file that was listed.
        """
        try:
            descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = self._read(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise ImageError(f"{self}: there is no such file any more") from None
        except OSError as error:
            raise ImageError(f"{self}: cannot be read: {error.strerror or error}") from None
        if len(content) < self.size:
            raise ImageError(
                f"{self}: the file ends too early: {len(content)} of {self.size} bytes are there",
                hint="the file was cut or replaced after it was listed; copy it again, and start anew",
            )
        return content

    def _read(self, descriptor: int) -> bytes:
        content = os.pread(descriptor, self.size, self.offset)
        while len(content) < self.size:  # one call may give less than it was asked for
            more = os.pread(descriptor, self.size - len(content), self.offset + len(content))
            if not more:
                break
            content += more
        return content

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"
