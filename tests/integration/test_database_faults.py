"""What the database refuses for good, and what is worth another try."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from tenkaigen_worker.database.faults import database_faults, is_full
from tenkaigen_worker.errors import DatabaseError


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("SELECT 1 / 0", ()),
        ("SELECT $1::jsonb", ({"text": "\0"},)),
        ("SELECT $1::integer", (2**31,)),
        ("SELECT $1::text", ("half \ud800",)),
        ("SELECT $1::jsonb", ({"n": float("nan")},)),
        ("INSERT INTO generation_jobs (prompt) VALUES (' ')", ()),
        ("INSERT INTO generation_jobs (prompt) VALUES (NULL)", ()),
        ("SELECT no_such_column FROM generation_jobs", ()),
        ("DO $$ BEGIN RAISE EXCEPTION 'a trigger of the shop'; END $$", ()),
    ],
)
async def test_what_would_be_refused_again_is_permanent(
    pool: asyncpg.Pool[Any], statement: str, values: tuple[object, ...]
) -> None:
    with pytest.raises(DatabaseError, match=r"^cannot try: ") as refused, database_faults("cannot try"):
        await pool.fetchval(statement, *values)

    assert refused.value.permanent


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "SELECT pg_sleep(60)",
        "SET LOCAL statement_timeout = 1; SELECT pg_sleep(60)",
        "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'serialization_failure'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full'; END $$",
    ],
)
async def test_an_outage_is_not(pool: asyncpg.Pool[Any], statement: str) -> None:
    with pytest.raises(DatabaseError) as refused, database_faults("cannot try"):
        await pool.execute(statement, timeout=0.1)

    assert not refused.value.permanent


async def test_a_closed_pool_is_not(pool: asyncpg.Pool[Any]) -> None:
    await pool.close()

    with pytest.raises(DatabaseError) as refused, database_faults("cannot try"):
        await pool.execute("SELECT 1")

    assert not refused.value.permanent


@pytest.mark.parametrize(
    ("fault", "full"),
    [
        (asyncpg.TooManyConnectionsError("sorry, too many clients already"), True),
        (
            asyncpg.InternalServerError(
                "(EMAXCLIENTSESSION) max clients reached in session mode - max clients are limited to pool_size: 15"
            ),
            True,
        ),
        (
            asyncpg.InternalServerError(
                "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size"
            ),
            True,
        ),
        (asyncpg.InternalServerError("(EMAXCLIENTCONN) max client connections reached, limit: 200"), True),
        (asyncpg.ProtocolViolationError("no more connections allowed (max_client_conn)"), True),
        (asyncpg.InternalServerError("something else"), False),
        (TimeoutError(), False),
    ],
)
def test_a_full_house_is_known_by_its_words(fault: BaseException, full: bool) -> None:
    """Those of PostgreSQL, of Supabase's pooler in both modes, now and formerly, and of PgBouncer."""
    assert is_full(fault) is full
