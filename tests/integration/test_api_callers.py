"""Who may do what over HTTP: every route tried by every kind of caller, on a plain PostgreSQL and on Supabase's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import ClientResponse, FormData
from aiohttp.test_utils import TestClient, TestServer
from pydantic import SecretStr

from tenkaigen_worker.access import Scope
from tenkaigen_worker.api.app import ROUTES, make_app
from tenkaigen_worker.api.offers import Offers
from tenkaigen_worker.api.parts import Parts
from tenkaigen_worker.config import DatabaseSettings, Settings
from tenkaigen_worker.database.api_keys import ApiKeys
from tenkaigen_worker.database.connect import open_pool
from tenkaigen_worker.database.migrate import check_schema
from tenkaigen_worker.database.submissions import QUERIES, Submissions
from tenkaigen_worker.database.workers import PostgresWorkers
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.references.uploads import Uploads
from tenkaigen_worker.storage.local import LocalStorage
from tests.conftest import as_role
from tests.tokens import ALICE, BOB, PROJECT, SECRET, claims, session_cookie, signed
from tests.unit.pictures import encoded, gradient

SHOP = "https://shop.example"
PICTURE = encoded(gradient())
FILE = "anonymous/1/1-0-abc.png"
NOBODY_KNOWN = "00000000-0000-4000-8000-00000000dead"


@dataclass(frozen=True, slots=True)
class House:
    """A running API, and what is behind it, as the owner of the database sees it."""

    client: TestClient[Any, Any]
    pool: asyncpg.Pool[Any]
    keys: ApiKeys
    storage: LocalStorage

    async def job(self, owner: str | None, status: str = "queued") -> UUID:
        query = "INSERT INTO generation_jobs (prompt, user_id, status) VALUES ('a fox', $1, $2) RETURNING id"
        job: UUID = await self.pool.fetchval(query, UUID(owner) if owner else None, status)
        return job

    async def key(self, *scopes: Scope, days: int | None = None) -> str:
        return await self.keys.create(f"key {uuid4()}", scopes, days=days)

    async def owner_of(self, job: object) -> str | None:
        owner: UUID | None = await self.pool.fetchval("SELECT user_id FROM generation_jobs WHERE id = $1", job)
        return str(owner) if owner else None


@pytest.fixture(params=["plain", "supabase, own role"])
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A database without a role for users, and one with it: to be used by its owner, and by the role for APIs."""
    return request.getfixturevalue("database" if request.param == "plain" else "supabase"), request.param


@pytest.fixture
async def house(place: tuple[str, str], tmp_path: Path) -> AsyncIterator[House]:
    """An API on each of them."""
    dsn, kind = place
    async with opened(dsn, tmp_path, kind) as house:
        yield house


@pytest.fixture
async def shop(supabase: str, tmp_path: Path) -> AsyncIterator[House]:
    """On Supabase, as the role for APIs."""
    async with opened(supabase, tmp_path, "supabase, own role") as house:
        yield house


@asynccontextmanager
async def opened(dsn: str, folder: Path, kind: str) -> AsyncIterator[House]:
    owner = await open_pool(DatabaseSettings(), dsn, "tests")
    login = f"shop_{uuid4().hex}"
    if kind != "plain":
        await owner.execute("INSERT INTO auth.users (id) VALUES ($1), ($2)", UUID(ALICE), UUID(BOB))
        await owner.execute(f"CREATE ROLE {login} LOGIN IN ROLE tenkaigen_worker")
    pool = await open_pool(DatabaseSettings(), as_role(dsn, login), "api") if kind == "supabase, own role" else owner
    asked = {"auth": ["supabase", "api_keys"], "supabase": {"url": PROJECT}, "cors_origins": [SHOP]}
    settings = Settings.model_validate({"state_dir": folder, "plugins": {"paths": [folder / "none"]}, "api": asked})
    signs = settings.api.supabase.model_copy(update={"jwt_secret": SecretStr(SECRET)})
    api = settings.api.model_copy(update={"supabase": signs})
    plugins, storage = Plugins.load(settings.plugins), LocalStorage(folder / "files", "http://127.0.0.1/files")
    await storage.put(FILE, PICTURE, content_type="image/png")
    parts = Parts(
        Submissions(pool),
        storage,
        Uploads(storage, settings.references),
        plugins,
        Offers(PostgresWorkers(pool), plugins, settings.generation),
        partial(check_schema, pool),
        ApiKeys(pool),
    )
    async with TestClient(TestServer(make_app(parts, api))) as client:
        yield House(client, owner, ApiKeys(pool), storage)
    if pool is not owner:
        await pool.close()
    if kind != "plain":
        await owner.execute(f"DROP ROLE {login}")
    await owner.close()


