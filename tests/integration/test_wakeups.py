"""LISTEN: what is heard, whether it is proven, and what happens when the connection goes away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from pydantic import SecretStr

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database import wakeups
from tenkaigen_worker.database.connect import open_pool
from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.database.wakeups import CHANNEL, Wakeups
from tenkaigen_worker.jobs import Progress
from tests.integration.gate import over_tcp

LISTENER = """
SELECT pid FROM pg_stat_activity WHERE application_name = 'tenkaigen listener' AND datname = current_database()
"""


class Heard:
    """Counts the wake-ups, and waits for the next."""

    def __init__(self) -> None:
        self.jobs = 0
        self.canceled: list[UUID] = []
        self._news = asyncio.Event()

    def on_jobs(self) -> None:
        self.jobs += 1
        self._news.set()

    def on_cancel(self, job_id: UUID) -> None:
        self.canceled.append(job_id)
        self._news.set()

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            self._news.clear()
            await self._news.wait()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@asynccontextmanager
async def listening(
    dsn: str, pool: asyncpg.Pool[Any], heard: Heard, probe_seconds: float = 3600
) -> AsyncIterator[Wakeups]:
    async with Wakeups(
        DatabaseSettings(),
        dsn,
        pool,
        on_jobs=heard.on_jobs,
        on_cancel=heard.on_cancel,
        probe_seconds=probe_seconds,
    ) as listener:
        yield listener


async def logged(action: str, caplog: pytest.LogCaptureFixture) -> None:
    """Wait until the log has a line with this action."""
    seen = asyncio.Event()

    def look(record: logging.LogRecord) -> bool:
        if getattr(record, "action", None) == action:
            seen.set()
        return True

    caplog.handler.addFilter(look)
    await seen.wait()
    caplog.handler.removeFilter(look)


async def test_a_new_job_wakes_at_once(database: str, pool: asyncpg.Pool[Any], heard: Heard) -> None:
    async with listening(database, pool, heard) as listener:
        assert not listener.proven
        await listener.wait_proven()
        assert heard.jobs == 1  # it woke once when it began to listen

        await pool.execute("INSERT INTO generation_jobs (prompt) VALUES ('A phoenix')")
        await heard.until(lambda: heard.jobs == 2)

    assert not listener.proven


async def test_a_thousand_rows_wake_once_and_rows_for_later_do_not(
    database: str, pool: asyncpg.Pool[Any], heard: Heard
) -> None:
    async with listening(database, pool, heard) as listener:
        await listener.wait_proven()
        await pool.execute("INSERT INTO generation_jobs (prompt, run_at) VALUES ('later', now() + interval '1 hour')")
        await pool.execute("INSERT INTO generation_jobs (prompt, status) VALUES ('old', 'completed')")
        await pool.execute("INSERT INTO generation_jobs (prompt) SELECT 'x' FROM generate_series(1, 1000)")
        await pool.execute("UPDATE generation_jobs SET status = 'processing'")
        await pool.execute("UPDATE generation_jobs SET status = 'queued', run_at = now()")
        await _end_of_the_line(pool, heard)

    assert heard.jobs == 3  # began to listen, inserted, queued again


async def test_claims_heartbeats_and_outcomes_wake_nobody(database: str, pool: asyncpg.Pool[Any], heard: Heard) -> None:
    queue = PostgresQueue(pool, "worker-1", 60)
    await pool.execute("INSERT INTO generation_jobs (prompt) SELECT 'x' FROM generate_series(1, 3)")
    async with listening(database, pool, heard) as listener:
        await listener.wait_proven()
        for end in (queue.cancel, queue.release, queue.cancel):
            job = await queue.claim()
            assert job is not None
            await queue.heartbeat({job.lease: Progress("denoise", 0.5)})
            await end(job.lease)
        await _end_of_the_line(pool, heard)

    assert heard.jobs == 2  # began to listen, released


async def _end_of_the_line(pool: asyncpg.Pool[Any], heard: Heard) -> None:
    """Wait until everything notified so far has arrived: notifications keep their order."""
    last = UUID(int=9)
    await pool.execute("SELECT pg_notify($1, $2)", CHANNEL, f"cancel {last}")
    await heard.until(lambda: last in heard.canceled)


async def test_a_request_to_cancel_names_the_running_job(database: str, pool: asyncpg.Pool[Any], heard: Heard) -> None:
    submissions = Submissions(pool)
    running = await submissions.submit({"prompt": "A phoenix"})
    assert await PostgresQueue(pool, "worker-1", 60).claim()
    waiting = await submissions.submit({"prompt": "A dragon"})

    async with listening(database, pool, heard) as listener:
        await listener.wait_proven()
        await submissions.cancel(waiting.id)
        await submissions.cancel(running.id)
        await submissions.cancel(running.id)
        await _end_of_the_line(pool, heard)

    assert heard.canceled == [running.id, UUID(int=9)]


async def test_nonsense_on_the_channel_is_ignored(database: str, pool: asyncpg.Pool[Any], heard: Heard) -> None:
    async with listening(database, pool, heard) as listener:
        await listener.wait_proven()
        for payload in ("", "hello", "cancel", "cancel me", "queued"):
            await pool.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
        await heard.until(lambda: heard.jobs == 2)

    assert heard.canceled == []


async def test_a_lost_connection_is_replaced_and_wakes_once(
    database: str, pool: asyncpg.Pool[Any], heard: Heard
) -> None:
    async with listening(database, pool, heard) as listener:
        await listener.wait_proven()
        lost = await pool.fetchval(LISTENER)
        await pool.execute("SELECT pg_terminate_backend($1, 5000)", lost)

        await heard.until(lambda: heard.jobs == 2)
        await listener.wait_proven()
        assert await pool.fetchval(LISTENER) != lost
        await pool.execute("INSERT INTO generation_jobs (prompt) VALUES ('A phoenix')")
        await heard.until(lambda: heard.jobs == 3)


async def test_a_listener_that_hears_nothing_is_not_proven_but_goes_on(
    database: str,
    heard: Heard,
    server: str,
    make_database: Callable[..., Awaitable[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A probe sent on another database never arrives, as behind a pooler that lends connections per transaction."""
    monkeypatch.setattr(wakeups, "ANSWER_SECONDS", 0.01)
    async with (
        await open_pool(DatabaseSettings(), await make_database(server), "tests") as elsewhere,
        listening(database, elsewhere, heard, probe_seconds=0.01) as listener,
    ):
        await logged("listen_unproven", caplog)
        assert not listener.proven
        assert heard.jobs == 1


