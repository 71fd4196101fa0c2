"""A server on loopback that speaks as much of the Hugging Face hub's protocol as its client asks for."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One model repository.

    Attributes:
        folder: its files.
        token: who does not send it gets what the hub says of a gated repository.
        fetched: file -> how often its whole content was sent.
    """

    folder: Path
    token: str | None = None
    address: str = ""
    fetched: Counter[str] = field(default_factory=Counter)


@contextmanager
def hub(folder: Path, repository: str, token: str | None = None) -> Iterator[Hub]:
    """Serve the files of a folder as the repository `owner/name`."""
    served = Hub(folder, token)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            known = path.startswith((f"/{repository}/", f"/api/models/{repository}"))
            if not known:
                return self.send(404, {"X-Error-Code": "RepoNotFound"}, body=body)
            if served.token and self.headers.get("Authorization") != f"Bearer {served.token}":
                return self.send(401, {"X-Error-Code": "GatedRepo"}, body=body)
            if "/tree/" in path:
                files = [{"type": "file", "path": f.name, "size": f.stat().st_size} for f in served.folder.iterdir()]
                return self.send(200, {}, json.dumps([{**file, "oid": COMMIT} for file in files]).encode(), body=body)
            if path.startswith("/api/"):
                files = [{"rfilename": file.name} for file in served.folder.iterdir()]
                content = json.dumps({"id": repository, "sha": COMMIT, "siblings": files}).encode()
                return self.send(200, {}, content, body=body)
            file = served.folder / path.rpartition("/")[2]
            if not file.is_file():
                return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body=body)
            content = file.read_bytes()
            if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                start, end = int(part[1]), min(int(part[2]), len(content) - 1)
                place = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
                return self.send(206, place, content[start : end + 1], body=body)
            served.fetched[file.name] += body
            etag = hashlib.sha256(content).hexdigest()
            self.send(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, content, body=body)

        def send(self, code: int, headers: dict[str, str], content: bytes = b"", *, body: bool) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Nothing: what is asked is counted."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield served
        server.shutdown()
