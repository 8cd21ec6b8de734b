"""Pictures go to Supabase Storage through every fault it has: each is made once, and arrives once, to the byte."""

from __future__ import annotations

import io
import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from PIL import Image

from tests.scenarios.program import PATIENCE_SECONDS, Program, Start
from tests.scenarios.rows import until_none_open
from tests.scenarios.test_up import free_port
from tests.supabase_storage import PASSING, SECRET_KEY, StandIn

BUCKET = "generated-designs"
FAILING = 0.2
# Flat pictures would be files of a few hundred bytes. Noise does not get smaller: three bytes a pixel.
NOISE = """
import random
from PIL import Image
from tenkaigen_worker.plugin import hookimpl

@hookimpl
def process_image(image, info):
    return Image.frombytes("RGB", image.size, random.Random(info.seed).randbytes(3 * image.width * image.height))
"""
# From 0.2 to 3 MB.
SIDES = (272, 1008)
# The program's own: a worker that starves on a busy machine keeps its jobs, and only storage may cost an attempt.
LEASES = {"TENKAIGEN_WORKER__LEASE_SECONDS": "60", "TENKAIGEN_WORKER__HEARTBEAT_SECONDS": "20"}


def noise(size: tuple[int, int], seed: int) -> bytes:
    return random.Random(seed).randbytes(3 * size[0] * size[1])


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    folder = tmp_path / "noise"
    folder.mkdir()
    (folder / "noise.py").write_text(NOISE)
    return folder


async def queue(pool: asyncpg.Pool, jobs: int, pictures: int) -> None:
    """Queue jobs of all sizes."""
    sizes = random.Random(jobs)
    rows = [
        (f"A phoenix, take {number}", pictures, *(sizes.randrange(SIDES[0], SIDES[1] + 1, 16) for _ in "wh"))
        for number in range(jobs)
    ]
    columns = ["prompt", "count", "width", "height"]
    await pool.copy_records_to_table("generation_jobs", records=rows, columns=columns)


