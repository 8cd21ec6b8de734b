"""Workers behind a PgBouncer in transaction mode: they poll there, and hear of jobs where they have a direct way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tenkaigen_worker.database.address import parse_address
from tests.integration.bouncer import running_pgbouncer
from tests.scenarios.history import history_of, keep_history
from tests.scenarios.program import PATIENCE_SECONDS, Start
from tests.scenarios.rows import insert, until_none_open

JOBS = 5
WORKERS = 4
MANY = "INSERT INTO generation_jobs (prompt, style) SELECT 'A phoenix ' || n, 'Anime' FROM generate_series(1, $1) AS n"


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


@pytest.mark.parametrize(
    "jobs",
    [
        pytest.param(200, id="short"),
        pytest.param(10_000, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
async def test_four_workers_share_the_queue(
    start: Start, pool: asyncpg.Pool, through_pgbouncer: str, jobs: int, tmp_path: Path
) -> None:
    """They share eight sessions of the server, too: each of their statements may run in any of them."""
    environ = {
        "TENKAIGEN_DATABASE__URL": through_pgbouncer,
        "TENKAIGEN_WORKER__LEASE_SECONDS": "60",
        "TENKAIGEN_WORKER__POLL_SECONDS": "0.2",
    }
    workers = await asyncio.gather(*[start("worker", **environ) for _ in range(WORKERS)])
    await asyncio.gather(*[worker.until("worker_ready") for worker in workers])
    await keep_history(pool)
    await pool.execute(MANY, jobs)
    await until_none_open(pool, patience=max(jobs, PATIENCE_SECONDS))
    for worker in workers:
        worker.process.terminate()
    assert await asyncio.gather(*[worker.wait() for worker in workers]) == [0] * WORKERS

    history = await history_of(pool)
    assert len(history) == jobs
    paths = {tuple(change.after for change in changes if not change.released) for changes in history.values()}
    assert paths <= {("processing", "completed"), ("processing", "processing", "completed")}
    rows = await pool.fetch("SELECT status, attempt, outputs, error_message FROM generation_jobs")
    assert {(row["status"], row["attempt"], len(row["outputs"]), row["error_message"]) for row in rows} == {
        ("completed", 1, 1, None)
    }
    assert _stored(tmp_path / ".tenkaigen/files") == {row["outputs"][0]["key"] for row in rows}

    said = [line for worker in workers for line in worker.lines]
    assert [line for line in said if line["level"] in ("ERROR", "CRITICAL")] == []
    assert {line["action"] for line in said if line["level"] == "WARNING"} <= {"listen_unproven"}
    made = Counter(changes[-1].worker_id for changes in history.values())
    assert len(made) == WORKERS, made


def _stored(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


async def _all_are_completed(pool: asyncpg.Pool) -> None:
    await until_none_open(pool)
    rows = await pool.fetch("SELECT status, attempt FROM generation_jobs")
    assert [tuple(row) for row in rows] == [("completed", 1)] * JOBS