def bearer(token: str, user: str | None = None) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {token}"} | ({"X-User-Id": user} if user else {})


def cookies(token: str) -> Mapping[str, str]:
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in session_cookie(token).items())}


# The matrix: routes by caller -----------------------------------------------------------------------------------------

MATRIX = """
caller                             | GET / | healthz | readyz | styles | offer | files | generate | uploads | status | cancel | retry
nobody                             | 200   | 200     | 200    | 200    | 200   | 200   | 401      | 401     | 401    | 401    | 401
user, own job                      | 200   | 200     | 200    | 200    | 200   | 200   | 202      | 201     | 200    | 202    | 202
user, by cookie and own page       | 200   | 200     | 200    | 200    | 200   | 200   | 202      | 201     | 200    | 202    | 202
user, by cookie and other page     | 200   | 200     | 200    | 200    | 200   | 200   | 403      | 403     | 200    | 403    | 403
user, by cookie without an Origin  | 200   | 200     | 200    | 200    | 200   | 200   | 403      | 403     | 200    | 403    | 403
user, other's job                  | 200   | 200     | 200    | 200    | 200   | 200   | 202      | 201     | 404    | 404    | 404
user, nobody's job                 | 200   | 200     | 200    | 200    | 200   | 200   | 202      | 201     | 404    | 404    | 404
user, naming another               | 200   | 200     | 200    | 200    | 200   | 200   | 403      | 403     | 403    | 403    | 403
anonymous user, own job            | 200   | 200     | 200    | 200    | 200   | 200   | 401      | 401     | 401    | 401    | 401
expired token, own job             | 200   | 200     | 200    | 200    | 200   | 200   | 401      | 401     | 401    | 401    | 401
service-role token                 | 200   | 200     | 200    | 200    | 200   | 200   | 401      | 401     | 401    | 401    | 401
key: submit, nobody's job          | 200   | 200     | 200    | 200    | 200   | 200   | 202      | 201     | 403    | 202    | 202
key: read, nobody's job            | 200   | 200     | 200    | 200    | 200   | 200   | 403      | 403     | 200    | 403    | 403
key: submit and read, user's job   | 200   | 200     | 200    | 200    | 200   | 200   | 202      | 201     | 404    | 404    | 404
key: submit and read, for the user | 200   | 200     | 200    | 200    | 200   | 200   | 202      | 201     | 200    | 202    | 202
key: submit and read, for another  | 200   | 200     | 200    | 200    | 200   | 200   | 202      | 201     | 404    | 404    | 404
key: admin, user's job             | 200   | 200     | 200    | 200    | 200   | 200   | 202      | 201     | 200    | 202    | 202
key: admin, for another            | 200   | 200     | 200    | 200    | 200   | 200   | 202      | 201     | 404    | 404    | 404
key: revoked                       | 200   | 200     | 200    | 200    | 200   | 200   | 401      | 401     | 401    | 401    | 401
key: past its time                 | 200   | 200     | 200    | 200    | 200   | 200   | 401      | 401     | 401    | 401    | 401
key: made up                       | 200   | 200     | 200    | 200    | 200   | 200   | 401      | 401     | 401    | 401    | 401
"""  # noqa: E501

