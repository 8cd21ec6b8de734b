"""``migrate``, ``stats`` and ``psql`` as they are called."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import asyncpg
import psutil
import pytest

from tenkaigen_worker.access import digest_of
from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.connect import open_pool
from tenkaigen_worker.database.workers import PostgresWorkers
from tenkaigen_worker.offers import WorkerState
from tests.unit.examples import WORKER

# A test that hangs must end some time; nothing is measured with this.
PATIENCE_SECONDS = 60.0

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Run a command in an empty folder on the given database; settings are given as environment."""

    def call(dsn: str, *arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tenkaigen_worker", *arguments],
            cwd=tmp_path,
            env={**os.environ, "TENKAIGEN_DATABASE__URL": dsn, "COLUMNS": "100", **environ},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    return call


async def test_migrate_lists_applies_and_is_done(
    server: str, make_database: Callable[..., Awaitable[str]], call: Call
) -> None:
    empty = await make_database(server)

    listed = call(empty, "migrate", "--dry-run")
    assert listed.stdout.splitlines()[0] == "would apply 015_create_generation_jobs_table.sql"
    applied = call(empty, "migrate")
    assert applied.stdout == listed.stdout.replace("would apply", "applied")
    assert call(empty, "migrate").stdout == "The database is up to date.\n"


async def test_stats_of_a_database_without_the_table_say_what_to_run(
    server: str, make_database: Callable[..., Awaitable[str]], call: Call
) -> None:
    answer = call(await make_database(server), "stats")

    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == "Error: this database has no job table yet; run: tenkaigen migrate\n"


async def test_stats_for_people_and_for_programs(database: str, call: Call) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute("INSERT INTO generation_jobs (prompt) VALUES ('waits')")
    await connection.execute(
        "INSERT INTO generation_jobs (prompt, status, processing_time_ms, outputs) "
        "SELECT 'is done', 'completed', 9000, jsonb_build_array(jsonb_build_object('bytes', 1500000)) "
        "FROM generate_series(1, 2)"
    )
    await connection.close()

    pool = await open_pool(DatabaseSettings(), database, "tests")
    workers = PostgresWorkers(pool)
    await workers.announce(WORKER)
    await workers.announce(replace(WORKER, worker_id="gpu-2 [rack 7]", state=WorkerState.UNREADY))
    await pool.close()

    told = call(database, "stats", TENKAIGEN_COST__GPU_HOURLY_USD="1.2").stdout
    assert "Jobs of the last 24 hours" in told
    assert "│ completed │ 2    │ 9.0 s        │" in told
    assert "│ queued    │ 1    │              │" in told
    assert "2 pictures, 3.0 MB in storage" in told
    assert "$0.0030 per picture" in told
    assert "│ gpu-1          │ diffusers │ ready   │ quality, 20.0 s per picture │" in told
    assert "│                │           │         │ fast                        │" in told
    assert "│ gpu-2 [rack 7] │ diffusers │ unready │ quality, 20.0 s per picture │" in told

    counted = json.loads(call(database, "stats", "--json", "--hours", "1").stdout)
    assert counted["jobs"] == {
        "completed": {"count": 2, "average_ms": 9000},
        "queued": {"count": 1, "average_ms": None},
    }
    assert (counted["pictures"], counted["storage_bytes"], counted["gpu_seconds"]) == (2, 3_000_000, 18)
    assert (counted["hours"], counted["usd_per_picture"]) == (1, None)
    assert [worker["id"] for worker in counted["workers"]] == ["gpu-1", "gpu-2 [rack 7]"]
    assert counted["workers"][0] == {
        "id": "gpu-1",
        "host": "gpu",
        "version": "1.0",
        "backend": "diffusers",
        "model": "Qwen/Qwen-Image",
        "demo": False,
        "state": "ready",
        "styles": ["Anime", "Standard"],
        "modes": ["quality", "fast"],
        "picture_ms": {"quality": 20_000},
    }


async def test_stats_of_an_empty_table(database: str, call: Call) -> None:
    told = call(database, "stats").stdout
    assert told.endswith("No worker is live.\n")
    assert told.startswith("No jobs in the last 24 hours.\n0 pictures, 0 bytes in storage\n")


async def test_an_unreachable_database_is_one_line(call: Call) -> None:
    for command in ("migrate", "stats"):
        answer = call("postgresql://me:k4ngaroo@127.0.0.1:1/shop", command)

        assert answer.returncode == 1
        assert answer.stderr.startswith("Error: the database cannot be reached (host 127.0.0.1, port 1, database shop")
        assert answer.stderr.count("\n") == 1
        assert "k4ngaroo" not in answer.stderr


async def test_psql_runs_a_command_and_passes_its_status_on(database: str, call: Call) -> None:
    answer = call(database, "psql", "-At", "-c", "INSERT INTO generation_jobs (prompt) VALUES ('x') RETURNING status")
    assert (answer.returncode, answer.stdout.split()[0]) == (0, "queued")

    failed = call(database, "psql", "-v", "ON_ERROR_STOP=1", stdin="SELECT 1 / 0;")
    assert failed.returncode == 3
    assert "division by zero" in failed.stderr


async def test_psql_gets_the_password_by_its_environment_alone(call: Call, tmp_path: Path) -> None:
    told = tmp_path / "told"
    fake = tmp_path / "bin" / "psql"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$PGPASSWORD" "$@" > {told}\nexit 7\n')
    fake.chmod(0o755)

    answer = call(
        "postgresql://me:p%40ss@db.example/shop?sslmode=require",
        *("psql", "-c", "SELECT 1"),
        PATH=f"{fake.parent}:{os.environ['PATH']}",
    )

    assert answer.returncode == 7
    assert told.read_text() == "p@ss --dbname postgresql://me@db.example/shop?sslmode=require -c SELECT 1\n"


@pytest.mark.parametrize("command", ["migrate", "psql", "stats"])
def test_every_help_has_an_example(call: Call, command: str) -> None:
    assert f"  Example:\n    tenkaigen {command}" in call("embedded", command, "--help").stdout


def test_a_psql_that_is_told_to_end_takes_the_embedded_server_with_it(state_dir: Path) -> None:
    state = state_dir / "state"
    process = subprocess.Popen(
        [sys.executable, "-m", "tenkaigen_worker", "psql", "-c", r"\echo here", "-c", "SELECT pg_sleep(600)"],
        cwd=state_dir,
        env={**os.environ, "TENKAIGEN_DATABASE__URL": "embedded", "TENKAIGEN_STATE_DIR": str(state)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            family = psutil.Process(process.pid).children(recursive=True)
            assert list(state.rglob("postmaster.pid"))
            process.terminate()
            _, said = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()

    assert (process.returncode, said.splitlines()[-1]) == (130, "Stopped.")
    assert not [member for member in family if member.is_running()]
    assert not list(state.rglob("postmaster.pid"))


async def test_embedded_psql_is_the_servers_own(state_dir: Path, call: Call) -> None:
    answer = call("embedded", "psql", "-At", "-c", r"\l", TENKAIGEN_STATE_DIR=str(state_dir / "state"))

    assert answer.returncode == 0, answer.stderr
    assert "template0" in answer.stdout
    shutil.rmtree(state_dir / "state")


async def test_keys_are_made_shown_once_and_revoked(database: str, call: Call) -> None:
    made = call(database, "keys", "create", "back-office", "--scope", "submit", "--scope", "read", "--days", "30")
    key = made.stdout.strip()
    assert digest_of(key) is not None
    assert "cannot be shown again" in made.stderr
    again = call(database, "keys", "create", "back-office", "--scope", "read")
    assert (again.returncode, again.stderr.count("revoke it first")) == (1, 1)
    assert "Traceback" not in again.stderr

    connection = await asyncpg.connect(database)
    (row,) = await connection.fetch("SELECT * FROM generation_api_keys")
    assert row["sha256"] == hashlib.sha256(key.encode()).digest()
    assert key not in str(row)
    await connection.close()

    listed = call(database, "keys", "list").stdout
    assert "back-office" in listed
    assert "submit, read" in listed
    assert "never" in listed
    assert key[4:20] not in listed
    assert call(database, "keys", "revoke", "back-office").stdout == "Revoked back-office.\n"
    assert call(database, "keys", "revoke", "back-office").returncode == 1
    assert "revoked" in call(database, "keys", "list").stdout
