"""The pages for the shop's developers are held to the code: requests are taken, answers are what the API says."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from aiohttp import FormData
from aiohttp.test_utils import TestClient, TestServer

from tenkaigen_worker.api.app import ROUTES, make_app
from tenkaigen_worker.api.offers import Offers
from tenkaigen_worker.api.parts import Parts
from tenkaigen_worker.api.uploads import post_upload
from tenkaigen_worker.api.views import status_body
from tenkaigen_worker.config import DatabaseSettings, PluginSettings, ReferenceSettings, load
from tenkaigen_worker.config_api import ApiSettings
from tenkaigen_worker.config_generation import GenerationSettings
from tenkaigen_worker.config_storage import SupabaseStorageSettings
from tenkaigen_worker.jobs import FINAL, JobView, Output
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.references.uploads import Uploads
from tenkaigen_worker.request import Names, Request, read_request
from tenkaigen_worker.storage.local import LocalStorage
from tests.unit.examples import NO_KEYS, QUEUED, Clock, FakeWorkers
from tests.unit.pictures import encoded, gradient
from tests.unit.test_api_http import Table
from tests.unit.test_docs import API, ROOT, blocks, codes, first_column, section, table

FRONT_END, SUPABASE = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("front-end", "supabase"))
MIGRATIONS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "migrations").glob("*.sql")))
SCRIPTS = "\n".join(blocks(FRONT_END, "js") + blocks(SUPABASE, "js"))

both_pages = pytest.mark.parametrize("page", [FRONT_END, SUPABASE], ids=["front-end", "supabase"])


class JobsOfThePage(Table):
    """A stand-in for the job table whose next job is the one on the page."""

    def __init__(self, job: JobView) -> None:
        super().__init__()
        self.next = job

    async def submit(self, columns: Any, **asked: Any) -> JobView:
        await super().submit(columns, **asked)
        return self.next


def documents(heading: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in blocks(section(FRONT_END, heading), "json")]


def job_of(answer: dict[str, Any]) -> JobView:
    return replace(QUEUED, id=UUID(answer["jobId"]))


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[TestClient[Any, Any]]:
    _, answer = documents("A job")
    storage = LocalStorage(tmp_path / "files", "http://127.0.0.1/files")
    plugins = Plugins.load(PluginSettings(paths=()))
    offers = Offers(FakeWorkers(), plugins, GenerationSettings(), Clock())
    uploads = Uploads(storage, ReferenceSettings())

    async def check() -> None:
        return None

    parts = Parts(JobsOfThePage(job_of(answer)), storage, uploads, plugins, offers, check, NO_KEYS)
    async with TestClient(TestServer(make_app(parts, ApiSettings()))) as client:
        yield client


# What the API says


async def test_a_job_is_answered_as_shown(client: TestClient[Any, Any]) -> None:
    request, answer = documents("A job")
    response = await client.post("/api/generate", json=request)
    assert (response.status, await response.json()) == (202, answer)


async def test_a_mistake_is_answered_as_shown(client: TestClient[Any, Any]) -> None:
    (shown,) = documents("Errors")
    response = await client.post("/api/generate", json={"prompt": "A fox", "width": 500})
    assert (response.status, await response.json()) == (shown["status"], shown)


async def test_an_upload_is_answered_as_shown(client: TestClient[Any, Any]) -> None:
    shown, edit = documents("Uploads and edits")
    form = FormData()
    form.add_field("file", encoded(gradient(shown["width"], shown["height"])), filename="fox.png")
    response = await client.post("/api/uploads", data=form)
    answer = await response.json()
    assert response.status == 201
    assert shown["reference"] in edit["more_references"]
    assert {**answer, "reference": shown["reference"]} == shown
    assert re.fullmatch(r"upload:[0-9a-f-]{36}", answer["reference"])


def test_the_status_has_the_keys_that_are_shown() -> None:
    (shown,) = blocks(section(FRONT_END, "A job"), "text")
    assert shown.split() == list(status_body(QUEUED))


def test_every_request_that_is_shown_is_taken() -> None:
    shown = [documents("By supabase-js")[0], documents("A job")[0], documents("Uploads and edits")[1]]
    for request in shown:
        assert set(request) <= set(Request.model_fields)
        read_request(request, Names(styles=["Anime"], modes=["lightning", "edit"]))


def test_every_code_that_is_named_is_said_with_that_status() -> None:
    said = {(row[0], code) for row in table(section(API, "Errors"), "status") for code in codes(row[1:2])}
    rows = table(section(FRONT_END, "Errors"), "status")
    assert {(row[0], code) for row in rows for code in codes(row[1:2])} <= said
    assert {HTTPStatus(int(row[0])) for row in rows} >= {401, 429, 503}


# What the database says


def test_a_message_of_realtime_has_columns_and_statuses_of_the_table() -> None:
    (message,) = (shown for shown in documents("Following a job") if "eventType" in shown)
    columns = set(re.findall(r"COMMENT ON COLUMN public\.generation_jobs\.(\w+) IS", MIGRATIONS))
    assert set(message["new"]) <= columns
    assert message["old"] == {"id": message["new"]["id"]}
    (final,) = re.findall(r"^const FINAL = \[(.*)\]$", SCRIPTS, re.MULTILINE)
    assert set(re.findall(r"'(\w+)'", final)) == {status.value for status in FINAL}


def test_every_function_table_and_bucket_that_is_named_exists() -> None:
    functions = set(re.findall(r"\.rpc\('(\w+)', \{ (\w+): ", SCRIPTS))
    assert len(functions) == 2
    for function, argument in functions:
        assert f"CREATE FUNCTION public.{function}({argument} uuid)" in MIGRATIONS
    buckets = set(re.findall(r"storage\.from\('([\w-]+)'\)", SCRIPTS))
    assert buckets == {SupabaseStorageSettings().bucket}
    assert set(re.findall(r"\.from\('([\w-]+)'\)", SCRIPTS)) - buckets == {"generation_jobs"}


def test_every_state_of_sql_that_is_named_is_raised() -> None:
    by_postgres = {"23505", "23514"}
    by_name = {"42501": "insufficient_privilege", "22023": "invalid_parameter_value"}
    for code in first_column(section(FRONT_END, "By supabase-js"), "`error.code`"):
        assert code in by_postgres or f"ERRCODE = '{by_name.get(code, code)}'" in MIGRATIONS, code


def test_the_parts_of_a_picture_that_are_named_are_there() -> None:
    named = set(re.findall(r"`?output\.(\w+)", FRONT_END))
    assert named
    assert named <= {field.name for field in fields(Output)}


# What pages are told to write


def test_the_rewrites_and_calls_lead_to_routes() -> None:
    there = [(route.method, re.sub(r"\{[^}]*\}", "X", route.path)) for route in ROUTES]
    rewrites = re.findall(r"source: '([^']+)', destination: `\$\{api\}([^`]+)`", SCRIPTS)
    for source, destination in rewrites:
        assert source == destination
        start = source.removesuffix(":path*")
        assert any(path == source or (start != source and path.startswith(start)) for _, path in there), source

    behind = {route.path for route in ROUTES if route.needs is not None}
    for path in behind:
        assert any(re.match(source.replace(":path*", ".+") + "$", path) for source, _ in rewrites), path

    called = re.findall(r"call\(['`](/[^'`]+)['`](?:, \{\s*(?:method: '(\w+)')?)?", SCRIPTS)
    assert len(called) == 5
    for path, method in called:
        assert (method or "GET", re.sub(r"\$\{id\}", "X", path)) in there


def test_an_upload_is_a_form_with_one_file() -> None:
    assert post_upload in {route.handler for route in ROUTES if route.path == "/api/uploads"}
    assert "form.append('file', file)" in SCRIPTS


# Settings


@both_pages
def test_settings_that_are_shown_are_taken(page: str, tmp_path: Path) -> None:
    shown = blocks(page, "yaml")
    assert shown
    for number, block in enumerate(shown):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, encoding="utf-8")
        settings = load(file, {}).settings
        assert settings.api.auth == ("supabase",)
        assert settings.api.cors_origins
        assert settings.api.allowed_hosts


def test_settings_for_supabase_stand_in_the_a10gs_file(tmp_path: Path) -> None:
    text = (ROOT / "config" / "a10g.yaml").read_text(encoding="utf-8")
    block = text.partition("# A shop on Supabase")[2].partition("#\n")[2].partition("\n\n")[0]
    settings = yaml.safe_load(text) | yaml.safe_load(re.sub("^#", "", block, flags=re.MULTILINE))
    file = tmp_path / "a10g.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    loaded = load(file, {}).settings
    assert (loaded.storage.kind, loaded.api.auth) == ("supabase", ("supabase",))


def test_the_sums_of_connections_are_right() -> None:
    rows = table(section(SUPABASE, "How many connections"), "each with")
    for row in rows:
        (size,) = re.findall(r"`pool_size: (\d+)`", row[0])
        held = [int(size) + workers * (int(size) + 1) for workers in (1, 2, 4)]
        assert [int(cell) for cell in row[1:]] == held
    assert rows[0][0] == f"`pool_size: {DatabaseSettings().pool_size}`"


def test_every_url_asks_who_the_server_is() -> None:
    urls = re.findall(r"postgresql://\S+", SUPABASE)
    assert len(urls) == 3
    for url in urls:
        assert "sslmode=verify-full&sslrootcert=" in url
