"""Who is let in, and what is said to those who are not; and which pages may call from a browser."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer
from pydantic import SecretStr

from tenkaigen_worker.access import ApiKey, Scope, digest_of, new_key
from tenkaigen_worker.api.app import ROUTES, make_app
from tenkaigen_worker.api.keys import KEPT_SECONDS, Keys
from tenkaigen_worker.api.parts import Parts
from tenkaigen_worker.api.serve import serving
from tenkaigen_worker.config_api import ApiSettings, SupabaseAuthSettings
from tenkaigen_worker.errors import DatabaseError
from tenkaigen_worker.jobs import Asker, JobView
from tests.tokens import ALICE, PROJECT, SECRET, KeyServer, claims, ec_key, session_cookie, signed
from tests.unit.examples import QUEUED, Clock, FakeKeys

SHOP = "https://shop.example"
STATUS = f"/api/generate/status/{QUEUED.id}"
CANCEL = f"/api/generate/{QUEUED.id}/cancel"


class Jobs:
    """One job, whoever asks; remembers who did."""

    def __init__(self) -> None:
        self.askers: list[Asker] = []

    async def get(self, job_id: UUID, asker: Asker) -> JobView:
        self.askers.append(asker)
        return QUEUED

    cancel = get

    async def line(self, job_id: UUID, asker: Asker) -> None:
        return None


class Offers:
    """Nothing to offer."""

    async def styles(self) -> Mapping[str, str]:
        return {}


class Plugins:
    """One broken file."""

    problems = ("/srv/secret/folder/broken.yaml:1: unknown key",)


async def no_database() -> None:
    raise DatabaseError("no answer from secret-host:5432")


@dataclasses.dataclass
class Door:
    """An API, and what is behind it."""

    client: TestClient[Any, Any]
    jobs: Jobs
    keys: FakeKeys

    async def status(self, **headers: str) -> tuple[int, str]:
        """The answer of a route that needs to know who asks, and its code."""
        response = await self.client.get(STATUS, headers=headers)
        return response.status, (await response.json(content_type=None)).get("code", "")


@asynccontextmanager
async def door(*auth: str, url: str = PROJECT, secret: str | None = SECRET, **settings: Any) -> AsyncIterator[Door]:
    supabase = SupabaseAuthSettings(url=url, jwt_secret=SecretStr(secret) if secret else None)
    api = ApiSettings(auth=auth, supabase=supabase, cors_origins=(SHOP, "http://localhost:3000"), **settings)
    jobs, keys = Jobs(), FakeKeys()
    parts = Parts(jobs, None, None, Plugins(), Offers(), no_database, keys)  # type: ignore[arg-type]
    async with TestClient(TestServer(make_app(parts, api))) as client:
        yield Door(client, jobs, keys)


def key_of(*scopes: Scope) -> ApiKey:
    return ApiKey(UUID(int=9), "back office", frozenset(scopes), datetime.now(UTC), None, None, None)


def test_every_route_says_what_it_needs() -> None:
    app = make_app(Parts(*[None] * 7), ApiSettings())  # type: ignore[arg-type]
    there = {
        (route.method, route.resource.get_info().get("path") or route.resource.get_info()["formatter"])
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    said = {(route.method, route.path.replace(":[^/]+", "").replace(":.+", "")) for route in ROUTES}
    assert there == said
    assert {route.path for route in ROUTES if route.needs is None} == {
        "/", "/healthz", "/readyz", "/api/styles", "/api/offer", "/files/{key:.+}"
    }  # fmt: skip


# What is said to those who are not let in


async def test_each_refusal_has_its_code_and_no_help() -> None:
    async with door("supabase") as at:
        assert await at.status() == (401, "authentication_required")
        assert await at.status(Authorization=f"Bearer {signed(claims(is_anonymous=True))}") == (
            401,
            "authentication_required",
        )
        assert await at.status(Authorization=f"Bearer {signed(claims(exp=1, iat=None))}") == (401, "token_expired")
        refusals = set()
        for token in ("nonsense", signed(claims(aud="x")), signed(claims(role="anon")), signed(key="x" * 40)):
            response = await at.client.get(STATUS, headers={"Authorization": f"Bearer {token}"})
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
            refusals.add(await response.text())
        assert len(refusals) == 1
        assert "invalid_token" in refusals.pop()
        assert at.jobs.askers == []
        assert await at.status(Authorization=f"Bearer {signed()}") == (200, "")


async def test_a_way_in_that_is_not_named_is_closed() -> None:
    key = new_key()
    async with door("supabase") as at:
        at.keys.rows[digest_of(key) or b""] = key_of(Scope.ADMIN)
        assert await at.status(Authorization=f"Bearer {key}") == (401, "invalid_token")
    async with door("api_keys") as at:
        at.keys.rows[digest_of(key) or b""] = key_of(Scope.ADMIN)
        assert await at.status(Authorization=f"Bearer {key}") == (200, "")
        assert await at.status(Authorization=f"Bearer {signed()}") == (401, "invalid_token")
        cookies = "; ".join(f"{name}={value}" for name, value in session_cookie(signed()).items())
        assert await at.status(Cookie=cookies) == (401, "authentication_required")


async def test_where_nobody_is_asked_everybody_may_do_everything() -> None:
    async with door("none") as at:
        assert await at.status(Authorization="Bearer nonsense") == (200, "")
        assert at.jobs.askers[0].sees_all


async def test_while_no_key_can_be_fetched_nobody_is_called_a_liar() -> None:
    token = signed(key=ec_key("first"), algorithm="ES256", kid="first")
    async with door("supabase", url="http://127.0.0.1:1") as at:
        response = await at.client.get(STATUS, headers={"Authorization": f"Bearer {token}"})
        assert response.status == 503
        assert (await response.json(content_type=None))["code"] == "authentication_unavailable"
        assert response.headers["Retry-After"]


async def test_a_token_is_checked_by_the_keys_of_its_project() -> None:
    server = KeyServer()
    async with TestServer(server.app()) as project:
        url = str(project.make_url("")).rstrip("/")
        token = signed(claims(issuer=url), key=ec_key("first"), algorithm="ES256", kid="first")
        async with door("supabase", url=url, secret=None) as at:
            for _ in range(3):
                assert await at.status(Authorization=f"Bearer {token}") == (200, "")
            assert at.jobs.askers[0].user_id == UUID(ALICE)
    assert server.asked == 1


@pytest.mark.parametrize("users", [["me"], [ALICE, ALICE], [""], [f"{ALICE}' OR true"], [f"{ALICE}, {ALICE}"]])
async def test_a_key_acts_for_one_user(users: list[str]) -> None:
    key = new_key()
    async with door("api_keys") as at:
        at.keys.rows[digest_of(key) or b""] = key_of(Scope.READ)
        headers = [("Authorization", f"Bearer {key}"), *(("X-User-Id", user) for user in users)]
        response = await at.client.get(STATUS, headers=headers)
        assert response.status == 400
        assert (await response.json(content_type=None))["code"] == "invalid_user_id"
        assert await at.status(Authorization=f"Bearer {key}", **{"X-User-Id": ALICE}) == (200, "")
        assert {asker.user_id for asker in at.jobs.askers} == {UUID(ALICE)}


async def test_strangers_hear_nothing_of_this_machine() -> None:
    for auth, secret in (("none", True), ("supabase", False)):
        async with door(auth) as at:
            styles = await (await at.client.get("/api/styles")).text()
            ready = await (await at.client.get("/readyz")).text()
        assert ("/srv/secret" in styles, "secret-host" in ready) == (secret, secret)


async def test_no_token_or_key_stands_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key, token = new_key(), signed()
    async with door("supabase", "api_keys") as at:
        for sent in (key, token, signed(claims(aud="x")), token[:-3]):
            await at.client.post(CANCEL, headers={"Authorization": f"Bearer {sent}"})
            await at.client.get(STATUS, cookies=session_cookie(sent))
    said = caplog.text + json.dumps([record.__dict__ for record in caplog.records], default=str)
    assert "request_answered" in said
    for secret in (key[4:], SECRET, *token.split(".")):
        assert secret not in said


# Keys, and how long an answer about one counts


def test_what_is_no_key_is_known_without_asking() -> None:
    key = new_key()
    changed = key[:20] + ("0" if key[20] != "0" else "1") + key[21:]
    for text in ("", "tkg_", "tkg_" + "0" * 72, key[:-1], key + "0", key.upper(), changed, f" {key}", f"{key}\n"):
        assert digest_of(text) is None


def test_keys_are_long_random_and_their_digests_do_not_show_them() -> None:
    made = {new_key() for _ in range(50)}
    assert len({digest_of(key) for key in made} - {None}) == 50
    assert {len(key) for key in made} == {76}


async def test_an_answer_counts_for_seconds_only() -> None:
    table, clock, key = FakeKeys(), Clock(), new_key()
    keys = Keys(table, clock)
    digest = digest_of(key) or b""
    table.rows[digest] = key_of(Scope.READ)
    for _ in range(5):
        assert await keys.find(key) is not None
    assert table.asked == 1

    del table.rows[digest]
    clock.now += KEPT_SECONDS
    assert await keys.find(key) is None
    assert await keys.find(key) is None
    assert table.asked == 2


async def test_made_up_keys_do_not_fill_the_memory() -> None:
    keys = Keys(FakeKeys(), Clock())
    for _ in range(1500):
        await keys.find(new_key())
    assert len(keys._answers) <= 1000


# Pages of other origins


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.mark.parametrize("origin", [SHOP, "http://localhost:3000"])
async def test_listed_pages_may_call(origin: str) -> None:
    async with door("supabase") as at:
        asked = await at.client.options("/api/generate", headers={**PREFLIGHT, "Origin": origin})
        answers = [asked, await at.client.get(STATUS, headers={"Origin": origin}), await at.client.get("/nothing")]
        assert asked.status == 204
        assert "Authorization" in asked.headers["Access-Control-Allow-Headers"]
        assert "POST" in asked.headers["Access-Control-Allow-Methods"]
        for answer in answers[:2]:  # also what is refused may be read
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        for answer in answers:
            assert answer.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Origin" not in answers[2].headers


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://shop.example", "https://shop.example:8443", "https://shop.example.evil.example",
     "https://evilshop.example", "null", "*", "", "http://localhost:3001"],
)  # fmt: skip
async def test_other_pages_may_not(origin: str) -> None:
    async with door("supabase") as at:
        asked = await at.client.options("/api/generate", headers={**PREFLIGHT, "Origin": origin})
        assert asked.status == 403
        read = await at.client.get(STATUS, headers={"Origin": origin, "Authorization": f"Bearer {signed()}"})
        for answer in (asked, read):
            assert not [name for name in answer.headers if name.startswith("Access-Control")]


async def test_without_listed_origins_nothing_is_said_of_them() -> None:
    app = make_app(Parts(*[None] * 7), ApiSettings())  # type: ignore[arg-type]
    async with TestClient(TestServer(app)) as client:
        answer = await client.get("/healthz", headers={"Origin": SHOP})
        assert not {"Vary", "Access-Control-Allow-Origin"} & set(answer.headers)
        assert (await client.options("/healthz", headers={"Origin": SHOP})).status == 405


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (SHOP, True),
        ("http://localhost:3000", True),
        ("own", True),
        ("http://127.0.0.1:1", False),
        ("http://localhost:3001", False),
        ("https://evil.example", False),
        ("null", False),
        (None, False),
    ],
)
async def test_a_cookie_counts_only_for_our_own_pages(origin: str | None, allowed: bool) -> None:
    async with door("supabase") as at:
        own = str(at.client.make_url("")).rstrip("/")
        headers = {"Origin": own if origin == "own" else origin} if origin else {}
        cookies = session_cookie(signed())
        response = await at.client.post(CANCEL, headers=headers, cookies=cookies)
        assert response.status == (202 if allowed else 403)
        if not allowed:
            assert (await response.json(content_type=None))["code"] == "wrong_origin"
            assert at.jobs.askers == []
        assert (await at.client.get(STATUS, headers=headers, cookies=cookies)).status == 200
        bearer = {"Authorization": f"Bearer {signed()}"}
        assert (await at.client.post(CANCEL, headers=bearer)).status == 202


async def test_a_session_of_ten_kilobytes_still_gets_through_the_server() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(len(request.headers["Cookie"]))

    app = web.Application()
    app.router.add_get("/", answer)
    async with (
        serving(app, ApiSettings(port=0)) as url,
        ClientSession() as session,
        session.get(url, headers={"Cookie": "a=" + "x" * 12_000}) as response,
    ):
        assert await response.json() == 12_002
