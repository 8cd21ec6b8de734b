"""``tenkaigen up`` starts everything, serves the shop's pages, and takes everything with it when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import socket
from pathlib import Path

import aiohttp
import asyncpg
import psutil
import pytest

from tests.scenarios.program import PATIENCE_SECONDS, Program, Start
from tests.scenarios.rows import insert

UP = {"TENKAIGEN_DATABASE__URL": "embedded"}


async def until_up(program: Program) -> str:
    """Wait for the three lines and answer the API's URL."""
    line = await program.until_line(re.compile(r"^API +(http://\S+)$"))
    await program.until_line(re.compile("^Try +tenkaigen psql"))
    return line[1]


def free_port() -> str:
    """Find a port that is free, below those that the system gives to connections: none takes it before it is used."""
    while True:
        port = random.randrange(10_000, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return str(port)


async def test_a_picture_by_the_shops_two_routes(start: Start, state_dir: Path) -> None:
    program = await start(
        "up",
        **UP,
        TENKAIGEN_STATE_DIR=str(state_dir),
        TENKAIGEN_ENGINE__BACKEND="tiny",
        TENKAIGEN_ENGINE__THREADS="1",
        TENKAIGEN_API__PORT=free_port(),
        TENKAIGEN_STORAGE__LOCAL__PUBLIC_URL="",
    )
    url = await until_up(program)
    async with aiohttp.ClientSession() as page, asyncio.timeout(PATIENCE_SECONDS):
        asked = {"prompt": "A cyberpunk samurai", "style": "Anime", "width": 256, "height": 256, "seed": 42, "cart": 7}
        async with page.post(f"{url}/api/generate", json=asked) as answer:
            assert answer.status == 202
            job = await answer.json()
        assert job.keys() == {"jobId", "status"}
        assert job["status"] == "queued"

        while job["status"] not in ("completed", "failed"):
            async with page.get(f"{url}/api/generate/status/{job['jobId']}") as answer:
                job = await answer.json()
            assert job["status"] in ("queued", "processing", "completed")
        async with page.get(job["result_url"]) as picture:
            assert picture.content_type == "image/png"
            assert "immutable" in picture.headers["Cache-Control"]
            assert (await picture.read()).startswith(b"\x89PNG")

    family = psutil.Process(program.pid).children(recursive=True)
    program.process.send_signal(signal.SIGINT)
    assert await program.wait() == 0
    assert not [process for process in family if process.is_running()]


async def test_a_killed_supervisor_leaves_neither_api_nor_worker(start: Start, database: str) -> None:
    program = await start("up", TENKAIGEN_API__PORT=free_port())
    await until_up(program)
    family = psutil.Process(program.pid).children(recursive=True)
    assert len(family) == 3, "the API, the worker and its engine"

    program.kill()
    await program.wait()
    _, left = await asyncio.to_thread(psutil.wait_procs, family, timeout=PATIENCE_SECONDS)
    assert not left


async def test_a_second_ctrl_c_gives_the_job_in_hand_back(start: Start, pool: asyncpg.Pool) -> None:
    program = await start("up", TENKAIGEN_API__PORT=free_port())
    await until_up(program)
    job_id = await insert(pool, "A phoenix rising [slow 60]")
    await program.until("job_generating")

    program.process.send_signal(signal.SIGINT)
    await program.until("finishing")
    program.process.send_signal(signal.SIGINT)
    assert await program.wait() == 0
    row = await pool.fetchrow("SELECT status, attempt FROM generation_jobs WHERE id = $1", job_id)
    assert (row["status"], row["attempt"]) == ("queued", 0)


async def test_a_worker_that_dies_is_started_again(start: Start) -> None:
    program = await start("up", TENKAIGEN_API__PORT=free_port())
    await until_up(program)
    await program.until("worker_ready")
    (worker,) = [child for child in psutil.Process(program.pid).children() if "worker" in child.cmdline()]
    worker.kill()
    await program.until("process_died")
    await program.until("worker_ready", times=2)


@pytest.mark.parametrize("setting", ["API__PORT", "WORKER__HEALTH_PORT"])
async def test_a_stranger_on_our_port_is_not_taken_for_us(setting: str, start: Start) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        program = await start("up", **{f"TENKAIGEN_{setting}": str(port)})
        assert await program.wait() == 1
    await program.close()
    assert str(port) in "".join(program.raw)
    assert "never retrieved" not in "".join(program.raw)
    assert not [line for line in program.raw if line.startswith("API ")]
