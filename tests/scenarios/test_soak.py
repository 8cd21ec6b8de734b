"""Workers and their engines are killed again and again, at every stage: each job is completed once, nothing is left.

A kill is aimed by the log line of a stage, or by the first sign of a file, plus a random moment. What it hit is read
afterwards: from the row, the files and the last words of the worker.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import psutil
import pytest
from PIL import Image

from tests.scenarios.history import Change, history_of, keep_history
from tests.scenarios.program import PATIENCE_SECONDS, Program, Start
from tests.scenarios.rows import keys_of, skip_backoff, until_none_marked, until_none_open

# Long enough that a worker which starves among starting processes keeps its jobs: only a kill may cost an attempt.
ENVIRON = {
    "TENKAIGEN_WORKER__LEASE_SECONDS": "8",
    "TENKAIGEN_WORKER__HEARTBEAT_SECONDS": "1",
    "TENKAIGEN_WORKER__PROGRESS_SECONDS": "0.1",
}
FEED_SECONDS = 0.3
# How long the queue stays empty now and then: idle workers are killed, too.
DRY_SECONDS = 6.0
# A job that keeps its place is hit again and again; 20 attempts are the most that the table allows.
SPARED_FROM = 8
SPARE = "UPDATE generation_jobs SET priority = -1 WHERE status = 'queued' AND attempt >= $1"
LOOK_SECONDS = 0.002

# What a kill is aimed at, and the longest random pause after it, in seconds.
STARTING, STORING, COMPLETING = "starting", "storing", "completing"
WORKER_AIMS = {
    STARTING: 1.5,
    "worker_ready": 0.2,
    "job_claimed": 0.01,
    "job_generating": 0.2,
    STORING: 0.03,
    COMPLETING: 0.001,
    "job_completed": 0.01,
}
ENGINE_AIMS = {"job_claimed": 0.01, "job_generating": 0.2, STORING: 0.03, "job_completed": 0.05}

STAGES = (
    "starting",
    "ready, holds no job",
    "claimed",
    "generating",
    "storing a picture",
    "stored, not completed",
    "completed, not yet said",
    "between two jobs",
)
# The others last a few milliseconds.
LONG_STAGES = {"starting", "claimed", "generating", "storing a picture", "stored, not completed"}
OF_A_WORKER_ONLY = {"starting", "completed, not yet said"}
ENGINE_CODES = {"engine_crashed", "engine_failed"}


class Hunt:
    """Kills until the number is reached, and keeps count of what was hit."""

    def __init__(self, start: Start, pool: asyncpg.Pool, files: Path, kills: int) -> None:
        self.hits: Counter[tuple[str, str]] = Counter()
        self.killed_workers: set[str] = set()
        self.killed_engines: Counter[str] = Counter()
        self.workers: list[Program] = []
        self._start = start
        self._pool = pool
        self._files = files
        self._left = kills

    async def stalk(self, seed: int) -> None:
        """Keep one worker running, and kill it and its engine in turn."""
        moments = random.Random(seed)
        worker = await self._start("worker", **ENVIRON)
        fresh = True
        victims = itertools.cycle(("worker", "worker", "engine", "engine"))  # twice each: a fresh one, too
        while self._left > 0:
            self._left -= 1
            aims = WORKER_AIMS if next(victims) == "worker" else ENGINE_AIMS
            candidates = [aim for aim in aims if fresh or aim not in (STARTING, "worker_ready")]
            aim = moments.choice(candidates)
            await self._await_moment(worker, aim, moments, fresh=fresh)
            await asyncio.sleep(moments.uniform(0, aims[aim]))
            if aims is WORKER_AIMS:
                await self._kill_worker(worker)
                worker, fresh = await self._start("worker", **ENVIRON), True
            else:
                fresh = False
                if not await self._kill_engine(worker):
                    self._left += 1  # it was only just starting again
        self.workers.append(worker)

    async def _await_moment(self, worker: Program, aim: str, moments: random.Random, *, fresh: bool) -> None:
        if aim == STARTING:
            return
        await worker.until("worker_ready")
        if aim == "worker_ready":
            return
        action = "job_claimed" if aim in (STORING, COMPLETING) else aim
        before = 0 if fresh else _count(worker, action)
        line = await worker.until(action, times=before + moments.randint(1, 2))
        if aim == STORING:
            await self._until_a_file_of(line["job_id"], line["lease_token"], worker)
        elif aim == COMPLETING:
            await self._until_it_is_over(line["job_id"], line["lease_token"])

    async def _until_a_file_of(self, job_id: str, token: int, worker: Program) -> None:
        """Wait for the first sign of a picture in storage, or until the job ends without one."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                if self._names(job_id, token) or _last_actions(worker)[job_id] not in ("job_claimed", "job_generating"):
                    return
                await asyncio.sleep(LOOK_SECONDS)

    async def _until_it_is_over(self, job_id: str, token: int) -> None:
        """Wait until the row says that the lease has ended; the worker may not know yet."""
        query = "SELECT status = 'processing' AND lease_token = $2 FROM generation_jobs WHERE id = $1"
        async with asyncio.timeout(PATIENCE_SECONDS), self._pool.acquire() as connection:
            while await connection.fetchval(query, UUID(job_id), token):
                pass

    async def _kill_worker(self, worker: Program) -> None:
        family = [child for child in worker.children() if child.is_running()]
        worker.kill()
        await worker.wait()
        await worker.close()
        self.hits["worker", await self._stage(worker)] += 1
        if worker_id := _worker_id(worker):
            self.killed_workers.add(worker_id)
        _, left = await asyncio.to_thread(psutil.wait_procs, family, timeout=PATIENCE_SECONDS)
        assert not left, "the engine outlived its worker"

    async def _kill_engine(self, worker: Program) -> bool:
        pid = (await worker.until("engine_ready", times=_count(worker, "engine_ready") or 1))["pid"]
        try:
            engine = psutil.Process(pid)
            if engine.ppid() != worker.pid or engine.status() == psutil.STATUS_ZOMBIE:
                return False
            engine.kill()
        except psutil.NoSuchProcess:
            return False
        self.hits["engine", await self._stage(worker)] += 1
        self.killed_engines[_worker_id(worker) or ""] += 1
        return True

    async def _stage(self, worker: Program) -> str:
        """How far the worker was with the job that was farthest."""
        worker_id = _worker_id(worker)
        if worker_id is None:
            return "starting"
        rows = await self._pool.fetch(
            "SELECT id::text, lease_token, status, stage FROM generation_jobs WHERE worker_id = $1", worker_id
        )
        said = _last_actions(worker)
        dead = worker.process.returncode is not None
        if dead and any(row["status"] == "completed" and said.get(row["id"]) != "job_completed" for row in rows):
            return "completed, not yet said"
        held = [self._stage_of(row, said) for row in rows if row["status"] == "processing"]
        if held:
            return max(held, key=STAGES.index)
        return "between two jobs" if said else "ready, holds no job"

    def _stage_of(self, row: asyncpg.Record, said: dict[str, str]) -> str:
        names = self._names(row["id"], row["lease_token"])
        if any(name.startswith(".") for name in names):
            return "storing a picture"
        if names:
            return "stored, not completed"
        if row["stage"] == "publishing":
            return "storing a picture"
        return "generating" if said.get(row["id"]) == "job_generating" else "claimed"

    def _names(self, job_id: str, token: int) -> list[str]:
        with suppress(FileNotFoundError):
            return [name for name in os.listdir(self._files / job_id) if name.lstrip(".").startswith(f"{token}-")]
        return []