async def test_a_listener_that_goes_silent_is_replaced(
    database: str, pool: asyncpg.Pool[Any], heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it stops to listen, as a server that vanished without a word."""
    monkeypatch.setattr(wakeups, "ANSWER_SECONDS", 0.5)
    async with listening(database, pool, heard, probe_seconds=0.01) as listener:
        await listener.wait_proven()
        monkeypatch.setattr(listener, "_probe_channel", "nobody_listens_here")
        await heard.until(lambda: heard.jobs == 2)


async def test_a_half_open_connection_is_replaced(
    database: str, pool: asyncpg.Pool[Any], heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing passes any more and nobody closes it, as when a firewall forgets a connection that was long silent."""
    monkeypatch.setattr(wakeups, "ANSWER_SECONDS", 0.5)
    async with over_tcp(database) as gate, listening(gate.dsn, pool, heard, probe_seconds=0.01) as listener:
        await listener.wait_proven()
        lost = await pool.fetchval(LISTENER)
        gate.swallow()

        await heard.until(lambda: heard.jobs == 2)
        await listener.wait_proven()
        await pool.execute("SELECT pg_terminate_backend($1, 5000)", lost)  # the server does not know that it is gone
        await pool.execute("INSERT INTO generation_jobs (prompt) VALUES ('A phoenix')")
        await heard.until(lambda: heard.jobs == 3)


async def test_it_listens_where_listen_url_says(database: str, pool: asyncpg.Pool[Any], heard: Heard) -> None:
    settings = DatabaseSettings(url=SecretStr(database), listen_url=SecretStr(database))
    nowhere = "postgresql://nobody@127.0.0.1:1/nowhere"
    async with Wakeups(settings, nowhere, pool, on_jobs=heard.on_jobs, on_cancel=heard.on_cancel) as listener:
        await listener.wait_proven()


async def test_it_keeps_trying_while_there_is_no_database(
    pool: asyncpg.Pool[Any], heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening("postgresql://nobody@127.0.0.1:1/nowhere", pool, heard) as listener:
        await logged("listener_failed", caplog)
        assert not listener.proven

    assert "cannot listen, next try in" in caplog.text
    assert "the database cannot be reached (host 127.0.0.1, port 1" in caplog.text


@pytest.mark.parametrize("turns", range(4))
async def test_it_ends_also_in_the_moment_of_an_answer(turns: int, database: str, heard: Heard) -> None:
    class Mute:
        async def execute(self, *_: object) -> None:
            asked.set()

    asked = asyncio.Event()
    wakeups = Wakeups(DatabaseSettings(), database, Mute(), on_jobs=heard.on_jobs, on_cancel=heard.on_cancel)  # type: ignore[arg-type]
    async with wakeups:
        await asked.wait()
        await asyncio.sleep(0)
        wakeups._answered.set()
        for _ in range(turns):
            await asyncio.sleep(0)
