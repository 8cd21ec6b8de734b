"""On a large table the statements that run all day read what they are after, through the partial indexes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest
from asyncpg.pool import PoolConnectionProxy

from tenkaigen_worker.database.queue import QUERIES as QUEUE
from tenkaigen_worker.database.submissions import QUERIES as SUBMISSIONS
from tenkaigen_worker.database.upkeep import OLDEST
from tenkaigen_worker.database.upkeep import QUERIES as UPKEEP
from tenkaigen_worker.offers import LINE_AT_MOST

if TYPE_CHECKING:
    Connection = PoolConnectionProxy[asyncpg.Record]

USER = UUID(int=7)
RUNNING = 50

# Finished rows of 5,000 users, queued ones, and some that run. The triggers would only take their time.
FINISHED = """
SET LOCAL session_replication_role = replica;
INSERT INTO generation_jobs (prompt, user_id, status, created_at, completed_at)
SELECT 'old', lpad(to_hex(n % 5000), 32, '0')::uuid, 'completed', now() - n * interval '1 minute',
    now() - (n - 0.5) * interval '1 minute'
FROM generate_series(1, 100000) n;
INSERT INTO generation_jobs (prompt, status, lease_token, created_at, completed_at, files_to_remove)
SELECT 'failed', 'failed', 1, now(), now(), n <= 5 FROM generate_series(1, 1000) n;
"""
QUEUED = """
SET LOCAL session_replication_role = replica;
INSERT INTO generation_jobs (prompt, user_id, fair_at)
SELECT 'new', lpad(to_hex(n % 5000), 32, '0')::uuid, now() - n * interval '1 second' FROM generate_series(1, 10000) n;
"""
PROCESSING = f"""
INSERT INTO generation_jobs (prompt, status, lease_token, attempt, started_at, lease_expires_at)
SELECT 'running', 'processing', 1, 1, now(), now() + interval '1 minute'
FROM generate_series(1, {RUNNING}) n;
"""

MY_LAST_JOBS = "SELECT * FROM generation_jobs WHERE user_id = $1 ORDER BY created_at DESC LIMIT 20"


@pytest.fixture
async def large(pool: asyncpg.Pool[Any]) -> asyncpg.Pool[Any]:
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(FINISHED + QUEUED + PROCESSING, timeout=240)
    await pool.execute("VACUUM ANALYZE generation_jobs", timeout=240)
    return pool


async def test_plans_on_a_large_table(large: asyncpg.Pool[Any]) -> None:
    running = [row["id"] for row in await large.fetch("SELECT id FROM generation_jobs WHERE status = 'processing'")]
    tokens, stages, fractions = [1] * RUNNING, ["denoise"] * RUNNING, [0.5] * RUNNING

    assert await scans(large, QUEUE["claim"], "worker-1", 60.0) == {
        "generation_jobs_queued_idx": 1,
        "generation_jobs_pkey": 1,
    }
    # One entry per held job, or all that run: both are as few as workers can hold.
    renewed = await scans(large, QUEUE["heartbeat"], running, tokens, stages, fractions, 60.0)
    assert len(renewed) == 1
    assert renewed.keys() <= {"generation_jobs_pkey", "generation_jobs_processing_idx"}
    assert max(renewed.values()) <= RUNNING + 1
    beat = await explain(large, QUEUE["heartbeat"], running, tokens, stages, fractions, 60.0)
    assert beat["Triggers"] == []
    await large.execute(
        "UPDATE generation_jobs SET lease_expires_at = now() - interval '1 s' WHERE id = $1", running[0]
    )
    assert await scans(large, UPKEEP["rescue"], 60.0) == {
        "generation_jobs_processing_idx": RUNNING + 1,
        "generation_jobs_pkey": 1,
    }
    assert await scans(large, UPKEEP["with_files_to_remove"], bitmap=True) == {"generation_jobs_files_to_remove_idx": 5}
    old = await large.fetch(UPKEEP["prunable"], 30, *OLDEST, 100)
    assert len(old) == 100
    for behind in (OLDEST, old[-1]):
        found = await scans(large, UPKEEP["prunable"], 30, *behind, 100)
        assert found.keys() == {"generation_jobs_completed_idx"}
        assert max(found.values()) <= 102
    assert await scans(large, UPKEEP["prunable"], 365, *OLDEST, 100) == {"generation_jobs_completed_idx": 0}
    assert set(await scans(large, UPKEEP["prune"], old[0]["id"], 30)) == {"generation_jobs_pkey"}
    assert await scans(large, MY_LAST_JOBS, USER) == {"generation_jobs_by_user_idx": 20}


async def test_the_line_before_a_job_is_read_and_no_more(pool: asyncpg.Pool[Any]) -> None:
    """Whether the server still believes that the queue is empty, or knows better."""
    await pool.execute("ALTER TABLE generation_jobs SET (autovacuum_enabled = false)")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(FINISHED, timeout=240)
    await pool.execute("VACUUM ANALYZE generation_jobs", timeout=240)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(QUEUED + PROCESSING)
    queued = await pool.fetch("SELECT id FROM generation_jobs WHERE status = 'queued' ORDER BY fair_at, seq")
    await pool.execute("UPDATE generation_jobs SET priority = 1 WHERE id = $1", queued[-1]["id"])

    for _ in range(2):
        for place, counted in ((7, 8), (5000, LINE_AT_MOST)):
            assert await scans(pool, SUBMISSIONS["line"], queued[place]["id"], LINE_AT_MOST, True, None) == {
                "generation_jobs_pkey": 1,
                "generation_jobs_queued_idx": counted,
                "generation_jobs_processing_idx": RUNNING,
            }
        await pool.execute("VACUUM ANALYZE generation_jobs", timeout=240)


async def test_a_place_is_found_through_its_own_index_whatever_the_statistics_say(pool: asyncpg.Pool[Any]) -> None:
    """The queue was empty when the server last looked, and is full now: as after a sale has begun."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(FINISHED, timeout=240)
    await pool.execute("VACUUM ANALYZE generation_jobs", timeout=240)
    await pool.execute("ALTER TABLE generation_jobs SET (autovacuum_enabled = false)")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(QUEUED)

    async with pool.acquire() as connection:
        assert await reads_of_an_insert(connection) == {"generation_jobs_place_idx": 1}
        await connection.execute("ANALYZE generation_jobs")
        assert await reads_of_an_insert(connection) == {"generation_jobs_place_idx": 1}