@pytest.mark.parametrize(
    ("workers", "jobs", "pictures"),
    [
        pytest.param(2, 8, 3, id="short"),
        pytest.param(3, 1250, 8, id="ten_thousand", marks=[pytest.mark.soak, pytest.mark.timeout(7200)]),
    ],
)
async def test_every_picture_arrives_once(
    workers: int,
    jobs: int,
    pictures: int,
    start: Start,
    pool: asyncpg.Pool,
    plugins: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = jobs < 100
    began = time.monotonic()
    async with StandIn(failing=FAILING, seed=jobs, remembers=short).serving() as server:
        server.script.extend(PASSING)
        environ = {**server.environ, **LEASES, "TENKAIGEN_PLUGINS__PATHS": f"[{plugins}]"}
        ports = [free_port() for _ in range(workers)]
        programs = [await start("worker", **environ, TENKAIGEN_WORKER__HEALTH_PORT=port) for port in ports]
        for program in programs:
            await program.until("worker_ready")
        await queue(pool, jobs, pictures)
        await until_none_open(pool, patience=PATIENCE_SECONDS if short else 7000)

        rows = await pool.fetch("SELECT * FROM generation_jobs")
        check_once(rows, programs, server)
        check_files(rows, server, look_inside=short)
        if short:
            await check_nothing_told(pool, programs, ports, tmp_path)
        with capsys.disabled():
            print(f"\n{table(server, rows)}\n{time.monotonic() - began:.0f} s")
        assert {*server.met} == {*PASSING}, "every fault was met"


def check_once(rows: list[asyncpg.Record], programs: list[Program], server: StandIn) -> None:
    """No job was lost, tried or generated a second time, and no file written twice.

    One that was claimed ahead may have been given back unbegun, while storage was slower than the engine.
    """
    assert Counter((row["status"], row["attempt"]) for row in rows) == {("completed", 1): len(rows)}
    said = Counter(line.get("action") for program in programs for line in program.lines)
    assert said["job_generating"] == said["job_completed"] == len(rows)
    assert set(server.written.values()) == {1}


def check_files(rows: list[asyncpg.Record], server: StandIn, *, look_inside: bool) -> None:
    """There are the files that rows name and no others, and they are what was made, to the byte."""
    objects = dict(server.objects())
    named = set()
    for output in (output for row in rows for output in row["outputs"]):
        key, small = f"{BUCKET}/{output['key']}", f"{BUCKET}/{output['thumbnail_key']}"
        named |= {key, small}
        kept = objects[key]
        assert (kept.sha256, kept.size) == (output["sha256"], output["bytes"])
        assert 200_000 < kept.size < 3_200_000
        assert (kept.mimetype, objects[small].mimetype) == ("image/png", "image/webp")
        assert output["url"] == f"{server.url}/storage/v1/object/public/{key}"
        assert output["thumbnail_url"] == f"{server.url}/storage/v1/object/public/{small}"
        if look_inside:
            look(output, kept.data, objects[small].data)
    assert named == set(objects)


def look(output: Mapping[str, Any], png: bytes | None, webp: bytes | None) -> None:
    assert png is not None
    assert webp is not None
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.tobytes() == noise(picture.size, output["seed"])
        longest = max(picture.size)
    with Image.open(io.BytesIO(webp)) as small:
        assert max(small.size) == min(longest, 512)


async def check_nothing_told(pool: asyncpg.Pool, programs: list[Program], ports: list[str], folder: Path) -> None:
    """The key to storage is in nothing that a run has written, though gateways repeated it in their pages."""
    told = ["".join(program.raw) for program in programs]
    async with aiohttp.ClientSession() as session:
        for port in ports:
            for path in ("metrics", "healthz", "readyz"):
                async with session.get(f"http://127.0.0.1:{port}/{path}") as answer:
                    told.append(await answer.text())
    for name in await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        told.append(await pool.fetchval(f'SELECT coalesce(json_agg(t)::text, $$$$) FROM "{name[0]}" AS t'))
    told += files_in(folder)
    assert "A phoenix" in "".join(told)
    assert not [text for text in told if SECRET_KEY in text]


def files_in(folder: Path) -> list[str]:
    return [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]


def table(server: StandIn, rows: list[asyncpg.Record]) -> str:
    outputs = [output for row in rows for output in row["outputs"]]
    size = sum(output["bytes"] for output in outputs)
    lines = ["| what storage did | requests |", "|---|---:|"]
    lines += [f"| {fault.name} | {server.met[fault]} |" for fault in PASSING]
    lines += [f"| all faults | {server.met.total()} of {len(server.requests)} |"]
    return "\n".join([*lines, f"{len(outputs)} pictures, {size / 1e6:.0f} MB"])


async def test_what_went_wrong_is_told_without_the_key(start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    """A storage that refuses for good, a command that looks into it, and an API: each says why, and not with what."""
    async with StandIn().serving() as server:
        server.keys = {"sb_secret_a_newer_one"}
        environ = {**server.environ, "TENKAIGEN_WORKER__PUBLISH_SECONDS": "0.5"}
        worker = await start("worker", **environ)
        await pool.execute("INSERT INTO generation_jobs (prompt, max_attempts) VALUES ('A phoenix rising', 1)")
        await worker.until("job_failed")
        row = await pool.fetchrow("SELECT * FROM generation_jobs")
        assert row["error_code"] == "upload_failed"
        assert "TENKAIGEN_STORAGE__SUPABASE__SECRET_KEY" in row["error_message"]

        port = free_port()
        api = await start("api", **environ, TENKAIGEN_API__PORT=port)
        await api.until("api_started")
        async with aiohttp.ClientSession() as session:
            form = aiohttp.FormData()
            form.add_field("file", _png(), filename="a.png")
            async with session.post(f"http://127.0.0.1:{port}/api/uploads", data=form) as answer:
                assert answer.status == 503
                problem = await answer.text()

        doctor, config = await start("doctor", **environ), await start("config", **environ)
        assert await doctor.wait() == 1
        assert await config.wait() == 0
        for program in (doctor, config):
            await program.close()
        assert "403 Invalid Compact JWS" in "".join(doctor.raw)
        assert "SUPABASE_SECRET_KEY" in "".join(config.raw)
        said = [problem, str(dict(row)), *("".join(program.raw) for program in (worker, api, doctor, config))]
        assert not [text for text in said if SECRET_KEY in text]


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()
