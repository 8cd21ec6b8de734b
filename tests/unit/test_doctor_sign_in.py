"""What doctor says of the keys by which users are let in."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from tenkaigen_worker.cli.doctor import Finding, _sign_in
from tenkaigen_worker.config import Settings
from tests.tokens import SECRET, KeyServer, public_ec


async def findings(url: str, **supabase: Any) -> list[Finding]:
    api = {"auth": "supabase", "supabase": {"url": url, **supabase}}
    return [finding async for finding in _sign_in(Settings.model_validate({"api": api}))]


@pytest.mark.parametrize(
    ("keys", "secret", "found", "remedy"),
    [
        ([public_ec("a")], None, "1 key at http", ""),
        ([public_ec("a"), public_ec("b")], SECRET, "2 keys at http", ""),
        ([], SECRET, "by api.supabase.jwt_secret", ""),
        ([], None, "no user can be let in", "TENKAIGEN_API__SUPABASE__JWT_SECRET"),
        ([{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}], None, "no user can be let in", "asymmetric"),
        (None, None, "there is no list of keys in it", "Check api.supabase.url"),
    ],
)
async def test_the_keys_of_the_project_are_looked_at_once(
    keys: object, secret: str | None, found: str, remedy: str
) -> None:
    server = KeyServer()
    server.document = {"keys": keys}
    async with TestServer(server.app()) as project:
        url = str(project.make_url("")).rstrip("/")
        (finding,) = await findings(url, **({"jwt_secret": secret} if secret else {}))
    assert found in finding.found
    assert remedy in finding.remedy
    assert finding.ok is not bool(remedy)
    assert server.asked == 1
    assert SECRET not in str(finding)


async def test_a_project_that_does_not_answer() -> None:
    (finding,) = await findings("http://127.0.0.1:1")
    assert finding.found.startswith("no keys at http://127.0.0.1:1/auth/v1/.well-known/jwks.json: ")
    assert "api.supabase.url" in finding.remedy


async def test_without_users_of_supabase_nothing_is_asked() -> None:
    assert [finding async for finding in _sign_in(Settings())] == []
