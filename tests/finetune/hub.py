"""A hub on this machine: what huggingface_hub and torch.hub ask of the real one, answered out of a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The folder's ``owner/name`` are repositories; any other file in it has an address, too."""

    folder: Path
    url: str
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    break_off: int = 0
    """So many answers with a file end in the middle of it."""

    def repository(self, name: str) -> Path:
        """A new repository's folder."""
        place = self.folder / name
        place.mkdir(parents=True)
        return place


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Answer on a free port until the context ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(folder, f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    @property
    def hub(self) -> Hub:
        found: Hub = self.server.hub  # type: ignore[attr-defined]
        return found

    def _answer(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._described("/".join(parts[2:4]))
        elif len(parts) >= 5 and parts[2] == "resolve":
            if not (self.hub.folder / "/".join(parts[:2])).is_dir():
                self._missing("RepoNotFound")
            elif parts[3] not in ("main", COMMIT):
                self._missing("RevisionNotFound")
            else:
                self._file(self.hub.folder.joinpath(*parts[:2], *parts[4:]))
        else:
            self._file(self.hub.folder.joinpath(*parts))

    def _described(self, name: str) -> None:
        folder = self.hub.folder / name
        if not folder.is_dir():
            return self._missing("RepoNotFound")
        files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
        content = json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode()
        return self._send(200, {"Content-Type": "application/json"}, content)

    def _missing(self, why: str) -> None:
        self._send(404, {"X-Error-Code": why, "X-Error-Message": why}, b"")

    def _file(self, path: Path) -> None:
        if not path.is_file():
            return self._missing("EntryNotFound")
        content = path.read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and asked.endswith("-"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._send(206, headers, content[start:])
        return self._send(200, headers, content)

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if content and status in (200, 206) and "ETag" in headers and self.hub.break_off:
            self.hub.break_off -= 1
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)
