"""The table of workers, and what a queued job has before it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.database.workers import PostgresWorkers
from tenkaigen_worker.errors import DatabaseError
from tenkaigen_worker.jobs import Progress
from tenkaigen_worker.offers import Announcement, Limits, Line, Work, WorkerState
from tests.unit.examples import WORKER

OTHER = replace(WORKER, worker_id="gpu-2", picture_ms={})


@pytest.fixture
def workers(pool: asyncpg.Pool[Any]) -> PostgresWorkers:
    return PostgresWorkers(pool)


@pytest.fixture
def submissions(pool: asyncpg.Pool[Any]) -> Submissions:
    return Submissions(pool)


async def last_seen(pool: asyncpg.Pool[Any], worker: Announcement, ago: timedelta) -> None:
    await pool.execute(
        "UPDATE generation_workers SET seen_at = now() - $2::interval WHERE id = $1", worker.worker_id, ago
    )


async def test_what_was_announced_is_read_back(workers: PostgresWorkers) -> None:
    assert await workers.live() == []
    await workers.announce(WORKER)
    await workers.announce(OTHER)
    assert await workers.live() == [WORKER, OTHER]

    changed = replace(
        WORKER,
        state=WorkerState.UNREADY,
        styles={"Ukiyo-e": "Holzschnitt, häufig"},
        modes=("turbo",),
        picture_ms={},
        loras={},
        templates={"Becher": "rundum"},
        limits=Limits(1024 * 1024),
    )
    await workers.announce(changed)
    assert await workers.live() == [changed, OTHER]

    await workers.leave(WORKER.worker_id)
    assert await workers.live() == [OTHER]


async def test_who_is_silent_is_not_live_and_in_the_end_forgotten(
    workers: PostgresWorkers, pool: asyncpg.Pool[Any]
) -> None:
    await workers.announce(WORKER)
    await last_seen(pool, WORKER, timedelta(seconds=44))
    assert await workers.live() == [WORKER]
    await last_seen(pool, WORKER, timedelta(seconds=46))
    assert await workers.live() == []

    await workers.announce(OTHER)
    assert await pool.fetchval("SELECT count(*) FROM generation_workers") == 2
    await last_seen(pool, WORKER, timedelta(hours=25))
    await workers.announce(OTHER)
    assert await pool.fetchval("SELECT count(*) FROM generation_workers") == 1

    await workers.announce(WORKER)
    assert WORKER in await workers.live()


async def test_an_outage_is_said_in_words(workers: PostgresWorkers, pool: asyncpg.Pool[Any]) -> None:
    await pool.close()
    for question in (workers.announce(WORKER), workers.leave("gpu-1"), workers.live()):
        with pytest.raises(DatabaseError):
            await question


async def test_the_line_is_that_of_the_claim(submissions: Submissions, pool: asyncpg.Pool[Any]) -> None:
    """Jobs are before another exactly when they are claimed before it, whatever their users and priorities."""
    await pool.execute(
        """
        INSERT INTO generation_jobs (prompt, user_id, priority)
        SELECT n, lpad(to_hex(n % 4), 32, '0')::uuid, n % 3 FROM generate_series(1, 30) n;
        INSERT INTO generation_jobs (prompt, priority, run_at) VALUES ('later', 100, now() + interval '1 hour');
        INSERT INTO generation_jobs (prompt, priority, expires_at) VALUES ('over', 100, now() + interval '1 hour');
        UPDATE generation_jobs SET expires_at = now() WHERE prompt = 'over';
        """
    )
    lines = {row["id"]: await submissions.line(row["id"]) for row in await pool.fetch("SELECT id FROM generation_jobs")}
    queue = PostgresQueue(pool, "worker-1", 60)
    claimed = [job.id for _ in range(30) if (job := await queue.claim())]
    assert [line.position for job_id in claimed if (line := lines[job_id])] == list(range(30))


async def test_the_line_says_what_is_to_be_done(submissions: Submissions, pool: asyncpg.Pool[Any]) -> None:
    queue = PostgresQueue(pool, "worker-1", 60)
    await submissions.submit({"prompt": "runs", "mode": "fast", "count": 4})
    running = await queue.claim()
    assert running
    await queue.heartbeat({running.lease: Progress("generating", 0.75)})
    for mode, count in (("fast", 2), ("fast", 3), (None, 1)):
        await submissions.submit({"prompt": "waits", "mode": mode, "count": count})
    job = await submissions.submit({"prompt": "asks", "mode": "quality", "count": 5})
    await submissions.submit({"prompt": "is behind", "count": 8})

    line = await submissions.line(job.id)
    assert line
    assert (line.position, line.own) == (3, Work("quality", 5))
    assert set(line.ahead) == {Work("fast", 5), Work(None, 1), Work("fast", 1)}
    assert len(line.ahead) == 3

    assert await submissions.line(running.id) is None
    assert await submissions.line(uuid4()) is None


async def test_nobody_counts_beyond_a_thousand(submissions: Submissions, pool: asyncpg.Pool[Any]) -> None:
    await pool.execute(
        """
        INSERT INTO generation_jobs (prompt, priority, user_id)
        SELECT 'before', n % 2, gen_random_uuid() FROM generate_series(1, 1200) n
        """
    )
    job = await submissions.submit({"prompt": "asks"})
    assert await submissions.line(job.id) == Line(1000, (Work(None, 1000),), Work(None, 1))
