"""A web server on this machine that hands out one file, and misbehaves as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

ETAG = '"one"'
Answer = Callable[["Asked"], Awaitable[web.StreamResponse]]


@dataclass
class LoraServer:
    """``content`` is the file; ``script`` has how to answer the first requests, after which it answers rightly."""

    content: bytes
    script: list[Answer] = field(default_factory=list)
    seen: list[web.Request] = field(default_factory=list)
    origin: str = ""

    @property
    def url(self) -> str:
        return f"{self.origin}/style.safetensors"

    @property
    def ranges(self) -> list[str | None]:
        """What part each request asked for."""
        return [request.headers.get("Range") for request in self.seen]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(self, request)
        self.seen.append(request)
        return await (self.script.pop(0) if self.script else rightly)(asked)


@dataclass
class Asked:
    """One request, and where in the file it wants to begin."""

    server: LoraServer
    request: web.Request

    @property
    def start(self) -> int:
        wanted = self.request.headers.get("Range", "bytes=0-")
        same = self.request.headers.get("If-Range", ETAG) == ETAG
        return int(wanted.removeprefix("bytes=").removesuffix("-")) if same else 0

    async def begin(self, status: int | None = None, *, start: int | None = None, length: int | None = None,
                    etag: str | None = ETAG) -> web.StreamResponse:  # fmt: skip
        """Send the head of an answer that begins at ``start``; ``length`` is what it says it will send."""
        start = self.start if start is None else start
        total = len(self.server.content)
        response = web.StreamResponse(status=status or (206 if start else 200))
        if response.status == 206:
            response.headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if etag:
            response.headers["ETag"] = etag
        if length == -1:
            response.enable_chunked_encoding()
        else:
            response.content_length = total - start if length is None else length
        await response.prepare(self.request)
        return response

    def cut(self) -> None:
        """Drop the connection."""
        assert self.request.transport is not None
        self.request.transport.close()


async def rightly(asked: Asked) -> web.StreamResponse:
    if asked.start >= len(asked.server.content):
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(asked.server.content)}"})
    response = await asked.begin()
    await response.write(asked.server.content[asked.start :])
    return response


def cut_after(count: int, *, etag: str | None = ETAG) -> Answer:
    """Send so many bytes of what was asked for, and drop the connection."""

    async def answer(asked: Asked) -> web.StreamResponse:
        response = await asked.begin(etag=etag)
        await response.write(asked.server.content[asked.start : asked.start + count])
        await asyncio.sleep(0)
        asked.cut()
        return response

    return answer


def status(code: int, **headers: str) -> Answer:
    """Answer with nothing but a status."""

    async def answer(asked: Asked) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, headers=named)

    return answer


async def all_of_it(asked: Asked) -> web.StreamResponse:
    """Answer 200 with the whole file, whatever range was asked for."""
    response = await asked.begin(200, start=0)
    await response.write(asked.server.content)
    return response


def instead(content: bytes, **options: object) -> Answer:
    """Send other bytes, with the length that the file should have unless told otherwise."""

    async def answer(asked: Asked) -> web.StreamResponse:
        response = await asked.begin(**options)  # type: ignore[arg-type]
        await response.write(content)
        return response

    return answer


@asynccontextmanager
async def serving(content: bytes, *script: Answer) -> AsyncIterator[LoraServer]:
    """Run a server until the block ends."""
    server = LoraServer(content, list(script))
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    _, port = runner.addresses[0][:2]
    server.origin = f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()
