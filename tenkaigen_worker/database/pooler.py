"""Finds out which kind of pooler is between us and the server, if any."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any

import asyncpg

from tenkaigen_worker.database.faults import database_faults
from tenkaigen_worker.errors import DatabaseError

_ROUNDS = 4  # other clients take and return servers, too: two of ours may meet different ones by chance


class Pooler(Enum):
    """What lends us the server's sessions."""

    NONE = "no pooler"
    SESSION = "a pooler in session mode"  # a session is ours as long as we are connected
    TRANSACTION = "a pooler in transaction mode"  # a session is ours until the transaction ends


async def find_pooler(connect: Callable[[], Awaitable[asyncpg.Connection]]) -> Pooler:
    """Find out what is in between by connecting once, or twice where something is.

    The server greets a client with the number of the process that serves it, for cancelling. A pooler has to make up
    its own. Then two connections tell its mode: sessions have a process each and keep it. Raises
    :class:`~tenkaigen_worker.errors.DatabaseError` when the database cannot be reached.
    """
    first = await connect()
    try:
        with database_faults("cannot look for a pooler"):
            if await _process_of(first) == first.get_server_pid():
                return Pooler.NONE
        try:
            second = await connect()
        except DatabaseError:
            return Pooler.TRANSACTION  # there is room for one only; what gets through that mode gets through any
        try:
            with database_faults("cannot look for a pooler"):
                return await _mode(first, second)
        finally:
            await second.close()
    finally:
        await first.close()


async def _mode(first: asyncpg.Connection, second: asyncpg.Connection) -> Pooler:
    firsts, seconds = set(), set()
    for _ in range(_ROUNDS):
        firsts.add(await _process_of(first))
        seconds.add(await _process_of(second))
    steady = len(firsts) == len(seconds) == 1 and firsts != seconds
    return Pooler.SESSION if steady else Pooler.TRANSACTION


async def _process_of(connection: asyncpg.Connection) -> Any:
    return await connection.fetchval("SELECT pg_backend_pid()")