COLUMNS = {
    "GET /": "GET /",
    "healthz": "GET /healthz",
    "readyz": "GET /readyz",
    "styles": "GET /api/styles",
    "offer": "GET /api/offer",
    "files": "GET /files/{key:.+}",
    "generate": "POST /api/generate",
    "uploads": "POST /api/uploads",
    "status": "GET /api/generate/status/{job_id:[^/]+}",
    "cancel": "POST /api/generate/{job_id:[^/]+}/cancel",
    "retry": "POST /api/generate/{job_id:[^/]+}/retry",
}


@dataclass(frozen=True, slots=True)
class Caller:
    """What somebody sends; about ``whose`` job they ask, and in whose name they act."""

    headers: Mapping[str, str]
    whose: str | None = ALICE
    acts_for: str | None = ALICE


async def callers(house: House) -> Mapping[str, Caller]:
    alice = signed()
    submit, read = await house.key(Scope.SUBMIT), await house.key(Scope.READ)
    both, admin = await house.key(Scope.SUBMIT, Scope.READ), await house.key(Scope.ADMIN)
    old, revoked = await house.key(Scope.ADMIN, days=1), await house.key(Scope.ADMIN)
    await house.pool.execute("UPDATE generation_api_keys SET expires_at = now() WHERE expires_at IS NOT NULL")
    await house.pool.execute(
        "UPDATE generation_api_keys SET revoked_at = now() WHERE sha256 = sha256($1)", revoked.encode()
    )
    expired = claims(exp=1_700_000_000, iat=None)
    return {
        "nobody": Caller({}),
        "user, own job": Caller(bearer(alice)),
        "user, by cookie and own page": Caller({**cookies(alice), "Origin": SHOP}),
        "user, by cookie and other page": Caller({**cookies(alice), "Origin": "http://localhost:3000"}),
        "user, by cookie without an Origin": Caller(cookies(alice)),
        "user, other's job": Caller(bearer(signed(claims(BOB))), acts_for=BOB),
        "user, nobody's job": Caller(bearer(alice), whose=None),
        "user, naming another": Caller(bearer(alice, BOB)),
        "anonymous user, own job": Caller(bearer(signed(claims(is_anonymous=True)))),
        "expired token, own job": Caller(bearer(signed(expired))),
        "service-role token": Caller(bearer(signed(claims(role="service_role")))),
        "key: submit, nobody's job": Caller(bearer(submit), whose=None, acts_for=None),
        "key: read, nobody's job": Caller(bearer(read), whose=None, acts_for=None),
        "key: submit and read, user's job": Caller(bearer(both), acts_for=None),
        "key: submit and read, for the user": Caller(bearer(both, ALICE)),
        "key: submit and read, for another": Caller(bearer(both, BOB), acts_for=BOB),
        "key: admin, user's job": Caller(bearer(admin), acts_for=None),
        "key: admin, for another": Caller(bearer(admin, BOB), acts_for=BOB),
        "key: revoked": Caller(bearer(revoked)),
        "key: past its time": Caller(bearer(old)),
        "key: made up": Caller(bearer("tkg_" + "0" * 72)),
    }


async def ask(house: House, route: str, caller: Caller) -> ClientResponse:
    """Send what a route takes, about a job of ``caller.whose``."""
    method, path = route.split()
    job = await house.job(caller.whose, "failed" if "retry" in path else "queued") if "job_id" in path else None
    path = path.replace("{job_id:[^/]+}", str(job)).replace("{key:.+}", FILE)
    body: dict[str, Any] = {}
    if path == "/api/generate":
        # A user_id in the body is one of the fields that nobody knows.
        body = {"json": {"prompt": "A fox", "user_id": NOBODY_KNOWN, "userId": NOBODY_KNOWN}}
    elif path == "/api/uploads":
        form = FormData()
        form.add_field("file", PICTURE, filename="../../../etc/passwd.png")
        body = {"data": form}
    return await house.client.request(method, path, headers=caller.headers, **body)


def test_the_matrix_has_every_route() -> None:
    assert sorted(COLUMNS.values()) == sorted(f"{route.method} {route.path}" for route in ROUTES)