async def reads_of_an_insert(connection: Connection) -> Mapping[str, int]:
    """Queue a job of a user who has some, and answer how many entries of which index that read."""
    before = await reads(connection)
    await connection.execute("INSERT INTO generation_jobs (prompt, user_id) VALUES ('mine', $1)", USER)
    after = await reads(connection)
    return {name: count - before[name] for name, count in after.items() if count > before[name]}


async def reads(connection: Connection) -> Mapping[str, int]:
    """How many entries of each index, and rows of the table without one, were read so far."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    rows = await connection.fetch(
        "SELECT indexrelname AS name, idx_tup_read AS read FROM pg_stat_user_indexes WHERE relname = 'generation_jobs'"
        " UNION SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE relname = 'generation_jobs'"
    )
    return {row["name"]: row["read"] for row in rows}


async def scans(pool: asyncpg.Pool[Any], query: str, *values: object, bitmap: bool = False) -> Mapping[str, int]:
    """Run a query, and answer how many rows it read through which index; it may read the table in no other way.

    A ``bitmap`` of a few rows does as well where their order does not matter.
    """
    explained = await explain(pool, query, *values)
    nodes = walk(explained["Plan"])
    others = {"Seq Scan"} if bitmap else {"Seq Scan", "Bitmap Heap Scan"}
    assert not [node for node in nodes if node["Node Type"] in others], explained
    found: Counter[str] = Counter()
    for node in nodes:
        if "Index Name" in node:
            rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            found[node["Index Name"]] += round(rows * node["Actual Loops"])
    return found


async def explain(pool: asyncpg.Pool[Any], query: str, *values: object) -> dict[str, Any]:
    """Run a query, and answer its plan and the triggers that it called."""
    explained: list[dict[str, Any]] = json.loads(
        await pool.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *values)
    )
    return explained[0]


def walk(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in walk(child))]
