"""How long a user's last 20 jobs take in a large table: as its owner, and as the user under row-level security."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from uuid import UUID

import asyncpg
from queue_rounds import Rounds, in_turns, keep
from queue_systems import OURS

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.connect import connect
from tenkaigen_worker.database.migrate import migrate

# Roles, auth and storage as a project of Supabase has them; its own roles it makes for another superuser than ours.
SUPABASE = Path(__file__).parent.parent / "tests" / "supabase.sql"
ROLES = """
CREATE ROLE anon; CREATE ROLE authenticated; CREATE ROLE service_role BYPASSRLS; CREATE ROLE authenticator;
CREATE ROLE supabase_auth_admin; CREATE ROLE supabase_storage_admin; CREATE ROLE supabase_admin;
"""
USERS = 1000
LAST = "SELECT * FROM generation_jobs {where} ORDER BY created_at DESC LIMIT 20"
ONE_USER = LAST.format(where="WHERE user_id = $1")
WHOEVER_ASKS = LAST.format(where="")

BECOME = "SELECT set_config('role', 'authenticated', true), set_config('request.jwt.claims', $1, true)"

OWNER = "without policies, by user"
AS_USER = "as the user, by user"
AS_USER_UNFILTERED = "as the user, without a filter"


async def measure(dsn: str, rows: int, rounds: int, calls: int) -> Rounds:
    """Milliseconds of the median call of each round, the role and claims of the user included."""
    connection = await connect(DatabaseSettings(), dsn, "tenkaigen benchmark")
    try:
        await _fill(connection, rows)
        found: Rounds = {}
        users = [UUID(int=number * 7 % USERS) for number in range(calls)]
        turns = {
            OWNER: lambda user: connection.fetch(ONE_USER, user),
            AS_USER: lambda user: _as_user(connection, user, ONE_USER, user),
            AS_USER_UNFILTERED: lambda user: _as_user(connection, user, WHOEVER_ASKS),
        }
        for number in range(rounds + 1):
            times = await in_turns(calls, {name: _timed(ask, list(users)) for name, ask in turns.items()})
            if number:  # the first fills caches
                keep(found, times)
        return found
    finally:
        await connection.close()


async def _fill(connection: asyncpg.Connection, rows: int) -> None:
    await connection.execute(ROLES)
    await connection.execute(SUPABASE.read_text(encoding="utf-8"))
    await migrate(connection)
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(
            "INSERT INTO auth.users (id) SELECT lpad(to_hex(n), 32, '0')::uuid FROM generate_series(0, $1 - 1) AS n",
            USERS,
        )
        await connection.execute(OURS.finished, rows, USERS, timeout=600)
    await connection.execute("VACUUM ANALYZE generation_jobs", timeout=600)


def _timed(ask: Callable[[UUID], Awaitable[object]], users: list[UUID]) -> Callable[[], Awaitable[float]]:
    """What asks for the next user's jobs, and answers the milliseconds it took."""

    async def call() -> float:
        user = users.pop()
        started = perf_counter()
        rows = await ask(user)
        taken = (perf_counter() - started) * 1000
        assert isinstance(rows, list)
        assert {row["user_id"] for row in rows} == {user}
        assert len(rows) == 20
        return taken

    return call


async def _as_user(connection: asyncpg.Connection, user: UUID, query: str, *values: object) -> list[asyncpg.Record]:
    async with connection.transaction():
        await connection.fetchrow(BECOME, json.dumps({"sub": str(user), "role": "authenticated"}))
        rows: list[asyncpg.Record] = await connection.fetch(query, *values)
    return rows
