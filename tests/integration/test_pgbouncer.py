"""A real PgBouncer between us and PostgreSQL, in transaction and in session mode: everything works, at most slower."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from pydantic import SecretStr

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database import wakeups
from tenkaigen_worker.database.address import parse_address
from tenkaigen_worker.database.connect import connect, look_for_pooler, open_pool
from tenkaigen_worker.database.pooler import Pooler
from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.database.wakeups import Wakeups
from tenkaigen_worker.errors import DatabaseError
from tenkaigen_worker.jobs import Asker, Completion, Output, Progress
from tests.integration.bouncer import running_pgbouncer
from tests.integration.test_wakeups import Heard, logged

JOBS = 200
WORKERS = 4

both_modes = pytest.mark.parametrize("mode", ["transaction", "session"])

Bouncer = Callable[..., str]


@pytest.fixture
def bounced(server: str, database: str, state_dir: Path) -> Iterator[Bouncer]:
    """What puts a PgBouncer of this mode before the test's database: it answers the DSN that leads through it."""
    with ExitStack() as running:

        def through(mode: str, **limits: int) -> str:
            port = running.enter_context(running_pgbouncer(server, mode, state_dir, **limits))
            return f"postgresql://postgres@127.0.0.1:{port}/{parse_address(database).database}"

        yield through


@both_modes
async def test_its_mode_is_found_out_and_stated(
    mode: str, bounced: Bouncer, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tenkaigen.database")
    dsn = bounced(mode)
    assert await look_for_pooler(DatabaseSettings(), database) is Pooler.NONE

    assert await look_for_pooler(DatabaseSettings(), dsn) is Pooler[mode.upper()]
    async with await open_pool(DatabaseSettings(), dsn, "tests") as pool:
        assert await pool.fetchval("SELECT 1") == 1

    assert f"The database is behind a pooler in {mode} mode" in caplog.text


async def test_its_mode_is_found_out_while_others_take_and_return_servers(bounced: Bouncer) -> None:
    dsn = bounced("transaction")
    async with await open_pool(DatabaseSettings(pool_size=WORKERS), dsn, "tests") as pool:
        busy = [asyncio.create_task(_for_ever(pool)) for _ in range(WORKERS)]
        assert [await look_for_pooler(DatabaseSettings(), dsn) for _ in range(10)] == [Pooler.TRANSACTION] * 10
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)


async def _for_ever(pool: asyncpg.Pool[Any]) -> None:
    while True:
        await pool.fetchval("SELECT $1::int", 1)


@both_modes
async def test_jobs_go_from_submitted_to_completed(mode: str, bounced: Bouncer) -> None:
    """Several workers at once: the pooler passes their statements to whichever session is free."""
    async with await open_pool(DatabaseSettings(pool_size=WORKERS + 1), bounced(mode), "tests") as pool:
        submissions = Submissions(pool)

        async def work(number: int) -> int:
            queue, done = PostgresQueue(pool, f"worker-{number}", 60), 0
            while job := await queue.claim():
                beat = await queue.heartbeat({job.lease: Progress("denoise", 0.5)})
                assert beat[job.lease].alive
                output = Output(0, "a.png", "/files/a.png", 96, 64, 1234, "ab" * 32, done)
                assert await queue.complete(job.lease, Completion((output,), {"prompt": "A phoenix"}, {}, 9))
                done += 1
            return done

        jobs = [await submissions.submit({"prompt": "A phoenix", "style": "Anime"}) for _ in range(JOBS)]
        assert sum(await asyncio.gather(*map(work, range(WORKERS)))) == JOBS
        ended = [await submissions.get(job.id) for job in jobs]
        assert {job.status for job in ended if job} == {"completed"}
        assert {job.attempt for job in ended if job} == {1}


@both_modes
async def test_a_statement_that_fails_leaves_the_connection_usable(mode: str, bounced: Bouncer) -> None:
    async with await open_pool(DatabaseSettings(), bounced(mode), "tests") as pool, pool.acquire() as connection:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetchval("SELECT 1 / $1::int", 0)
        assert await connection.fetchval("SELECT $1::int", 7) == 7
        async with connection.transaction():
            await connection.execute("CREATE TEMPORARY TABLE scratch (n int) ON COMMIT DROP")
            await connection.execute("INSERT INTO scratch VALUES ($1)", 3)
            assert await connection.fetchval("SELECT n FROM scratch") == 3


@pytest.mark.parametrize(("mode", "limits"), [("transaction", ("0", "0")), ("session", ("31s", "10s"))])
async def test_limits_are_left_in_no_session_that_is_not_ours(
    mode: str, limits: tuple[str, str], bounced: Bouncer
) -> None:
    async with await open_pool(DatabaseSettings(), bounced(mode), "tests") as pool:
        assert (await pool.fetchval("SHOW statement_timeout"), await pool.fetchval("SHOW lock_timeout")) == limits


