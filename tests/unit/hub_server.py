"""The Hugging Face hub, played by a server of this machine, that misbehaves as it is told.

What it answers is what the hub's client reads: commits, listings with checksums, and for large files a redirect to a
second server, which knows ranges and wants no token.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Answer = Callable[["Handler", bytes], None]


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1_of(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """``repos`` has the files of each repository; ``script`` how to send a file's content the first times."""

    repos: dict[str, dict[str, bytes]]
    script: dict[str, list[Answer]] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None
    commit: str = COMMIT
    origin: str = ""
    store: str = ""
    asked: list[str] = field(default_factory=list)
    sent: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)

    def ranges(self, file: str) -> list[str | None]:
        """What part each request for a file's content asked for."""
        return [part for name, part in self.sent if name == file]

    def siblings(self, repo: str) -> list[dict[str, object]]:
        return [
            {"rfilename": name, "size": len(content), "blobId": git_sha1_of(content), **large(name, content)}
            for name, content in self.repos[repo].items()
        ]

    def tree(self, repo: str) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": git_sha1_of(content)}
            | ({"lfs": {"oid": sha256_of(content), "size": len(content), "pointerSize": 134}} if is_large(name) else {})
            for name, content in self.repos[repo].items()
        ]


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def large(name: str, content: bytes) -> dict[str, object]:
    if not is_large(name):
        return {}
    return {"lfs": {"sha256": sha256_of(content), "size": len(content), "pointerSize": 134}}


class Handler(BaseHTTPRequestHandler):
    """Both servers: the hub itself, and the store of large files."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def answer(self) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        self.hub.asked.append(path)
        self.hub.tokens.append((path.partition("/")[0], self.headers.get("Authorization")))
        if self.hub.refusal is not None:
            return self.begin(self.hub.refusal[0], {"X-Error-Code": self.hub.refusal[1], "Content-Length": "0"})
        if path.startswith("store/"):
            _, owner, name, file = path.split("/", 3)
            return self.content(file, self.hub.repos[f"{owner}/{name}"][file])
        if path.startswith("api/models/"):
            return self.api(path.removeprefix("api/models/"))
        if "/resolve/" not in path:  # the client also asks for things that are nobody's files
            return self.begin(404, {"Content-Length": "0"})
        owner, name, _, _, file = path.split("/", 4)
        return self.file(f"{owner}/{name}", file)

    def api(self, path: str) -> None:
        owner, name, *rest = path.split("/")
        repo = f"{owner}/{name}"
        if repo not in self.hub.repos:
            return self.begin(404, {"X-Error-Code": "RepoNotFound", "Content-Length": "0"})
        body: object = self.hub.tree(repo)
        if rest[:1] != ["tree"]:
            body = {
                "_id": "1",
                "id": repo,
                "modelId": repo,
                "sha": self.hub.commit,
                "siblings": self.hub.siblings(repo),
            }
        return self.whole(json.dumps(body).encode(), {})

    def file(self, repo: str, file: str) -> None:
        if repo not in self.hub.repos:
            return self.begin(404, {"X-Error-Code": "RepoNotFound", "Content-Length": "0"})
        head = {"X-Repo-Commit": self.hub.commit}
        content = self.hub.repos[repo].get(file)
        if content is None:
            return self.begin(404, {**head, "X-Error-Code": "EntryNotFound", "Content-Length": "0"})
        if not is_large(file):
            if self.command == "GET":
                self.hub.sent.append((file, self.headers.get("Range")))
            return self.whole(content, {**head, "ETag": f'"{git_sha1_of(content)}"'})
        linked = {"X-Linked-Etag": f'"{sha256_of(content)}"', "X-Linked-Size": str(len(content))}
        location = f"{self.hub.store}/store/{repo}/{file}"
        return self.begin(302, {**head, **linked, "Location": location, "Content-Length": "0"})

    def content(self, file: str, content: bytes) -> None:
        if self.command == "GET":
            self.hub.sent.append((file, self.headers.get("Range")))
        script = self.hub.script.get(file)
        (script.pop(0) if script else rightly)(self, content)

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def whole(self, body: bytes, headers: dict[str, str]) -> None:
        self.begin(200, {**headers, "Content-Length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def part(self, content: bytes) -> bytes:
        """Begin to answer with what was asked for, and return it."""
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        rest = content[start:]
        head = {"Content-Length": str(len(rest))}
        if start:
            head["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.begin(206 if start else 200, head)
        return rest


def rightly(handler: Handler, content: bytes) -> None:
    handler.wfile.write(handler.part(content))


def cut_after(count: int) -> Answer:
    """Send so many bytes of what was asked for, and drop the connection."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.wfile.write(handler.part(content)[:count])
        handler.close_connection = True

    return answer


def damaged(handler: Handler, content: bytes) -> None:
    """Send as many bytes, but others."""
    handler.wfile.write(bytes(255 - byte for byte in handler.part(content)))


def held(begun: threading.Event, go_on: threading.Event, count: int) -> Answer:
    """Send so many bytes, and the rest once told to."""

    def answer(handler: Handler, content: bytes) -> None:
        rest = handler.part(content)
        handler.wfile.write(rest[:count])
        handler.wfile.flush()
        begun.set()
        go_on.wait()
        handler.wfile.write(rest[count:])

    return answer


class Server(ThreadingHTTPServer):
    """Says nothing of clients that went away."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Run both servers until the block ends."""
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    servers = [Server(("127.0.0.1", 0), handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.origin, hub.store = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