@pytest.mark.parametrize("place", ["plain", "supabase", "supabase, own role"], indirect=True)
async def test_the_matrix_of_routes_by_caller(house: House) -> None:
    rows = [["caller", *COLUMNS]]
    for name, caller in (await callers(house)).items():
        row = [name]
        for column, route in COLUMNS.items():
            response = await ask(house, route, caller)
            row.append(str(response.status))
            text = await response.read()
            if response.status == 401:
                assert response.headers["WWW-Authenticate"] == "Bearer"
                assert json.loads(text)["code"] in ("authentication_required", "invalid_token", "token_expired")
            elif column == "generate" and response.status == 202:
                assert await house.owner_of(json.loads(text)["jobId"]) == caller.acts_for
            elif column == "retry" and response.status == 202:
                assert await house.owner_of(json.loads(text)["jobId"]) == caller.whose
            elif column == "uploads" and response.status == 201:
                upload = json.loads(text)["reference"].removeprefix("upload:")
                assert await house.storage.list(f"uploads/{caller.acts_for or 'anonymous'}/{upload}")
        rows.append(row)

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = "\n".join(
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    print(table)
    assert table == MATRIX.strip()


# What is beside the matrix --------------------------------------------------------------------------------------------


async def test_idempotency_keys_are_each_users_own(house: House) -> None:
    async def submit(user: str) -> str:
        headers = {**bearer(signed(claims(user))), "Idempotency-Key": "order-1"}
        response = await house.client.post("/api/generate", json={"prompt": "A fox"}, headers=headers)
        job: str = (await response.json())["jobId"]
        return job

    jobs = await asyncio.gather(*(submit(user) for user in (ALICE, BOB) * 3))
    assert len(set(jobs[::2])) == len(set(jobs[1::2])) == 1
    assert jobs[0] != jobs[1]


async def test_others_jobs_count_in_the_line_though_they_cannot_be_seen(house: House) -> None:
    for _ in range(3):
        await house.job(BOB)
    await house.pool.execute("UPDATE generation_jobs SET fair_at = run_at")
    job = await house.job(ALICE)
    response = await house.client.get(f"/api/generate/status/{job}", headers=bearer(signed()))
    assert (await response.json())["queue_position"] == 3


async def test_nothing_of_a_user_stays_in_the_connection(house: House) -> None:
    for _ in range(6):
        job = await house.job(ALICE)
        assert (await house.client.get(f"/api/generate/status/{job}", headers=bearer(signed()))).status == 200
    admin = bearer(await house.key(Scope.ADMIN))
    for owner in (ALICE, BOB, None):
        job = await house.job(owner)
        assert (await house.client.get(f"/api/generate/status/{job}", headers=admin)).status == 200


async def test_the_limits_of_a_user_are_429_with_a_time(house: House) -> None:
    await house.pool.execute("UPDATE generation_settings SET max_queued_per_user = 1")
    await house.job(BOB)
    for _ in range(2):
        response = await house.client.post("/api/generate", json={"prompt": "A fox"}, headers=bearer(signed()))
    assert (response.status, (await response.json(content_type=None))["code"]) == (429, "limit_reached")
    assert int(response.headers["Retry-After"]) > 0
    failed = await house.job(ALICE, "failed")
    assert (await house.client.post(f"/api/generate/{failed}/retry", headers=bearer(signed()))).status == 429


async def test_what_a_status_forbids_is_a_conflict_for_users_too(house: House) -> None:
    job = await house.job(ALICE)
    response = await house.client.post(f"/api/generate/{job}/retry", headers=bearer(signed()))
    assert (response.status, (await response.json(content_type=None))["code"]) == (409, "conflict")
    done = await house.job(ALICE, "completed")
    response = await house.client.post(f"/api/generate/{done}/cancel", headers=bearer(signed()))
    assert (response.status, (await response.json())["status"]) == (202, "completed")


SQL = "'); UPDATE generation_jobs SET status = 'completed'; --"
NESTED = json.loads('{"a":' * 200 + "1" + "}" * 200)


@pytest.mark.parametrize(
    "field",
    ["prompt", "negative_prompt", "style", "mode", "template", "franchise", "reference", "mask", "run_at", "seed"],
)
async def test_sql_in_a_text_field_is_text_or_refused(shop: House, field: str) -> None:
    body = {"prompt": "A fox", field: SQL}
    response = await shop.client.post("/api/generate", json=body, headers=bearer(signed()))
    assert response.status == (202 if "prompt" in field else 400)
    rows = await shop.pool.fetch("SELECT status, prompt, negative_prompt, user_id FROM generation_jobs")
    assert [(row["status"], row[field], str(row["user_id"])) for row in rows] == (
        [("queued", SQL, ALICE)] if "prompt" in field else []
    )


async def test_what_is_made_to_break_things_is_refused_or_harmless(shop: House) -> None:
    strange: list[dict[str, Any]] = [
        {"metadata": {"x": NESTED}},
        {"metadata": {SQL: SQL}},
        {"template_variables": {"__class__": SQL}},
        {"loras": ["../../etc/passwd"]},
        {"reference": "job:../../../etc/passwd/0"},
        {"reference": f"upload:../{BOB}/x"},
        {"id": str(uuid4()), "status": "completed", "priority": 100, "lease_token": 9, "result_url": "x"},
        {"run_at": "2999-01-01T00:00:00Z"},
    ]
    for fields in strange:
        response = await shop.client.post("/api/generate", json={"prompt": "A fox", **fields}, headers=bearer(signed()))
        assert response.status in (202, 400), fields
    rows = await shop.pool.fetch("SELECT DISTINCT user_id, status, priority, lease_token FROM generation_jobs")
    assert [tuple(row) for row in rows] == [(UUID(ALICE), "queued", 0, 0)]

    deep = b'{"prompt": "a", "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    headers = {**bearer(signed()), "Content-Type": "application/json"}
    response = await shop.client.post("/api/generate", data=deep, headers=headers)
    assert response.status in (400, 413)
    for key in ("../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", f"uploads/{ALICE}/x.png", "a\\..\\b", "//etc/passwd"):
        assert (await shop.client.get(f"/files/{key}")).status == 404


async def test_strangers_are_refused_before_their_body_is_looked_at(shop: House) -> None:
    for headers in ({}, bearer("x"), bearer(await shop.key(Scope.READ))):
        response = await shop.client.post("/api/generate", data=b"{", headers=headers)
        assert response.status == (403 if "tkg_" in str(headers) else 401)


async def test_a_user_who_is_gone_can_queue_nothing(shop: House) -> None:
    gone = bearer(signed(claims(NOBODY_KNOWN)))
    response = await shop.client.post("/api/generate", json={"prompt": "A fox"}, headers=gone)
    body = await response.json(content_type=None)
    assert (response.status, body["code"]) == (400, "invalid_request")
    assert body["errors"][0]["field"] == "user_id"


async def test_claims_that_postgresql_cannot_read_harm_nobody(shop: House) -> None:
    for name in ("\x00", "\ud800"):
        token = signed(claims(user_metadata={"name": name}))
        response = await shop.client.post("/api/generate", json={"prompt": "A fox"}, headers=bearer(token))
        assert response.status in (202, 401, 503)
    assert (await shop.client.post("/api/generate", json={"prompt": "A"}, headers=bearer(signed()))).status == 202


async def test_the_policies_have_the_last_word(shop: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a statement of ours forgets whose job it is."""
    forgetful = QUERIES["get"].replace("user_id IS NOT DISTINCT FROM $3", "$3::uuid IS NOT NULL")
    assert forgetful != QUERIES["get"]
    monkeypatch.setitem(QUERIES, "get", forgetful)
    job = await shop.job(ALICE)
    assert (await shop.client.get(f"/api/generate/status/{job}", headers=bearer(signed()))).status == 200
    for stranger in (bearer(signed(claims(BOB))), bearer(await shop.key(Scope.READ), BOB)):
        assert (await shop.client.get(f"/api/generate/status/{job}", headers=stranger)).status == 404
