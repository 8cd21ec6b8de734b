"""PostgreSQL goes away under load and comes back: no picture is made twice, and no attempt is lost."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.cluster import Cluster
from tenkaigen_worker.database.connect import connect, open_pool
from tenkaigen_worker.database.embedded import embedded_binaries
from tenkaigen_worker.database.migrate import migrate
from tests.scenarios.program import Program, Start
from tests.scenarios.rows import until_none_open

# The lease ends before a long outage does. What saves the jobs then: nobody rescues for one heartbeat after it.
ENVIRON = {
    "TENKAIGEN_WORKER__LEASE_SECONDS": "4.5",
    "TENKAIGEN_WORKER__HEARTBEAT_SECONDS": "2",
    "TENKAIGEN_WORKER__POLL_SECONDS_LISTENING": "2",
}
JOBS = 20


@pytest.fixture
def cluster(state_dir: Path) -> Iterator[Cluster]:
    """A server that nobody else uses; it is running."""
    cluster = Cluster(embedded_binaries(), state_dir / "postgres")
    cluster.ensure_running()
    yield cluster
    cluster.stop()


@pytest.mark.parametrize(
    "outage_seconds",
    [
        pytest.param(0, id="restarted"),
        pytest.param(5, id="five_seconds", marks=pytest.mark.soak),
        pytest.param(90, id="ninety_seconds", marks=pytest.mark.soak),
    ],
)
async def test_an_outage_costs_nothing_but_time(outage_seconds: float, start: Start, cluster: Cluster) -> None:
    dsn = cluster.ensure_running()
    await fill(dsn)
    workers = [await start("worker", **ENVIRON, TENKAIGEN_DATABASE__URL=dsn) for _ in range(2)]
    for worker in workers:
        await worker.until("job_generating")

    await asyncio.to_thread(cluster.stop)
    for worker in workers:
        await until_noticed(worker)
    await asyncio.sleep(outage_seconds)
    assert await asyncio.to_thread(cluster.ensure_running) == dsn

    pool = await open_pool(DatabaseSettings(), dsn, "tests")
    await until_none_open(pool)
    rows = await pool.fetch("SELECT id::text, status, attempt, lease_token FROM generation_jobs")
    await pool.close()
    assert {(row["status"], row["attempt"], row["lease_token"]) for row in rows} == {("completed", 1, 1)}

    for worker in workers:
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.wait() == 0
        await worker.close()
    assert generated(workers) == dict.fromkeys([row["id"] for row in rows], 1)
    assert "Traceback" not in "".join(line for worker in workers for line in worker.raw)


async def fill(dsn: str) -> None:
    """Make the table, and more jobs than can be done before the outage."""
    connection = await connect(DatabaseSettings(), dsn, "tests")
    await migrate(connection)
    await connection.executemany(
        "INSERT INTO generation_jobs (prompt) VALUES ($1)",
        [(f"A phoenix, take {number} [slow 0.05]",) for number in range(JOBS)],
    )
    await connection.close()


async def until_noticed(worker: Program) -> None:
    """Wait until the worker had a picture to deliver and could not: the one it was making when the server went."""
    waits = await worker.until("write_waits")
    assert "waits for the database" in waits["message"]


def generated(workers: list[Program]) -> dict[str, int]:
    """How often each job was brought to an engine."""
    lines = (line for worker in workers for line in worker.lines)
    return dict(Counter(line["job_id"] for line in lines if line.get("action") == "job_generating"))