async def test_in_transaction_mode_nothing_is_heard_and_polling_still_finds_jobs(
    bounced: Bouncer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wakeups, "ANSWER_SECONDS", 0.2)
    dsn, heard = bounced("transaction"), Heard()
    async with (
        await open_pool(DatabaseSettings(), dsn, "tests") as pool,
        Wakeups(DatabaseSettings(), dsn, pool, on_jobs=heard.on_jobs, on_cancel=heard.on_cancel) as listener,
    ):
        await logged("listen_unproven", caplog)
        assert not listener.proven
        job = await Submissions(pool).submit({"prompt": "A phoenix"})
        claimed = await PostgresQueue(pool, "worker-1", 60).claim()
        assert claimed is not None
        assert claimed.id == job.id


@pytest.mark.parametrize(("mode", "direct"), [("transaction", True), ("session", False)])
async def test_a_direct_way_or_session_mode_is_heard(mode: str, direct: bool, bounced: Bouncer, database: str) -> None:
    dsn, heard = bounced(mode), Heard()
    settings = DatabaseSettings(url=SecretStr(dsn), listen_url=SecretStr(database) if direct else None)
    async with (
        await open_pool(settings, dsn, "tests") as pool,
        Wakeups(settings, dsn, pool, on_jobs=heard.on_jobs, on_cancel=heard.on_cancel) as listener,
    ):
        await listener.wait_proven()
        await Submissions(pool).submit({"prompt": "A phoenix"})
        await heard.until(lambda: heard.jobs == 2)


async def test_who_finds_no_room_waits_for_it(bounced: Bouncer, caplog: pytest.LogCaptureFixture) -> None:
    dsn = bounced("session", clients=2)
    others = [await asyncpg.connect(dsn) for _ in range(2)]

    opening = asyncio.create_task(open_pool(DatabaseSettings(), dsn, "tests"))
    await logged("no_room", caplog)
    for other in others:
        await other.close()

    async with await opening as pool:
        assert await pool.fetchval("SELECT 1") == 1


async def test_a_connection_of_the_pool_waits_for_room_too(bounced: Bouncer, caplog: pytest.LogCaptureFixture) -> None:
    dsn = bounced("session", clients=2)
    async with await open_pool(DatabaseSettings(), dsn, "tests") as pool, pool.acquire():
        other = await asyncpg.connect(dsn)

        second = asyncio.create_task(pool.fetchval("SELECT 1"))
        await logged("no_room", caplog)
        await other.close()

        assert await second == 1


async def test_without_room_for_long_it_is_said(bounced: Bouncer) -> None:
    dsn = bounced("session", clients=1)
    other = await asyncpg.connect(dsn)
    for way in (connect, open_pool):
        with pytest.raises(DatabaseError) as refused:
            await way(DatabaseSettings(connect_timeout_seconds=0.1), dsn, "tests")
        assert str(refused.value).startswith("the database has no free connection (host 127.0.0.1, port ")
        assert "no more connections allowed (max_client_conn); lower database.pool_size" in str(refused.value)
    await other.close()


async def test_users_see_their_own_jobs_though_their_statements_share_sessions(supabase: str, state_dir: Path) -> None:
    """Role and claims end with each transaction: the session is somebody else's next."""
    users = [UUID(int=number) for number in range(1, 9)]
    with running_pgbouncer(supabase, "transaction", state_dir) as port:
        dsn = f"postgresql://postgres@127.0.0.1:{port}/{parse_address(supabase).database}"
        async with await open_pool(DatabaseSettings(pool_size=10), dsn, "tests") as pool:
            await pool.execute("INSERT INTO auth.users (id) SELECT unnest($1::uuid[])", users)
            submissions = Submissions(pool)

            async def use(user: UUID) -> None:
                asker = Asker(user)
                for _ in range(5):
                    job = await submissions.submit({"prompt": "A fox"}, asker=asker)
                    assert job.user_id == user
                    assert await submissions.get(job.id, asker) is not None
                    assert await submissions.get(job.id, Asker(UUID(int=99))) is None
                    assert await submissions.get(job.id) is not None
                    canceled = await submissions.cancel(job.id, asker)
                    assert canceled is not None
                    assert (await submissions.retry(job.id, asker)) is not None

            await asyncio.gather(*map(use, users))
            assert await pool.fetchval("SELECT count(DISTINCT user_id) FROM generation_jobs") == len(users)
            assert await pool.fetchval("SELECT current_setting('request.jwt.claims', true)") in (None, "")
