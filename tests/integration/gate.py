"""A TCP door to a PostgreSQL that listens on a Unix socket: it can go silent without closing anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tenkaigen_worker.database.address import parse_address

CHUNK = 65_536


@dataclass
class Gate:
    """``dsn`` leads through it. Connections made so far hang for ever after :meth:`swallow`; new ones get through."""

    dsn: str
    _open: list[asyncio.Event] = field(default_factory=list)

    def swallow(self) -> None:
        """From now on pass nothing on, as a firewall that forgot about a connection."""
        for passing in self._open:
            passing.clear()
        self._open.clear()


@asynccontextmanager
async def over_tcp(database: str) -> AsyncIterator[Gate]:
    """Yield a way over TCP on this machine to a database whose DSN names a Unix socket."""
    where = parse_address(database)
    at_work: list[asyncio.Task[None]] = []
    ends: list[asyncio.StreamWriter] = []
    gate = Gate("")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, passing: asyncio.Event) -> None:
        while data := await source.read(CHUNK):
            await passing.wait()
            sink.write(data)
            await sink.drain()
        if passing.is_set():
            sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing = asyncio.Event()
        passing.set()
        gate._open.append(passing)
        back, forth = await asyncio.open_unix_connection(f"{where.host}/.s.PGSQL.{where.port}")
        ends.extend((writer, forth))
        at_work.append(asyncio.create_task(pump(reader, forth, passing)))
        at_work.append(asyncio.create_task(pump(back, writer, passing)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        gate.dsn = f"postgresql://postgres@127.0.0.1:{server.sockets[0].getsockname()[1]}/{where.database}"
        yield gate
        for task in at_work:
            task.cancel()
        await asyncio.gather(*at_work, return_exceptions=True)
        for end in ends:
            end.transport.abort()
