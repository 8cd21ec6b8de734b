"""The statements of maintenance: jobs whose worker is gone, and jobs that waited too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from tenkaigen_worker.database.faults import database_faults
from tenkaigen_worker.database.queries import load_queries
from tenkaigen_worker.jobs import Status

QUERIES = load_queries("upkeep.sql")


@dataclass(frozen=True, slots=True)
class LostJob:
    """A job that was taken from a lost worker, and the status it has now: queued, failed or canceled."""

    id: UUID
    status: Status
    worker_id: str | None
    attempt: int
    max_attempts: int


async def rescue_lost(pool: asyncpg.Pool, lease_seconds: float) -> Sequence[LostJob]:
    """Take jobs from workers whose lease has run out; without a lease it ran out ``lease_seconds`` after the start."""
    with database_faults("cannot look for lost jobs"):
        rows = await pool.fetch(QUERIES["rescue"], lease_seconds)
    return [LostJob(**{**row, "status": Status(row["status"])}) for row in rows]


async def expire_late(pool: asyncpg.Pool) -> Sequence[UUID]:
    """Fail queued jobs that are past their ``expires_at``, and answer which."""
    with database_faults("cannot look for expired jobs"):
        return [row["id"] for row in await pool.fetch(QUERIES["expire"])]
