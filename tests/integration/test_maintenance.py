"""Maintenance: jobs of lost workers come back or end, and jobs that waited too long end."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tenkaigen_worker import maintenance
from tenkaigen_worker.config import WorkerSettings
from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.database.upkeep import expire_late, rescue_lost
from tenkaigen_worker.errors import DatabaseError
from tenkaigen_worker.jobs import Completion, Status
from tenkaigen_worker.maintenance import expire, maintain, rescue

LOSE_ALL = "UPDATE generation_jobs SET lease_expires_at = now() - interval '1 second' WHERE status = 'processing'"
MAKE_DUE = "UPDATE generation_jobs SET run_at = now()"


@pytest.fixture
def submissions(pool: asyncpg.Pool[Any]) -> Submissions:
    return Submissions(pool)


@pytest.fixture
def queue(pool: asyncpg.Pool[Any]) -> PostgresQueue:
    return PostgresQueue(pool, "worker-1", 60)


async def rescued(pool: asyncpg.Pool[Any]) -> list[Status]:
    """Take the lost jobs from their workers; answers what became of each."""
    return [job.status for job in await rescue_lost(pool, 60)]


async def test_a_lost_job_comes_back_until_no_attempt_is_left(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    job = await submissions.submit({"prompt": "A phoenix", "max_attempts": 2})
    await queue.claim()
    assert await rescued(pool) == []  # the lease still holds

    await pool.execute(LOSE_ALL)
    assert await rescued(pool) == [Status.QUEUED]

    waiting = await submissions.get(job.id)
    assert waiting is not None
    assert (waiting.status, waiting.attempt, waiting.error_code) == (Status.QUEUED, 1, "worker_lost")
    assert (
        timedelta(seconds=3) < await pool.fetchval("SELECT run_at - now() FROM generation_jobs") < timedelta(seconds=7)
    )
    assert await rescued(pool) == []

    await pool.execute(MAKE_DUE)
    await queue.claim()
    await pool.execute(LOSE_ALL)
    assert await rescued(pool) == [Status.FAILED]

    lost = await submissions.get(job.id)
    assert lost is not None
    assert (lost.status, lost.attempt, lost.error_code) == (Status.FAILED, 2, "worker_lost")
    assert lost.completed_at is not None


async def test_a_lost_job_that_shall_be_canceled_ends(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    job = await submissions.submit({"prompt": "A phoenix"})
    await queue.claim()
    await submissions.cancel(job.id)
    await pool.execute(LOSE_ALL)

    assert await rescued(pool) == [Status.CANCELED]


async def test_a_row_without_a_lease_is_rescued_a_lease_after_its_start(
    pool: asyncpg.Pool[Any], submissions: Submissions
) -> None:
    await pool.execute(
        "INSERT INTO generation_jobs (prompt, status, created_at) VALUES "
        "('just now', 'processing', now()), ('long ago', 'processing', now() - interval '61 seconds')"
    )

    assert await rescued(pool) == [Status.QUEUED]

    assert await pool.fetchval("SELECT prompt FROM generation_jobs WHERE status = 'queued'") == "long ago"


async def test_maintainers_share_the_work(pool: asyncpg.Pool[Any], queue: PostgresQueue) -> None:
    await pool.execute("INSERT INTO generation_jobs (prompt) SELECT 'x' FROM generate_series(1, 50)")
    while await queue.claim():
        pass
    await pool.execute(LOSE_ALL)

    parts = await asyncio.gather(*(rescued(pool) for _ in range(5)))

    assert sum(len(part) for part in parts) == 50
    assert await pool.fetchval("SELECT count(*) FROM generation_jobs WHERE status = 'queued'") == 50


async def test_a_row_that_its_worker_is_just_writing_is_left_alone(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    await submissions.submit({"prompt": "A phoenix"})
    job = await queue.claim()
    assert job is not None
    await pool.execute(LOSE_ALL)

    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE generation_jobs SET progress = 1")
        assert await rescued(pool) == []

    assert await queue.complete(job.lease, Completion((), {}, {}, 1))


async def test_pauses_grow_and_jobs_that_failed_together_come_back_apart(pool: asyncpg.Pool[Any]) -> None:
    pauses = [
        [await pool.fetchval("SELECT generation_jobs_backoff($1)", attempt) for _ in range(20)]
        for attempt in (1, 2, 3, 4, 20)
    ]

    for seconds, group in zip((5, 20, 80, 300, 300), pauses, strict=True):
        assert min(group) >= timedelta(seconds=0.75 * seconds)
        assert max(group) <= timedelta(seconds=1.25 * seconds)
        assert len(set(group)) > 10


async def test_queued_jobs_past_their_time_end(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue
) -> None:
    now = await pool.fetchval("SELECT now()")
    late = await submissions.submit({"prompt": "late", "expires_at": now - timedelta(seconds=1)})
    await submissions.submit({"prompt": "in time", "expires_at": now + timedelta(hours=1)})
    await submissions.submit({"prompt": "whenever"})

    assert await expire_late(pool) == [late.id]
    assert await expire_late(pool) == []

    ended = await submissions.get(late.id)
    assert ended is not None
    assert (ended.status, ended.error_code) == (Status.FAILED, "expired")
    assert (await submissions.depth()).queued == 2


async def test_what_was_rescued_and_what_expired_is_logged(
    pool: asyncpg.Pool[Any], submissions: Submissions, queue: PostgresQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tenkaigen.maintenance")
    lost = await submissions.submit({"prompt": "lost"})
    await queue.claim()
    await pool.execute(LOSE_ALL)
    late = await submissions.submit({"prompt": "late", "expires_at": await pool.fetchval("SELECT now()")})

    await rescue(pool, 60)
    await expire(pool)

    assert f"job {lost.id} was lost by worker worker-1 in attempt 1 of 3; it is queued now" in caplog.text
    assert f"job {late.id} expired before it started" in caplog.text


async def test_it_goes_on_after_an_outage_but_lets_workers_renew_first(
    pool: asyncpg.Pool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    outages = iter([None, DatabaseError("away"), None])

    async def next_outcome(*_: object) -> None:
        if outage := next(outages):
            raise outage

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            raise asyncio.CancelledError

    monkeypatch.setattr(maintenance, "rescue", next_outcome)
    monkeypatch.setattr(maintenance.asyncio, "sleep", note)

    with pytest.raises(asyncio.CancelledError):
        await maintain(pool, WorkerSettings(heartbeat_seconds=20, rescue_seconds=10))

    assert pauses == [20, 10, 20, 10]
