"""The front door over a real job table, as the shop's pages and an operator use it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp.test_utils import TestClient, TestServer

from tenkaigen_worker.api.app import make_app
from tenkaigen_worker.api.offers import Offers
from tenkaigen_worker.api.parts import Parts
from tenkaigen_worker.config import Settings
from tenkaigen_worker.database.api_keys import ApiKeys
from tenkaigen_worker.database.connect import open_pool
from tenkaigen_worker.database.migrate import check_schema
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.database.workers import PostgresWorkers
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.references.uploads import Uploads
from tenkaigen_worker.storage.local import LocalStorage
from tests.unit.examples import WORKER

# Whatever else the shop's pages send is theirs.
FOX = {"prompt": "A fox", "style": "anime", "width": 512, "height": "768", "seed": 7, "productId": "tee-1"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"state_dir": tmp_path, "plugins": {"paths": [tmp_path / "plugins"]}})


@pytest.fixture
def storage(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.state_dir / "files", "http://127.0.0.1:8000/files")


@pytest.fixture
def plugin_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir()
    return folder


def client_of(pool: asyncpg.Pool, settings: Settings, storage: LocalStorage) -> TestClient[Any, Any]:
    plugins = Plugins.load(settings.plugins)
    uploads = Uploads(storage, settings.references)
    offers = Offers(PostgresWorkers(pool), plugins, settings.generation)
    parts = Parts(Submissions(pool), storage, uploads, plugins, offers, partial(check_schema, pool), ApiKeys(pool))
    return TestClient(TestServer(make_app(parts, settings.api)))


@pytest.fixture
async def client(
    pool: asyncpg.Pool, settings: Settings, storage: LocalStorage, plugin_folder: Path
) -> AsyncIterator[TestClient[Any, Any]]:
    async with client_of(pool, settings, storage) as client:
        yield client


async def generate(client: TestClient, body: object = FOX, **headers: str) -> str:
    response = await client.post("/api/generate", json=body, headers=headers)
    assert response.status == 202, await response.text()
    job_id: str = (await response.json())["jobId"]
    return job_id


async def status(client: TestClient, job_id: str) -> dict[str, Any]:
    response = await client.get(f"/api/generate/status/{job_id}")
    assert response.status == 200
    body: dict[str, Any] = await response.json()
    return body


async def refused(response: Any) -> tuple[int, str]:
    body = await response.json(content_type="application/problem+json")
    return response.status, body["code"]


async def test_a_request_becomes_a_row(client: TestClient, pool: asyncpg.Pool) -> None:
    job_id = await generate(client)
    row = await pool.fetchrow("SELECT * FROM generation_jobs WHERE id = $1", job_id)
    asked = {name: row[name] for name in ("prompt", "style", "width", "height", "seed", "status", "user_id")}
    assert asked == {
        "prompt": "A fox", "style": "Anime", "width": 512, "height": 768, "seed": 7, "status": "queued", "user_id": None
    }  # fmt: skip
    body = await status(client, job_id)
    assert (body["status"], body["progress"], body["result_url"], body["seed"]) == ("queued", 0, None, 7)


async def test_the_same_key_is_the_same_job(client: TestClient, pool: asyncpg.Pool) -> None:
    same = {**FOX, "style": "ANIME", "height": 768, "productId": "mug-2"}
    ids = await asyncio.gather(*(generate(client, body, **{"Idempotency-Key": "k1"}) for body in (FOX, same) * 4))
    assert len(set(ids)) == 1
    assert await generate(client, **{"Idempotency-Key": "k2"}) not in ids
    assert await pool.fetchval("SELECT count(*) FROM generation_jobs") == 2

    other = await client.post("/api/generate", json={**FOX, "seed": 8}, headers={"Idempotency-Key": "k1"})
    assert await refused(other) == (422, "idempotency_key_reused")


async def test_wrong_requests_leave_no_row(client: TestClient, pool: asyncpg.Pool) -> None:
    wrong = [
        {},
        {"prompt": ""},
        {"prompt": "x" * 4001},
        {"prompt": "A \x00 fox"},
        {"prompt": "A \ud800 fox"},
        {"prompt": ["A fox"]},
        {**FOX, "style": "no such style"},
        {**FOX, "mode": "warp"},
        {**FOX, "width": 65},
        {**FOX, "height": 1_000_000},
        {**FOX, "seed": "many"},
        {**FOX, "seed": 10**30},
        {**FOX, "metadata": {"x": "y" * 20_000}},
    ]
    for body in wrong:
        assert await refused(await client.post("/api/generate", json=body)) == (400, "invalid_request"), body
    assert await pool.fetchval("SELECT count(*) FROM generation_jobs") == 0


async def test_a_job_from_claim_to_picture(client: TestClient, pool: asyncpg.Pool, storage: LocalStorage) -> None:
    job_id = await generate(client)
    claim = """
        UPDATE generation_jobs SET status = 'processing', stage = 'denoise', progress = 0.5, attempt = 1,
            started_at = now() WHERE id = $1
    """
    await pool.execute(claim, job_id)
    body = await status(client, job_id)
    assert (body["status"], body["stage"], body["progress"], body["attempt"]) == ("processing", "denoise", 0.5, 1)

    url = await storage.put(f"anonymous/{job_id}/1-0-abc.png", b"PNG", content_type="image/png")
    output = {"index": 0, "key": f"anonymous/{job_id}/1-0-abc.png", "url": url, "width": 512, "height": 768}
    outputs = [{**output, "bytes": 3, "sha256": "ab", "seed": 7}]
    complete = """
        UPDATE generation_jobs SET status = 'completed', progress = 1, result_url = $2, outputs = $3, recipe = $4,
            processing_time_ms = 1200, completed_at = now() WHERE id = $1
    """
    await pool.execute(complete, job_id, url, outputs, {"demo": True})
    body = await status(client, job_id)
    assert (body["status"], body["progress"], body["processing_time_ms"], body["demo"]) == ("completed", 1, 1200, True)
    assert body["outputs"][0]["url"] == body["result_url"]
    assert body["started_at"] < body["completed_at"]

    picture = await client.get(body["result_url"].removeprefix("http://127.0.0.1:8000"))
    assert (picture.status, picture.content_type, await picture.read()) == (200, "image/png", b"PNG")


async def test_cancel_and_retry(client: TestClient, pool: asyncpg.Pool) -> None:
    job_id = await generate(client)
    assert await refused(await client.post(f"/api/generate/{job_id}/retry")) == (409, "conflict")

    response = await client.post(f"/api/generate/{job_id}/cancel")
    assert response.status == 202
    assert await pool.fetchval("SELECT status FROM generation_jobs WHERE id = $1", job_id) == "canceled"
    body = await status(client, job_id)
    assert (body["status"], body["error_code"]) == ("failed", "canceled")
    assert (await client.post(f"/api/generate/{job_id}/cancel")).status == 202

    response = await client.post(f"/api/generate/{job_id}/retry")
    assert response.status == 202
    again = await response.json()
    assert (again["status"], again["retry_of"]) == ("queued", job_id)
    copy = await status(client, again["jobId"])
    original = await status(client, job_id)
    assert {name: copy[name] for name in ("prompt", "style", "width", "height", "seed")} == {
        name: original[name] for name in ("prompt", "style", "width", "height", "seed")
    }


async def test_cancelling_a_running_job_is_a_request(client: TestClient, pool: asyncpg.Pool) -> None:
    job_id = await generate(client)
    await pool.execute("UPDATE generation_jobs SET status = 'processing' WHERE id = $1", job_id)
    response = await client.post(f"/api/generate/{job_id}/cancel")
    body = await response.json()
    assert (response.status, body["status"], body["cancel_requested"]) == (202, "processing", True)


async def test_styles_follow_the_files(client: TestClient, plugin_folder: Path) -> None:
    names = [style["name"] for style in (await (await client.get("/api/styles")).json())["styles"]]
    assert {"Anime", "Standard"} <= set(names)
    assert "Ukiyo-e" not in names

    (plugin_folder / "ukiyo-e.yaml").write_text('name: Ukiyo-e\nprompt: "{prompt}, woodblock print"\n')
    (plugin_folder / "broken.yaml").write_text("name: [\n")
    body = await (await client.get("/api/styles")).json()
    assert "Ukiyo-e" in [style["name"] for style in body["styles"]]
    assert [problem for problem in body["problems"] if "broken.yaml" in problem]
    await generate(client, {**FOX, "style": "ukiyo_e"})


async def test_a_lost_database_is_503_until_it_is_back(
    database: str, settings: Settings, storage: LocalStorage, plugin_folder: Path
) -> None:
    pool = await open_pool(settings.database, database, "tenkaigen-test")
    async with client_of(pool, settings, storage) as client:
        job_id = await generate(client)
        assert (await client.get("/readyz")).status == 200
        await pool.close()

        for response in (
            await client.post("/api/generate", json=FOX),
            await client.get(f"/api/generate/status/{job_id}"),
            await client.post(f"/api/generate/{job_id}/cancel"),
            await client.post(f"/api/generate/{job_id}/retry"),
        ):
            assert await refused(response) == (503, "database_unavailable")
            assert response.headers["Retry-After"] == "5"
        assert await refused(await client.get("/readyz")) == (503, "not_ready")
        assert (await client.get("/healthz")).status == 200
        assert await refused(await client.post("/api/generate", json={"prompt": ""})) == (400, "invalid_request")


async def test_lost_connections_are_made_again(client: TestClient, pool: asyncpg.Pool) -> None:
    job_id = await generate(client)
    async with pool.acquire() as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND datname = current_database()"
        )
    answers = [(await client.get(f"/api/generate/status/{job_id}")).status for _ in range(5)]
    assert answers[-1] == 200
    assert set(answers) <= {200, 503}


async def test_a_database_without_the_table_is_not_ready(client: TestClient, pool: asyncpg.Pool) -> None:
    await pool.execute("ALTER TABLE tenkaigen_migrations RENAME TO elsewhere")
    try:
        response = await client.get("/readyz")
        assert "tenkaigen migrate" in (await response.json(content_type="application/problem+json"))["detail"]
        assert response.status == 503
    finally:
        await pool.execute("ALTER TABLE elsewhere RENAME TO tenkaigen_migrations")


async def test_live_workers_decide_what_may_be_asked_for_and_how_long_it_takes(
    client: TestClient, pool: asyncpg.Pool
) -> None:
    alone = await status(client, await generate(client, {"prompt": "A fox", "style": "Grunge"}))
    assert (alone["queue_position"], alone["estimated_seconds"]) == (0, None)

    speeds = {"quality": 20_000, "fast": 1000}
    await PostgresWorkers(pool).announce(replace(WORKER, styles={"Ukiyo-e": "Woodblock"}, picture_ms=speeds))
    await generate(client, {"prompt": "A fox", "style": "ukiyo-e", "mode": "FAST", "count": 3})
    assert (await client.post("/api/generate", json={"prompt": "A fox", "style": "Grunge"})).status == 400
    body = await (await client.get("/api/styles")).json()
    assert body["styles"] == [{"name": "Ukiyo-e", "description": "Woodblock"}]

    waiting = await status(client, await generate(client, {"prompt": "A fox", "count": 2}))
    assert (waiting["queue_position"], waiting["estimated_seconds"]) == (2, 20 + 3 + 40)
    later = await generate(client, {"prompt": "A fox", "run_at": "2100-01-01T00:00:00Z"})
    assert (await status(client, later))["queue_position"] is None
