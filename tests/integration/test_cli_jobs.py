"""``submit``, ``status``, ``cancel`` and ``api`` on a real job table."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import aiohttp
import asyncpg
import pytest

from tenkaigen_worker.storage.local import LocalStorage
from tests.unit.pictures import gradient


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended, and what it said."""

    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Awaitable[Result]]
Start = Callable[..., Awaitable[asyncio.subprocess.Process]]
FirstJob = Callable[[], Awaitable[UUID]]

# A test that hangs must end some time; nothing is measured with this.
PATIENCE_SECONDS = 60.0

COMPLETE = """
    UPDATE generation_jobs SET status = 'completed', progress = 1, result_url = 'http://x', outputs = $2,
        completed_at = now() WHERE id = $1
"""
FAIL = "UPDATE generation_jobs SET status = 'failed', error_code = 'refused', error_message = 'not this' WHERE id = $1"


@pytest.fixture
def environ(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENKAIGEN_DATABASE__URL", database)
    return dict(os.environ)


@pytest.fixture
async def start(environ: dict[str, str]) -> AsyncIterator[Start]:
    """Start a command as a process; what still runs when the test is over is killed."""
    started: list[asyncio.subprocess.Process] = []

    async def start(*arguments: str, **settings: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tenkaigen_worker", *arguments),
            env={**environ, "TENKAIGEN_LOG__FORMAT": "json", **settings},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until_ended(process: asyncio.subprocess.Process, stdin: str | None = None) -> tuple[str, str]:
    """What a process still said on stdout and stderr before it ended."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        out, err = await process.communicate(stdin and stdin.encode())
    return out.decode(), err.decode()


@pytest.fixture
def run(start: Start) -> Run:
    """Run a command to its end."""

    async def run(*arguments: str, stdin: str | None = None, **settings: str) -> Result:
        process = await start(*arguments, **settings)
        out, err = await until_ended(process, stdin)
        assert process.returncode is not None
        return Result(process.returncode, out, err)

    return run


@pytest.fixture
async def first_job(pool: asyncpg.Pool) -> AsyncIterator[FirstJob]:
    """Wait until a job is queued, and answer its id."""
    queued = asyncio.Event()

    async def first_job() -> UUID:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await queued.wait()
        [row] = await jobs(pool)
        job_id: UUID = row["id"]
        return job_id

    async with pool.acquire() as connection:
        await connection.add_listener("generation_jobs", lambda *_: queued.set())
        yield first_job
        await connection.reset()


async def jobs(pool: asyncpg.Pool) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await pool.fetch("SELECT * FROM generation_jobs ORDER BY seq")
    return rows


def output_of(key: str) -> dict[str, object]:
    return {"index": 0, "key": key, "url": "http://x", "width": 64, "height": 64, "bytes": 3, "sha256": "", "seed": 1}


async def test_submit_prints_the_id_of_the_row(run: Run, pool: asyncpg.Pool) -> None:
    options = ("--style", "line_art", "--width", "512", "--seed", "7", "--count", "2", "--negative", "text")
    result = await run("submit", "A fox", *options)
    assert result.exit_code == 0, result.stderr
    [row] = await jobs(pool)
    assert UUID(result.stdout.strip()) == row["id"]
    asked = [row[name] for name in ("prompt", "style", "width", "seed", "count", "negative_prompt", "height")]
    assert asked == ["A fox", "Line Art", 512, 7, 2, "text", None]


async def test_submit_uploads_files(run: Run, pool: asyncpg.Pool, tmp_path: Path) -> None:
    gradient(32, 32).save(tmp_path / "fox.png")
    variables = ("--template", "Sticker", "--var", "mood=sad", "--var", "colors=a=b")
    result = await run("submit", "A fox", "--reference", "fox.png", *variables, "--strength", "0.5")
    assert result.exit_code == 0, result.stderr
    [row] = await jobs(pool)
    assert (row["template"], row["template_variables"]) == ("Sticker", {"mood": "sad", "colors": "a=b"})
    assert row["strength"] == 0.5
    key = f"uploads/anonymous/{row['reference'].removeprefix('upload:')}.png"
    assert (tmp_path / ".tenkaigen" / "files" / key).is_file()

    (tmp_path / "fox.png").write_bytes(b"no picture")
    result = await run("submit", "A fox", "--reference", "fox.png")
    assert result.exit_code == 2
    assert "--reference: fox.png:" in result.stderr
    assert len(await jobs(pool)) == 1


async def test_submit_takes_several_references(run: Run, pool: asyncpg.Pool, tmp_path: Path) -> None:
    for name in ("fox", "coat"):
        gradient(32, 32).save(tmp_path / f"{name}.png")
    job = "job:3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11/0"
    result = await run("submit", "The fox in it", *(f"--reference={name}" for name in ("fox.png", job, "coat.png")))
    assert result.exit_code == 0, result.stderr
    [row] = await jobs(pool)
    assert row["more_references"][0] == job
    uploads = [row["reference"], row["more_references"][1]]
    assert len(set(uploads)) == 2
    for upload in uploads:
        key = f"uploads/anonymous/{upload.removeprefix('upload:')}.png"
        assert (tmp_path / ".tenkaigen" / "files" / key).is_file()


async def test_submit_says_which_limit_is_reached(run: Run, pool: asyncpg.Pool) -> None:
    await pool.execute("UPDATE generation_settings SET max_queued_per_user = 1")
    await pool.execute(f"ALTER TABLE generation_jobs ALTER COLUMN user_id SET DEFAULT '{UUID(int=7)}'")

    result = await run("submit", "--file", "-", stdin="A fox\nA heron\n")

    assert (result.exit_code, len(result.stdout.split())) == (1, 1)
    words = f"user {UUID(int=7)} may have at most 1 jobs queued; try again in 60 seconds"
    assert result.stderr.splitlines()[-1] == f"Error: {words}"
    assert len(await jobs(pool)) == 1


@pytest.mark.parametrize("file", ["prompts.txt", "-"])
async def test_submit_takes_a_file_of_prompts(run: Run, pool: asyncpg.Pool, file: str, tmp_path: Path) -> None:
    prompts = "# animals\nA fox\n\n   A 狐 [bold]  \n"
    (tmp_path / "prompts.txt").write_text(prompts, encoding="utf-8")
    result = await run("submit", "--file", file, "--style", "Anime", stdin=prompts)
    assert result.exit_code == 0, result.stderr
    rows = await jobs(pool)
    assert [(row["prompt"], row["style"]) for row in rows] == [("A fox", "Anime"), ("A 狐 [bold]", "Anime")]
    assert result.stdout.split() == [str(row["id"]) for row in rows]


async def test_a_wrong_line_queues_nothing(run: Run, pool: asyncpg.Pool) -> None:
    result = await run("submit", "--file", "-", stdin="A fox\n" + "x" * 4001)
    assert result.exit_code == 1
    assert await jobs(pool) == []


async def test_wait_ends_with_the_pictures(
    start: Start, pool: asyncpg.Pool, first_job: FirstJob, tmp_path: Path
) -> None:
    storage = LocalStorage(tmp_path / ".tenkaigen" / "files", "http://x")
    await storage.put("anonymous/a.png", b"PNG", content_type="image/png")

    process = await start("submit", "A fox", "--output", "pictures")
    job_id = await first_job()
    await pool.execute(COMPLETE, job_id, [output_of("anonymous/a.png")])

    place = Path("pictures") / f"{job_id}-0.png"
    assert await until_ended(process) == (f"{place}\n", "")
    assert process.returncode == 0
    assert (tmp_path / place).read_bytes() == b"PNG"


async def test_wait_says_why_a_job_failed(start: Start, pool: asyncpg.Pool, first_job: FirstJob) -> None:
    process = await start("submit", "A fox", "--wait")
    job_id = await first_job()
    await pool.execute(FAIL, job_id)
    assert await until_ended(process) == ("", f"{job_id} failed: not this\n")
    assert process.returncode == 1


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_waiting_leaves_the_job(
    start: Start, pool: asyncpg.Pool, first_job: FirstJob, ending: signal.Signals
) -> None:
    process = await start("submit", "A fox", "--wait")
    job_id = await first_job()
    process.send_signal(ending)
    _, said = await until_ended(process)
    assert process.returncode == 130
    assert said.startswith("No longer waiting. What is queued goes on")
    assert [(row["id"], row["status"]) for row in await jobs(pool)] == [(job_id, "queued")]


async def test_status_shows_the_row(run: Run, pool: asyncpg.Pool) -> None:
    job_id = (await run("submit", "A fox", "--seed", "0")).stdout.strip()
    await pool.execute(FAIL, UUID(job_id))
    shown = (await run("status", job_id)).stdout
    for words in (job_id, "failed", "A fox", "refused", "not this", "seed                0"):
        assert words in shown
    assert "None" not in shown
    body = json.loads((await run("status", job_id, "--json")).stdout)
    assert (body["jobId"], body["status"], body["error_code"], body["seed"]) == (job_id, "failed", "refused", 0)


async def test_status_shows_the_url_of_a_picture_once(run: Run, pool: asyncpg.Pool) -> None:
    job_id = (await run("submit", "A fox")).stdout.strip()
    await pool.execute(COMPLETE, UUID(job_id), [output_of("anonymous/a.png")])
    assert (await run("status", job_id)).stdout.count("http://x") == 1


async def test_cancel_says_what_became_of_it(run: Run, pool: asyncpg.Pool) -> None:
    first = (await run("submit", "A fox")).stdout.strip()
    assert (await run("cancel", first)).stdout == f"{first} canceled\n"
    assert json.loads((await run("status", first, "--json")).stdout)["status"] == "canceled"

    second = (await run("submit", "A fox")).stdout.strip()
    await pool.execute("UPDATE generation_jobs SET status = 'processing' WHERE id = $1", UUID(second))
    assert "ends as soon as" in (await run("cancel", second)).stdout


@pytest.mark.parametrize("command", ["status", "cancel"])
async def test_a_job_that_is_not_there(run: Run, command: str) -> None:
    result = await run(command, "3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11")
    assert result.exit_code == 1
    assert result.stderr == "Error: there is no job 3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11\n"


async def test_an_embedded_database_without_the_table_leads_to_up(run: Run, state_dir: Path) -> None:
    embedded = {"TENKAIGEN_DATABASE__URL": "embedded", "TENKAIGEN_STATE_DIR": str(state_dir / "state")}
    result = await run("submit", "A fox", **embedded)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "run: tenkaigen up" in result.stderr
    assert "tenkaigen migrate" in result.stderr


# The API as a process

ANY_PORT = {"TENKAIGEN_API__PORT": "0", "TENKAIGEN_STORAGE__LOCAL__PUBLIC_URL": "http://127.0.0.1/files"}


async def until_started(process: asyncio.subprocess.Process) -> str:
    """Wait until the API listens, and answer its URL."""
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for line in process.stderr:
            said = json.loads(line)
            if said["action"] == "api_started":
                url: str = said["url"]
                return url
    raise AssertionError("the API never listened")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, None], ids=["SIGTERM", "SIGINT", "stdin"])
async def test_the_api_serves_until_it_is_told_to_stop(start: Start, ending: signal.Signals | None) -> None:
    watched = [] if ending else ["--until-stdin-closes"]
    process = await start("api", *watched, **ANY_PORT)
    url = await until_started(process)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/readyz") as response:
            assert response.status == 200
        async with session.post(f"{url}/api/generate", json={"prompt": "A fox"}) as response:
            assert response.status == 202
        if ending:
            process.send_signal(ending)
        else:
            process.stdin.close()  # type: ignore[union-attr]
        _, rest = await until_ended(process)
    assert process.returncode == 0
    assert "Traceback" not in rest


async def test_a_port_in_use_is_one_line(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = await start("api", TENKAIGEN_API__PORT=str(port))
        _, said = await until_ended(process)
    assert process.returncode == 1
    assert said.startswith(f"Error: cannot listen on 127.0.0.1:{port}: something listens there already")
    assert said.count("\n") == 1


async def test_another_address_is_refused_in_one_line(start: Start) -> None:
    process = await start("api", TENKAIGEN_API__HOST="0.0.0.0")
    _, said = await until_ended(process)
    assert process.returncode == 1
    assert said.startswith("Error: api.host: 0.0.0.0 can be reached from other machines")
    assert said.count("\n") == 1