def _count(worker: Program, action: str) -> int:
    return sum(line.get("action") == action for line in worker.lines)


def _worker_id(worker: Program) -> str | None:
    return next((line["worker_id"] for line in worker.lines if line.get("action") == "worker_ready"), None)


def _last_actions(worker: Program) -> dict[str, str]:
    """The last that the worker said of each job."""
    return {line["job_id"]: line["action"] for line in worker.lines if str(line.get("action")).startswith("job_")}


async def feed(pool: asyncpg.Pool, wanted: int, until: Callable[[], bool]) -> None:
    """Queue so many jobs whenever none is left, after a while without, and keep all due; in the end only that."""
    number = 0
    moments = random.Random(wanted)
    while True:
        await skip_backoff(pool)
        await pool.execute(SPARE, SPARED_FROM)
        if not until() and not await pool.fetchval(
            "SELECT EXISTS (SELECT FROM generation_jobs WHERE status = 'queued')"
        ):
            await asyncio.sleep(moments.uniform(0, DRY_SECONDS))
            rows = [
                (f"A phoenix, take {n} [slow 0.03]", 1 + n % 2, 512, 512, 20) for n in range(number, number + wanted)
            ]
            columns = ["prompt", "count", "width", "height", "max_attempts"]
            await pool.copy_records_to_table("generation_jobs", records=rows, columns=columns)
            number += wanted
        await asyncio.sleep(FEED_SECONDS)


