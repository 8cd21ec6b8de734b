"""Sends the same HTTP request again and again over some connections, with as little work of its own as can be."""

from __future__ import annotations

import asyncio
from time import perf_counter
from urllib.parse import urlsplit

from tenkaigen_worker.errors import TenkaigenError

PATIENCE_SECONDS = 120.0

_LENGTH = b"\r\ncontent-length:"


def request_bytes(method: str, url: str, body: bytes = b"") -> bytes:
    """A whole request, ready to be sent."""
    where = urlsplit(url)
    lines = [f"{method} {where.path} HTTP/1.1", f"Host: {where.netloc}"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def rate(url: str, request: bytes, status: int, connections: int, requests: int) -> float:
    """Answers per second of the server at ``url``, each connection asking anew once it is answered.

    Raises :class:`~tenkaigen_worker.errors.TenkaigenError` when an answer has another status, or none comes.
    """
    where = urlsplit(url)
    ways = [await asyncio.open_connection(where.hostname, where.port) for _ in range(connections)]
    try:
        started = perf_counter()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*[_ask(*way, request, status, requests // connections) for way in ways])
        return requests // connections * connections / (perf_counter() - started)
    except TimeoutError:
        raise TenkaigenError(f"{url} has not answered {requests} requests after {PATIENCE_SECONDS:g} s") from None
    finally:
        for _, writer in ways:
            writer.close()


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, status: int, times: int
) -> None:
    expected = b"HTTP/1.1 %d " % status
    for _ in range(times):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(body_length(head))
        if not head.startswith(expected):
            raise TenkaigenError(f"the server answers {head.splitlines()[0].decode()}: {body[:300].decode()}")


def body_length(head: bytes) -> int:
    """What the ``Content-Length`` of an answer says."""
    _, _, rest = head.lower().partition(_LENGTH)
    return int(rest.partition(b"\r\n")[0])
