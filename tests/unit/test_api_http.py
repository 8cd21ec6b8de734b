"""What the front door says over HTTP, with a stand-in for the job table."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from tenkaigen_worker.api.app import make_app
from tenkaigen_worker.api.offers import Offers
from tenkaigen_worker.api.parts import Parts
from tenkaigen_worker.config import PluginSettings, ReferenceSettings
from tenkaigen_worker.config_api import ApiSettings
from tenkaigen_worker.config_generation import GenerationSettings
from tenkaigen_worker.errors import ConflictError, DatabaseError, FieldProblem, LimitError, StorageError
from tenkaigen_worker.jobs import Asker, JobView, Output, Status
from tenkaigen_worker.offers import Limits, Line, Work
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.references.uploads import Uploads
from tenkaigen_worker.storage.local import LocalStorage
from tests.unit.examples import NO_KEYS, NOW, QUEUED, WORKER, Clock, FakeWorkers

REFERENCE = "upload:019dac38-5e55-74f3-8ac4-2ecd7f3d5ac2"


class Table:
    """A stand-in for the job table; ``broken`` is raised by every question."""

    def __init__(self) -> None:
        self.jobs = {QUEUED.id: QUEUED}
        self.submitted: list[dict[str, Any]] = []
        self.before: Line | None = None
        self.broken: Exception | None = None

    async def submit(
        self, columns: Mapping[str, Any], *, asker: Asker, idempotency_key: str | None, request_hash: str | None
    ) -> JobView:
        self._answer()
        self.submitted.append({**columns, "key": idempotency_key, "hash": request_hash})
        return QUEUED

    async def get(self, job_id: UUID, asker: Asker) -> JobView | None:
        self._answer()
        return self.jobs.get(job_id)

    async def line(self, job_id: UUID, asker: Asker) -> Line | None:
        self._answer()
        return self.before

    async def cancel(self, job_id: UUID, asker: Asker) -> JobView | None:
        self._answer()
        job = self.jobs.get(job_id)
        return job and replace(job, status=Status.CANCELED)

    async def retry(self, job_id: UUID, asker: Asker) -> JobView | None:
        self._answer()
        job = self.jobs.get(job_id)
        return job and replace(job, id=UUID(int=7), retry_of=job.id)

    def _answer(self) -> None:
        if self.broken:
            raise self.broken


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def workers() -> FakeWorkers:
    return FakeWorkers()


@pytest.fixture
def outages() -> list[DatabaseError]:
    """Why no request can be served, if anything is in it."""
    return []


@pytest.fixture
def plugin_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir()
    return folder


@pytest.fixture
def parts(
    table: Table, workers: FakeWorkers, outages: list[DatabaseError], storage: LocalStorage, plugin_folder: Path
) -> Parts:
    async def check() -> None:
        for outage in outages:
            raise outage

    plugins = Plugins.load(PluginSettings(paths=(plugin_folder,)))
    offers = Offers(workers, plugins, GenerationSettings(), Clock())
    return Parts(table, storage, Uploads(storage, ReferenceSettings()), plugins, offers, check, NO_KEYS)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files", "http://127.0.0.1/files")


@pytest.fixture
async def client(parts: Parts) -> AsyncIterator[TestClient[Any, Any]]:
    settings = ApiSettings(allowed_hosts=("shop.example",), max_body_bytes=2048)
    async with TestClient(TestServer(make_app(parts, settings))) as client:
        yield client


async def problem(response: ClientResponse, status: int, code: str) -> dict[str, Any]:
    """The body of a problem document, after checking what all of them share."""
    body: dict[str, Any] = await response.json(content_type="application/problem+json")
    assert (response.status, body["code"]) == (status, code)
    assert set(body) == {"type", "title", "status", "detail", "code", "errors", "error"}
    assert body["status"] == status
    assert body["detail"] == body["error"] != ""
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Request-Id"]
    return body


# Submitting


async def test_a_request_is_queued(client: TestClient, table: Table) -> None:
    response = await client.post("/api/generate", json={"prompt": "A fox", "shop_field": {"anything": 1}})
    assert response.status == 202
    assert await response.json() == {"jobId": str(QUEUED.id), "status": "queued"}
    assert response.headers["Location"] == f"/api/generate/status/{QUEUED.id}"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    (row,) = table.submitted
    assert len(row.pop("hash")) == 64
    assert row == {"prompt": "A fox", "count": 1, "key": None}


@pytest.mark.parametrize("sent", ['"8e03978e-40d5"', "8e03978e-40d5"])
async def test_an_idempotency_key_is_handed_on(client: TestClient, table: Table, sent: str) -> None:
    await client.post("/api/generate", json={"prompt": "A fox"}, headers={"Idempotency-Key": sent})
    assert table.submitted[0]["key"] == "8e03978e-40d5"


@pytest.mark.parametrize("sent", ["", '""', '"', "a b", "x" * 201, "ü"])
async def test_a_wrong_idempotency_key_is_named(client: TestClient, table: Table, sent: str) -> None:
    response = await client.post("/api/generate", json={"prompt": "A fox"}, headers={"Idempotency-Key": sent})
    body = await problem(response, 400, "invalid_idempotency_key")
    assert body["errors"][0]["field"] == "Idempotency-Key"
    assert table.submitted == []


async def test_wrong_fields_are_named(client: TestClient) -> None:
    body = await problem(await client.post("/api/generate", json={"seed": -1}), 400, "invalid_request")
    prompt, seed = body["errors"]
    assert (prompt["field"], seed["field"]) == ("prompt", "seed")
    assert body["error"] == f"prompt: {prompt['message']}; seed: {seed['message']}"


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (b"", "line 1, column 1"),
        (b'{"prompt": "a",\n "seed": }', "line 2, column 10"),
        (b"[1]", "must be an object"),
        (b'"text"', "must be an object"),
        (b'{"seed": NaN}', "NaN is not a JSON number"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "the body is larger than 2048 bytes"),
        (b'{"prompt": "\xff"}', "byte 12 is not UTF-8"),
        (b"[" * 2000, "the body is not the JSON"),
    ],
)
async def test_malformed_json_says_where(client: TestClient, raw: bytes, hint: str) -> None:
    response = await client.post("/api/generate", data=raw, headers={"Content-Type": "application/json"})
    status, code = (413, "body_too_large") if "larger" in hint else (400, "malformed_json")
    assert hint in (await problem(response, status, code))["detail"]


async def test_a_number_of_five_thousand_digits_is_refused(parts: Parts) -> None:
    async with TestClient(TestServer(make_app(parts, ApiSettings()))) as client:
        raw = b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}"
        response = await client.post("/api/generate", data=raw, headers={"Content-Type": "application/json"})
        await problem(response, 400, "malformed_json")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
async def test_other_content_types_are_refused(client: TestClient, table: Table, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    response = await client.post(
        "/api/generate", data=b'{"prompt": "a"}', headers=headers, skip_auto_headers=["Content-Type"]
    )
    body = await problem(response, 415, "unsupported_media_type")
    assert "application/json" in body["detail"]
    assert table.submitted == []


async def test_a_charset_beside_the_content_type_is_fine(client: TestClient) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    response = await client.post("/api/generate", data=json.dumps({"prompt": "狐"}).encode(), headers=headers)
    assert response.status == 202


async def test_a_large_body_without_a_length_is_refused_too(client: TestClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1024

    response = await client.post("/api/generate", data=chunks(), headers={"Content-Type": "application/json"})
    await problem(response, 413, "body_too_large")


# Following


async def status_of(client: TestClient, table: Table, job: JobView) -> dict[str, Any]:
    table.jobs[job.id] = job
    response = await client.get(f"/api/generate/status/{job.id}")
    assert response.status == 200
    assert response.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = await response.json()
    return body


async def test_the_status_of_a_queued_job(client: TestClient, table: Table) -> None:
    assert await status_of(client, table, QUEUED) == {
        "jobId": str(QUEUED.id),
        "status": "queued",
        "progress": 0.0,
        "stage": None,
        "result_url": None,
        "outputs": [],
        "error_code": None,
        "error_message": None,
        "prompt": "A phoenix rising",
        "style": "Anime",
        "width": None,
        "height": None,
        "seed": None,
        "attempt": 0,
        "max_attempts": 3,
        "cancel_requested": False,
        "retry_of": None,
        "created_at": "2026-11-01T12:00:00+00:00",
        "started_at": None,
        "completed_at": None,
        "processing_time_ms": None,
        "demo": False,
        "queue_position": None,
        "estimated_seconds": None,
    }


async def test_a_queued_job_says_how_long_it_will_wait(client: TestClient, table: Table, workers: FakeWorkers) -> None:
    workers.rows = [WORKER, replace(WORKER, worker_id="gpu-2")]
    table.before = Line(3, (Work(None, 3.0), Work("quality", 0.5)), Work("Quality", 2.0))
    body = await status_of(client, table, QUEUED)
    assert (body["queue_position"], body["estimated_seconds"]) == (3, 75)

    body = await status_of(client, table, replace(QUEUED, status=Status.PROCESSING))
    assert (body["queue_position"], body["estimated_seconds"]) == (None, None)


async def test_the_status_of_a_completed_job(client: TestClient, table: Table) -> None:
    small = "http://x/files/u/j/1-0-a.webp"
    output = Output(
        *(0, "u/j/1-0-a.png", "http://x/files/u/j/1-0-a.png", 64, 48, 1234, "ab" * 32, 7, "u/j/1-0-a.webp", small)
    )
    done = replace(
        QUEUED,
        status=Status.COMPLETED,
        progress=1.0,
        result_url=output.url,
        outputs=(output,),
        completed_at=NOW,
        demo=True,
    )
    body = await status_of(client, table, done)
    assert (body["status"], body["progress"], body["result_url"], body["demo"]) == ("completed", 1.0, output.url, True)
    assert body["completed_at"] == "2026-11-01T12:00:00+00:00"
    picture = {"index": 0, "url": output.url, "thumbnail_url": small, "width": 64, "height": 48, "bytes": 1234}
    assert body["outputs"] == [{**picture, "sha256": "ab" * 32, "seed": 7}]


async def test_a_canceled_job_reads_as_failed(client: TestClient, table: Table) -> None:
    body = await status_of(client, table, replace(QUEUED, status=Status.CANCELED))
    assert (body["status"], body["error_code"]) == ("failed", "canceled")
    assert body["error_message"] == "this job was canceled"


@pytest.mark.parametrize("status", list(Status))
async def test_pages_only_ever_see_four_statuses(client: TestClient, table: Table, status: Status) -> None:
    body = await status_of(client, table, replace(QUEUED, status=status))
    assert body["status"] in ("queued", "processing", "completed", "failed")


@pytest.mark.parametrize("job_id", ["42", "x" * 3000, str(QUEUED.id)[:-1], "{" + str(QUEUED.id) + "}", QUEUED.id.hex])
@pytest.mark.parametrize("route", ["GET status/{}", "POST {}/cancel", "POST {}/retry"])
async def test_a_wrong_id_is_named(client: TestClient, job_id: str, route: str) -> None:
    method, path = route.format(job_id).split()
    body = await problem(await client.request(method, f"/api/generate/{path}"), 400, "invalid_job_id")
    assert body["errors"][0]["field"] == "jobId"
    assert len(body["detail"]) < 300


@pytest.mark.parametrize("route", ["GET status/{}", "POST {}/cancel", "POST {}/retry"])
async def test_a_job_that_is_not_there(client: TestClient, route: str) -> None:
    method, path = route.format(uuid4()).split()
    await problem(await client.request(method, f"/api/generate/{path}"), 404, "job_not_found")


async def test_an_id_in_capitals_is_the_same_id(client: TestClient) -> None:
    assert (await client.get(f"/api/generate/status/{str(QUEUED.id).upper()}")).status == 200


async def test_cancel_answers_the_job(client: TestClient) -> None:
    response = await client.post(f"/api/generate/{QUEUED.id}/cancel")
    assert response.status == 202
    assert (await response.json())["error_message"] == "this job was canceled"


async def test_retry_answers_the_new_job(client: TestClient) -> None:
    response = await client.post(f"/api/generate/{QUEUED.id}/retry")
    assert response.status == 202
    assert await response.json() == {"jobId": str(UUID(int=7)), "status": "queued", "retry_of": str(QUEUED.id)}
    assert response.headers["Location"] == f"/api/generate/status/{UUID(int=7)}"


# Beside the jobs


async def test_styles_and_what_is_wrong_with_plugins(client: TestClient, plugin_folder: Path) -> None:
    (plugin_folder / "ukiyo-e.yaml").write_text('name: Ukiyo-e\ndescription: Woodblock\nprompt: "{prompt}"\n')
    (plugin_folder / "broken.yaml").write_text("nam: x\n")
    body = await (await client.get("/api/styles")).json()
    assert {"name": "Ukiyo-e", "description": "Woodblock"} in body["styles"]
    assert [problem for problem in body["problems"] if "broken.yaml:1: unknown key 'nam'" in problem]


async def test_all_that_a_request_may_name_is_told_at_once(client: TestClient, workers: FakeWorkers) -> None:
    workers.rows = [replace(WORKER, templates={"Sticker": "Die-cut"})]
    assert await (await client.get("/api/offer")).json() == {
        "styles": [{"name": "Standard", "description": ""}, {"name": "Anime", "description": "Vibrant"}],
        "modes": ["quality", "fast"],
        "loras": [{"name": "Ink", "aliases": ["Edo"]}],
        "templates": [{"name": "Sticker", "description": "Die-cut"}],
        "limits": {"max_pixels": None},
    }


async def test_styles_and_modes_are_those_of_live_workers(client: TestClient, workers: FakeWorkers) -> None:
    workers.rows = [replace(WORKER, styles={"Ukiyo-e": "Woodblock", "art deco": "", "Standard": "Plain"})]
    body = await (await client.get("/api/styles")).json()
    assert body["styles"] == [
        {"name": "Standard", "description": "Plain"},
        {"name": "art deco", "description": ""},
        {"name": "Ukiyo-e", "description": "Woodblock"},
    ]
    asked = {"prompt": "A fox", "style": "ukiyo e", "mode": "FAST"}
    assert (await client.post("/api/generate", json=asked)).status == 202
    response = await client.post("/api/generate", json={"prompt": "A fox", "style": "Anime"})
    assert "Ukiyo-e" in (await problem(response, 400, "invalid_request"))["detail"]


async def test_workers_are_not_asked_for_at_every_request(client: TestClient, workers: FakeWorkers) -> None:
    workers.rows = [WORKER]
    for _ in range(3):
        assert (await client.post("/api/generate", json={"prompt": "A fox", "style": "Anime"})).status == 202
    assert (await client.post("/api/generate", json={"prompt": "A fox", "width": 500})).status == 400
    assert workers.asked == 1


async def test_a_style_of_this_moment_is_looked_up_before_it_is_refused(
    client: TestClient, workers: FakeWorkers
) -> None:
    workers.rows = [WORKER]
    await client.get("/api/styles")
    workers.rows = [replace(WORKER, styles={"Ukiyo-e": ""})]
    assert (await client.post("/api/generate", json={"prompt": "A fox", "style": "Ukiyo-e"})).status == 202


async def test_a_picture_that_fits_no_worker_is_refused_with_the_limit(
    client: TestClient, workers: FakeWorkers, table: Table
) -> None:
    workers.rows = [replace(WORKER, limits=Limits(1024 * 1024)), replace(WORKER, limits=Limits(512 * 512))]
    asked = {"prompt": "A fox", "width": 1536, "height": 1024}
    body = await problem(await client.post("/api/generate", json=asked), 400, "too_large")
    text = (
        "1536 x 1024 is 1572864 pixels, and the workers that are live can draw at most 1048576, such as 1024 x 1024: "
        "with width 1536 it may be 672"
    )
    assert body["errors"] == [{"field": "height", "message": text}]
    assert (await client.post("/api/generate", json={**asked, "height": 672})).status == 202
    offer = await (await client.get("/api/offer")).json()
    assert offer["limits"] == {"max_pixels": 1024 * 1024}
    assert len(table.submitted) == 1

    workers.rows = [WORKER]  # one with more memory came
    assert (await client.post("/api/generate", json=asked)).status == 202


@pytest.mark.parametrize(("more", "status"), [({}, 400), ({"style": "Anime"}, 202), ({"reference": REFERENCE}, 202)])
async def test_a_default_side_counts_where_nothing_else_may_say_it(
    parts: Parts, workers: FakeWorkers, more: dict[str, str], status: int
) -> None:
    workers.rows = [replace(WORKER, limits=Limits(512 * 512))]
    generation = GenerationSettings(default_height=1024)
    offers = Offers(workers, parts.plugins, generation)
    async with TestClient(TestServer(make_app(replace(parts, offers=offers), ApiSettings()))) as client:
        response = await client.post("/api/generate", json={"prompt": "A fox", "width": 512, **more})
    assert response.status == status


async def test_while_no_worker_is_live_a_style_dropped_in_this_very_second_is_found(
    client: TestClient, plugin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenkaigen_worker.plugin.manager.LOOK_AGAIN_SECONDS", 3600)
    (plugin_folder / "ukiyo-e.yaml").write_text("name: Ukiyo-e\n")
    assert (await client.post("/api/generate", json={"prompt": "A fox", "style": "Ukiyo-e"})).status == 202


async def test_loras_templates_and_pictures_are_checked_by_what_workers_have(
    client: TestClient, workers: FakeWorkers, table: Table
) -> None:
    workers.rows = [replace(WORKER, templates={"Tote": ""})]
    reference = "upload:019dac38-5e55-74f3-8ac4-2ecd7f3d5ac2"
    asked = {"template": "tote", "variables": {"animal": "fox"}, "loras": [{"name": "edo", "weight": 0.5}]}
    asked |= {"franchise": "INK", "reference": reference, "mask": reference, "strength": 0.5, "style": "auto"}
    assert (await client.post("/api/generate", json=asked)).status == 202
    columns = table.submitted[-1]
    assert (columns["template"], columns["loras"]) == ("Tote", ({"name": "Edo", "weight": 0.5},))

    wrong = {"template": "tot", "loras": ["Sumi"], "franchise": "Atlantis", "reference": "fox.png", "strength": 2}
    body = await problem(await client.post("/api/generate", json=wrong), 400, "invalid_request")
    assert {error["field"] for error in body["errors"]} == set(wrong)


async def test_health_and_readiness(client: TestClient, outages: list[DatabaseError]) -> None:
    assert (await client.get("/healthz")).status == 200
    assert (await client.get("/readyz")).status == 200
    outages.append(DatabaseError("the database cannot be reached"))
    assert (await client.get("/healthz")).status == 200
    response = await client.get("/readyz")
    assert (await problem(response, 503, "not_ready"))["detail"] == "the database cannot be reached"
    assert response.headers["Retry-After"] == "5"


async def test_the_index_lists_the_routes(client: TestClient) -> None:
    routes = (await (await client.get("/")).json())["routes"]
    assert "POST /api/generate" in routes
    assert "GET /api/generate/status/{job_id}" in routes


# Errors


async def test_unknown_routes(client: TestClient) -> None:
    assert "/api/nothing" in (await problem(await client.get("/api/nothing"), 404, "not_found"))["detail"]


async def test_wrong_methods_name_the_right_ones(client: TestClient) -> None:
    response = await client.get("/api/generate")
    assert "POST" in (await problem(response, 405, "method_not_allowed"))["detail"]
    assert response.headers["Allow"] == "POST"
    response = await client.delete("/files/a.png")
    assert response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("error", [DatabaseError("no answer from secret-host:5432"), StorageError("/secret/path")])
async def test_an_outage_is_503_without_addresses(
    client: TestClient, table: Table, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    table.broken = error
    for method, path in [
        ("POST", "/api/generate"),
        ("GET", f"/api/generate/status/{QUEUED.id}"),
        ("POST", f"/api/generate/{QUEUED.id}/cancel"),
        ("POST", f"/api/generate/{QUEUED.id}/retry"),
    ]:
        body = {"prompt": "A fox"} if path == "/api/generate" else None
        response = await client.request(method, path, json=body)
        kind = "database" if isinstance(error, DatabaseError) else "storage"
        assert "secret" not in (await problem(response, 503, f"{kind}_unavailable"))["detail"]
        assert response.headers["Retry-After"] == "5"
    assert str(error) in caplog.text


async def test_the_unexpected_is_logged_and_not_shown(
    client: TestClient, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    table.broken = RuntimeError("secret internals")
    response = await client.get(f"/api/generate/status/{QUEUED.id}", headers={"X-Request-Id": "abc-1"})
    body = await problem(response, 500, "internal")
    assert "secret" not in json.dumps(body)
    assert "abc-1" in body["detail"]
    assert response.headers["X-Request-Id"] == "abc-1"
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.action == "request_failed"  # type: ignore[attr-defined]
    assert "secret internals" in caplog.text


async def test_every_response_has_a_request_id(client: TestClient) -> None:
    ids = {(await client.get(path)).headers["X-Request-Id"] for path in ("/", "/healthz", "/nothing", "/files/no.png")}
    assert len(ids) == 4
    given = await client.get("/", headers={"X-Request-Id": "trace_1.2-3"})
    assert given.headers["X-Request-Id"] == "trace_1.2-3"
    strange = await client.get("/", headers={"X-Request-Id": "a b<script>"})
    assert "<" not in strange.headers["X-Request-Id"]


async def test_requests_are_logged_and_polling_only_in_detail(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tenkaigen.api")
    await client.get(f"/api/generate/status/{QUEUED.id}")
    await client.post("/api/generate", json={"prompt": "A fox"})
    assert [record.getMessage() for record in caplog.records] == ["POST /api/generate: 202"]


async def test_many_at_once(client: TestClient) -> None:
    async def one(number: int) -> str:
        response = await client.get("/", headers={"X-Request-Id": str(number)})
        return response.headers["X-Request-Id"]

    assert await asyncio.gather(*map(one, range(50))) == [str(number) for number in range(50)]


async def test_a_key_used_for_another_request_is_refused(client: TestClient, table: Table) -> None:
    table.broken = ConflictError.of([FieldProblem("Idempotency-Key", "was used for another request")])
    response = await client.post("/api/generate", json={"prompt": "A fox"}, headers={"Idempotency-Key": "k"})
    body = await problem(response, 422, "idempotency_key_reused")
    assert body["errors"] == [{"field": "Idempotency-Key", "message": "was used for another request"}]


@pytest.mark.parametrize(("seconds", "header"), [(42, "42"), (None, None)])
async def test_a_limit_says_when_to_try_again(
    client: TestClient, table: Table, seconds: int | None, header: str | None
) -> None:
    table.broken = LimitError("user 7 may have at most 2 jobs queued", retry_after_seconds=seconds)
    for path in ("/api/generate", f"/api/generate/{QUEUED.id}/retry"):
        response = await client.post(path, json={"prompt": "A fox"})
        assert (await problem(response, 429, "limit_reached"))["detail"] == "user 7 may have at most 2 jobs queued"
        assert response.headers.get("Retry-After") == header


@pytest.mark.parametrize("what", ["cancel", "retry"])
async def test_what_a_jobs_status_forbids_is_a_conflict(client: TestClient, table: Table, what: str) -> None:
    table.broken = ConflictError("only a failed or canceled job can be tried again; this one is queued")
    response = await client.post(f"/api/generate/{QUEUED.id}/{what}")
    assert "this one is queued" in (await problem(response, 409, "conflict"))["detail"]
