"""Finds out whether a pooler that lends connections per transaction stands between us and the server."""

from __future__ import annotations

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.connect import connect
from tenkaigen_worker.database.faults import database_faults


async def behind_transaction_pooler(settings: DatabaseSettings, dsn: str) -> bool:
    """Ask the server which of its processes answers, over two connections that are both open.

    Two sessions have a process each; a pooler in transaction mode lends both the same idle one. Raises
    :class:`~tenkaigen_worker.errors.DatabaseError` when the database cannot be reached.
    """
    first = await connect(settings, dsn, "tenkaigen probe")
    try:
        second = await connect(settings, dsn, "tenkaigen probe")
        try:
            with database_faults("cannot look for a pooler"):
                pids = {await connection.fetchval("SELECT pg_backend_pid()") for connection in (first, second)}
        finally:
            await second.close()
    finally:
        await first.close()
    return len(pids) == 1