@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        pytest.param(2, 12, id="short"),
        pytest.param(2, 400, id="two_workers", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
        pytest.param(4, 600, id="four_workers", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
async def test_kills_at_every_stage(
    workers: int, kills: int, start: Start, pool: asyncpg.Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / ".tenkaigen" / "files"
    began = time.monotonic()
    await keep_history(pool)
    hunt = Hunt(start, pool, root / "anonymous", kills)
    feeding = asyncio.create_task(feed(pool, 6 * workers, until=lambda: len(hunt.workers) == workers))
    try:
        await asyncio.gather(*(hunt.stalk(seed) for seed in range(workers)))
        for worker in hunt.workers:
            await worker.until("worker_ready")
        await until_none_open(pool)
        await until_none_marked(pool)
    finally:
        feeding.cancel()

    # In order, so that nobody is still removing what a lost lease left.
    for worker in hunt.workers:
        worker.process.terminate()
        assert await worker.wait() == 0
    rows = await pool.fetch("SELECT * FROM generation_jobs")
    history = await history_of(pool)
    left = unnamed(rows, root)
    with capsys.disabled():
        print(f"\n{table(hunt, workers)}")
        print(f"{len(rows)} jobs, {len(left)} files left over, {time.monotonic() - began:.0f} s")

    assert not [process.pid for process in psutil.process_iter() if _works_in(process, tmp_path)], "no child is left"
    assert {row["status"] for row in rows} == {"completed"}
    check_attempts(rows, history, hunt)
    check_files(rows, root)
    assert left == [], "every stored file is named by a row"
    assert sum(hunt.hits.values()) == kills
    if kills >= 400:
        assert {stage for _, stage in hunt.hits} >= LONG_STAGES


def check_attempts(rows: list[asyncpg.Record], history: dict[UUID, list[Change]], hunt: Hunt) -> None:
    """Every claim but the last was ended by a kill, or the job was given back with its attempt."""
    blamed_on_engine: Counter[str] = Counter()
    for row in rows:
        changes = history[row["id"]]
        assert [change.after for change in changes].count("completed") == 1
        claims = [change for change in changes if change.after == "processing"]
        releases = [change for change in changes if change.released]
        assert [claim.lease_token for claim in claims] == list(range(1, row["lease_token"] + 1))
        assert row["lease_token"] - len(releases) == row["attempt"]
        for change in changes:
            if change.before != "processing" or change.after == "completed" or change.released:
                continue
            if change.error_code == "worker_lost":
                assert change.worker_id in hunt.killed_workers, f"nobody killed the worker that lost {change}"
            else:
                assert change.error_code in ENGINE_CODES, change
                blamed_on_engine[change.worker_id] += 1
    assert blamed_on_engine <= hunt.killed_engines, "an engine failed that nobody had killed"


def check_files(rows: list[asyncpg.Record], root: Path) -> None:
    """All files that rows name are there, and each is a whole picture."""
    for row in rows:
        for output in row["outputs"]:
            with Image.open(root / output["key"]) as picture:
                picture.load()
                assert picture.format == "PNG"


def unnamed(rows: list[asyncpg.Record], root: Path) -> list[str]:
    """The files that no row names."""
    return sorted({str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - keys_of(*rows))


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder)
    except psutil.Error:
        return False


def table(hunt: Hunt, workers: int) -> str:
    """How many kills hit each stage."""
    lines = [f"| {workers} workers: killed while | worker | engine |", "|---|---:|---:|"]
    for stage in STAGES:
        engine: Any = "" if stage in OF_A_WORKER_ONLY else hunt.hits["engine", stage]
        lines.append(f"| {stage} | {hunt.hits['worker', stage]} | {engine} |")
    totals = [sum(n for (victim, _), n in hunt.hits.items() if victim == name) for name in ("worker", "engine")]
    return "\n".join([*lines, f"| all | {totals[0]} | {totals[1]} |"])
