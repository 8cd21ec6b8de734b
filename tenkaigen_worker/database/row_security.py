"""Whether a database that users of Supabase reach keeps their jobs apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenkaigen_worker.database.faults import database_faults
from tenkaigen_worker.database.queries import load_queries

if TYPE_CHECKING:
    import asyncpg

QUERIES = load_queries("row_security.sql")


async def users_are_apart(pool: asyncpg.Pool) -> bool | None:
    """Whether row-level security holds for all our tables; ``None`` where there are no users of Supabase.

    Raises :class:`~tenkaigen_worker.errors.DatabaseError` when the database cannot be reached.
    """
    with database_faults("cannot look at row-level security"):
        apart: bool | None = await pool.fetchval(QUERIES["users_are_apart"])
    return apart
