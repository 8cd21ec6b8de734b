"""Nobody waits behind somebody else's thousand jobs: places and limits, written by the table's own triggers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest
from asyncpg.pool import PoolConnectionProxy

from tenkaigen_worker.database.queue import PostgresQueue
from tenkaigen_worker.errors import Code
from tenkaigen_worker.jobs import Failure, Job, Queue, Status
from tenkaigen_worker.maintenance import rescue

if TYPE_CHECKING:
    Connection = PoolConnectionProxy[asyncpg.Record]

ALICE, BOB, NOBODY = UUID(int=1), UUID(int=2), None
MINUTE, SPACING, DAY = timedelta(minutes=1), timedelta(minutes=5), timedelta(days=1)
CRASHED = Failure(Code.ENGINE_CRASHED, "The engine crashed.")
REFUSED = Failure(Code.REFUSED, "Not for us.")

INSERT = """
INSERT INTO generation_jobs (prompt, user_id, run_at, count, priority)
VALUES ('A phoenix rising', $1, coalesce($2, now()), $3, $4) RETURNING id, fair_at
"""
INSERT_MANY = """
INSERT INTO generation_jobs (prompt, user_id, run_at, count)
SELECT 'A phoenix rising', $1, $2, $3 FROM generate_series(1, $4)
"""


@pytest.fixture
def queue(pool: asyncpg.Pool[Any]) -> Queue:
    return PostgresQueue(pool, "worker-1", lease_seconds=60)


@pytest.fixture
async def connection(pool: asyncpg.Pool[Any]) -> AsyncIterator[Connection]:
    """One connection in one transaction, so that its ``now()`` stands still."""
    async with pool.acquire() as connection, connection.transaction():
        yield connection


async def insert(
    where: asyncpg.Pool[Any] | Connection,
    user: UUID | None,
    run_at: datetime | None = None,
    count: int = 1,
    priority: int = 0,
) -> datetime:
    """Queue a job, and answer its place."""
    row = await where.fetchrow(INSERT, user, run_at, count, priority)
    assert row is not None
    place: datetime = row["fair_at"]
    return place


async def long_ago(pool: asyncpg.Pool[Any]) -> datetime:
    """When a simulation begins whose minutes are all over: each of its jobs is due."""
    begin: datetime = await pool.fetchval("SELECT date_trunc('second', now()) - interval '20 days'")
    return begin


async def places(pool: asyncpg.Pool[Any], user: UUID | None) -> list[datetime]:
    rows = await pool.fetch(
        "SELECT fair_at FROM generation_jobs WHERE user_id IS NOT DISTINCT FROM $1 ORDER BY 1", user
    )
    return [row["fair_at"] for row in rows]


def spread(begin: datetime, jobs: int, spacing: timedelta = SPACING) -> list[datetime]:
    return [begin + number * spacing for number in range(jobs)]


async def claimed(queue: Queue) -> Job:
    job = await queue.claim()
    assert job is not None
    return job


async def users(queue: Queue, claims: int) -> list[UUID | None]:
    return [(await claimed(queue)).user_id for _ in range(claims)]


# Sharing


async def test_others_pass_a_users_thousand_jobs(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    begin = await long_ago(pool)
    await pool.execute(INSERT_MANY, ALICE, begin, 1, 1000)
    others = [UUID(int=number) for number in range(100, 120)]
    for other in others:
        await insert(pool, other, begin + MINUTE)

    assert await users(queue, 22) == [ALICE, *others, ALICE]


async def test_a_users_thousand_jobs_run_at_once_when_nobody_else_waits(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    await pool.execute(INSERT_MANY, ALICE, await pool.fetchval("SELECT now()"), 1, 1000)

    assert await users(queue, 5) == [ALICE] * 5


async def test_with_newcomers_for_ever_everybodys_jobs_still_run(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    begin = await long_ago(pool)
    await pool.execute(INSERT_MANY, ALICE, begin, 1, 20)

    turns = []
    for minute in range(120):  # a job runs each minute, and each minute somebody new comes
        await insert(pool, UUID(int=1000 + minute), begin + minute * MINUTE)
        turns.append((await claimed(queue)).user_id)

    # Those who came before a place of Alice's are served before it, and nobody else is.
    assert [number for number, user in enumerate(turns) if user == ALICE] == [6 * job for job in range(20)]


async def test_a_job_with_more_pictures_takes_more_room(pool: asyncpg.Pool[Any]) -> None:
    begin = await long_ago(pool)

    assert await insert(pool, ALICE, begin, count=4) == begin
    assert await insert(pool, ALICE, begin, count=1) == begin + 4 * SPACING
    assert await insert(pool, ALICE, begin) == begin + 5 * SPACING


async def test_jobs_without_a_user_share_one_row_of_places(pool: asyncpg.Pool[Any]) -> None:
    begin = await long_ago(pool)

    await pool.execute(INSERT_MANY, NOBODY, begin, 1, 3)

    assert await insert(pool, BOB, begin) == begin
    assert await places(pool, NOBODY) == spread(begin, 3)


async def test_each_priority_has_its_own_places_and_the_higher_goes_first(
    pool: asyncpg.Pool[Any], queue: Queue
) -> None:
    begin = await long_ago(pool)
    await pool.execute(INSERT_MANY, ALICE, begin, 1, 3)

    assert await insert(pool, ALICE, begin, priority=1) == begin
    await insert(pool, BOB, begin + MINUTE, priority=1)

    assert await users(queue, 3) == [ALICE, BOB, ALICE]


async def test_a_job_for_next_week_puts_none_of_today_behind_it(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    now = await pool.fetchval("SELECT now()")
    next_week = now + 7 * DAY

    await pool.execute(INSERT_MANY, ALICE, next_week, 1, 2)
    today = await insert(pool, ALICE)

    assert today - now < MINUTE
    assert await places(pool, ALICE) == [today, *spread(next_week, 2)]
    assert await users(queue, 1) == [ALICE]
    assert await queue.claim() is None


async def test_who_has_nothing_queued_begins_anew(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    begin = await long_ago(pool)
    await pool.execute(INSERT_MANY, ALICE, begin, 8, 2)
    await users(queue, 2)

    assert await insert(pool, ALICE, begin + MINUTE) == begin + MINUTE


async def test_finished_rows_that_are_brought_along_take_no_place(pool: asyncpg.Pool[Any]) -> None:
    begin = await long_ago(pool)
    for status in ("completed", "queued"):
        await pool.execute(
            "INSERT INTO generation_jobs (prompt, user_id, run_at, status) VALUES ('x', $1, $2, $3)",
            *(ALICE, begin, status),
        )

    assert await places(pool, ALICE) == [begin, begin]


async def test_the_spacing_is_a_setting(pool: asyncpg.Pool[Any]) -> None:
    begin = await long_ago(pool)
    await pool.execute("UPDATE generation_settings SET fair_spacing = '30 seconds'")
    await pool.execute(INSERT_MANY, ALICE, begin, 1, 3)
    assert await places(pool, ALICE) == spread(begin, 3, timedelta(seconds=30))

    await pool.execute("UPDATE generation_settings SET fair_spacing = '0'")
    await pool.execute(INSERT_MANY, BOB, begin, 1, 3)
    assert await places(pool, BOB) == [begin] * 3


async def test_without_its_settings_the_table_takes_jobs_all_the_same(pool: asyncpg.Pool[Any]) -> None:
    begin = await long_ago(pool)
    await pool.execute("DELETE FROM generation_settings")

    await pool.execute(INSERT_MANY, ALICE, begin, 1, 2)

    assert await places(pool, ALICE) == [begin, begin]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO generation_settings DEFAULT VALUES",
        "INSERT INTO generation_settings (only_row) VALUES (false)",
        "UPDATE generation_settings SET fair_spacing = '-1 minute'",
        "UPDATE generation_settings SET fair_spacing = '2 days'",
        "UPDATE generation_settings SET max_queued_per_user = 0",
        "INSERT INTO generation_user_limits (user_id, max_per_minute) VALUES (gen_random_uuid(), -1)",
    ],
)
async def test_settings_that_make_no_sense_are_refused(pool: asyncpg.Pool[Any], statement: str) -> None:
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await pool.execute(statement)


# However the rows come


async def test_the_rows_of_one_statement_are_spread(pool: asyncpg.Pool[Any]) -> None:
    begin = await long_ago(pool)

    await pool.execute(INSERT_MANY, ALICE, begin, 1, 50)

    assert await places(pool, ALICE) == spread(begin, 50)


async def test_copied_rows_are_spread(pool: asyncpg.Pool[Any]) -> None:
    begin = await long_ago(pool)

    rows = [("A phoenix rising", ALICE, begin)] * 50
    await pool.copy_records_to_table("generation_jobs", records=rows, columns=["prompt", "user_id", "run_at"])

    assert await places(pool, ALICE) == spread(begin, 50)


async def until_somebody_waits(pool: asyncpg.Pool[Any]) -> None:
    async with asyncio.timeout(60):
        while not await pool.fetchval(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
        ):
            pass


async def test_two_inserts_of_one_user_at_once_get_different_places(pool: asyncpg.Pool[Any]) -> None:
    begin = await long_ago(pool)
    async with pool.acquire() as first, first.transaction():
        await insert(first, ALICE, begin)
        second = asyncio.create_task(insert(pool, ALICE, begin))
        await until_somebody_waits(pool)
        assert await insert(pool, BOB, begin) == begin

    assert await second == begin + SPACING


async def test_jobs_without_a_user_wait_for_nobodys_transaction(pool: asyncpg.Pool[Any]) -> None:
    begin = await long_ago(pool)
    async with pool.acquire() as first, first.transaction():
        await insert(first, NOBODY, begin)

        assert await insert(pool, NOBODY, begin) == begin


async def test_jobs_that_come_back_keep_their_place(pool: asyncpg.Pool[Any], queue: Queue) -> None:
    begin = await long_ago(pool)
    await pool.execute(INSERT_MANY, ALICE, begin, 1, 4)
    before = await places(pool, ALICE)
    failed, released, lost = [(await claimed(queue)).lease for _ in range(3)]
    await pool.execute("UPDATE generation_jobs SET lease_expires_at = now() WHERE id = $1", lost.job_id)

    assert await queue.fail(failed, CRASHED) is Status.QUEUED
    assert await queue.release(released)
    await rescue(pool, 60)

    assert await pool.fetchval("SELECT count(*) FROM generation_jobs WHERE status = 'queued'") == 4
    assert await places(pool, ALICE) == before


async def test_who_may_only_insert_gets_a_place_among_rows_they_cannot_see(
    connection: Connection,
) -> None:
    begin = await connection.fetchval("SELECT now() - interval '1 day'")
    await insert(connection, ALICE, begin)
    await connection.execute(
        """
        UPDATE generation_settings SET max_queued_per_user = 2;
        CREATE ROLE tenkaigen_test_visitor;
        GRANT INSERT ON generation_jobs TO tenkaigen_test_visitor;
        CREATE POLICY anybody ON generation_jobs FOR INSERT WITH CHECK (true);
        ALTER TABLE generation_jobs ENABLE ROW LEVEL SECURITY;
        SET LOCAL ROLE tenkaigen_test_visitor;
        """
    )

    await connection.execute("INSERT INTO generation_jobs (prompt, user_id, run_at) VALUES ('x', $1, $2)", ALICE, begin)
    with pytest.raises(asyncpg.PostgresError, match="at most 2 jobs queued"):
        async with connection.transaction():
            await connection.execute("INSERT INTO generation_jobs (prompt, user_id) VALUES ('x', $1)", ALICE)

    await connection.execute("RESET ROLE")
    rows = await connection.fetch("SELECT fair_at FROM generation_jobs ORDER BY seq")
    assert [row["fair_at"] for row in rows] == spread(begin, 2)
    await connection.execute("DROP OWNED BY tenkaigen_test_visitor; DROP ROLE tenkaigen_test_visitor")
