"""A worker behind a PgBouncer in transaction mode: it polls there, and hears of jobs where it has a direct way, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tenkaigen_worker.database.address import parse_address
from tests.integration.bouncer import running_pgbouncer
from tests.scenarios.program import Start
from tests.scenarios.rows import insert, until_none_open

JOBS = 5


@pytest.fixture
def through_pgbouncer(server: str, database: str, state_dir: Path) -> Iterator[str]:
    """DSN of the test's database that leads through a pooler."""
    with running_pgbouncer(server, "transaction", state_dir) as port:
        yield f"postgresql://postgres@127.0.0.1:{port}/{parse_address(database).database}"


async def test_jobs_are_found_by_polling(start: Start, pool: asyncpg.Pool, through_pgbouncer: str) -> None:
    environ = {"TENKAIGEN_DATABASE__URL": through_pgbouncer, "TENKAIGEN_WORKER__POLL_SECONDS": "0.2"}
    worker = await start("worker", **environ)
    assert (await worker.until("pooler_found"))["mode"] == "TRANSACTION"
    await worker.until("listen_unproven")
    await worker.until("worker_announced")
    for number in range(JOBS):
        await insert(pool, f"A phoenix rising {number}")

    await _all_are_completed(pool)


async def test_a_direct_way_beside_it_wakes_the_worker(
    start: Start, pool: asyncpg.Pool, database: str, through_pgbouncer: str
) -> None:
    """It would poll once a day: whatever is found was heard of."""
    seldom = dict.fromkeys(("TENKAIGEN_WORKER__POLL_SECONDS", "TENKAIGEN_WORKER__POLL_SECONDS_LISTENING"), "86400")
    ways = {"TENKAIGEN_DATABASE__URL": through_pgbouncer, "TENKAIGEN_DATABASE__LISTEN_URL": database}
    worker = await start("worker", **ways, **seldom)
    await worker.until("worker_ready")
    for number in range(JOBS):
        await insert(pool, f"A phoenix rising {number}")

    await _all_are_completed(pool)


async def _all_are_completed(pool: asyncpg.Pool) -> None:
    await until_none_open(pool)
    rows = await pool.fetch("SELECT status, attempt FROM generation_jobs")
    assert [tuple(row) for row in rows] == [("completed", 1)] * JOBS
