"""The statements of maintenance: jobs whose worker is gone, that waited too long, that left files, or are old."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

from tenkaigen_worker.database.faults import database_faults
from tenkaigen_worker.database.queries import load_queries
from tenkaigen_worker.jobs import Lease, Status

# The files that a row names. Somebody else's hand may have written anything there.
_NAMED = """ARRAY(
    SELECT key #>> '{}'
    FROM (VALUES ('$[*].key'::jsonpath), ('$[*].thumbnail_key')) AS place (path), jsonb_path_query(outputs, path) AS key
    WHERE jsonb_typeof(key) = 'string'
) AS named"""

QUERIES = {name: text.replace("{named}", _NAMED) for name, text in load_queries("upkeep.sql").items()}


@dataclass(frozen=True, slots=True)
class LostJob:
    """A job that was taken from a lost worker, and the status it has now: queued, failed or canceled."""

    id: UUID
    status: Status
    worker_id: str | None
    attempt: int
    max_attempts: int


@dataclass(frozen=True, slots=True)
class FinalJob:
    """A job that has ended: its last lease, whose it was, and the keys of the files that its row names."""

    lease: Lease
    user_id: UUID | None
    named: frozenset[str]


class Place(NamedTuple):
    """A job's place among those that have ended, the oldest first."""

    completed_at: datetime
    id: UUID


OLDEST = Place(datetime.min.replace(tzinfo=UTC), UUID(int=0))


async def ping(pool: asyncpg.Pool) -> None:
    """Ask the database for a sign of life."""
    with database_faults("the database does not answer"):
        await pool.execute("SELECT 1")


async def rescue_lost(pool: asyncpg.Pool, lease_seconds: float) -> Sequence[LostJob]:
    """Take jobs from workers whose lease has run out; without a lease it ran out ``lease_seconds`` after the start."""
    with database_faults("cannot look for lost jobs"):
        rows = await pool.fetch(QUERIES["rescue"], lease_seconds)
    return [LostJob(**{**row, "status": Status(row["status"])}) for row in rows]


async def expire_late(pool: asyncpg.Pool) -> Sequence[UUID]:
    """Fail queued jobs that are past their ``expires_at``, and answer which."""
    with database_faults("cannot look for expired jobs"):
        return [row["id"] for row in await pool.fetch(QUERIES["expire"])]


async def with_files_to_remove(pool: asyncpg.Pool) -> Sequence[FinalJob]:
    """Some of the jobs that ended without a picture and may have left files."""
    with database_faults("cannot look for files to remove"):
        return [_final(row) for row in await pool.fetch(QUERIES["with_files_to_remove"])]


async def files_removed(pool: asyncpg.Pool, leases: Sequence[Lease]) -> None:
    """Note that nothing is left in storage of these jobs, up to these leases."""
    ids, tokens = [lease.job_id for lease in leases], [lease.token for lease in leases]
    with database_faults("cannot note that files were removed"):
        await pool.execute(QUERIES["files_removed"], ids, tokens)


async def prunable(pool: asyncpg.Pool, days: int, behind: Place, *, limit: int) -> Sequence[Place]:
    """The oldest jobs behind a place that ended more than so many days ago."""
    with database_faults("cannot look for old jobs"):
        return [Place(**row) for row in await pool.fetch(QUERIES["prunable"], days, *behind, limit)]


@asynccontextmanager
async def pruning(pool: asyncpg.Pool, job_id: UUID, days: int) -> AsyncIterator[FinalJob | None]:
    """Remove a job's row for good once the block has ended without an error; ``None`` when it is no longer due.

    The row is removed before the block, so that a table which refuses does so while the files are still there, and
    nobody can refer to the row meanwhile. The transaction is open as long as the block takes: keep it short.
    """
    with database_faults(f"cannot remove job {job_id}"):
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            row = await connection.fetchrow(QUERIES["prune"], job_id, days)
            yield _final(row) if row else None


def _final(row: asyncpg.Record) -> FinalJob:
    return FinalJob(Lease(row["id"], row["lease_token"]), row["user_id"], frozenset(row["named"]))
