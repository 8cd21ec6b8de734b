"""Tokens of Supabase: each thing that may be wrong with one, the keys that check them, and the cookies they come in."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote
from uuid import UUID

import jwt
import pytest
from aiohttp.test_utils import TestServer, make_mocked_request
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from multidict import CIMultiDict
from pydantic import SecretStr

from tenkaigen_worker.api.credentials import Credentials, Unreadable, cookie_name, read_credentials
from tenkaigen_worker.api.key_set import BETWEEN_FIRST_LOOKS, BETWEEN_LOOKS, KEPT_SECONDS, KeySet, KeysUnavailable
from tenkaigen_worker.api.tokens import LEEWAY_SECONDS, AnonymousUser, BadToken, ExpiredToken, Tokens
from tenkaigen_worker.config_api import SupabaseAuthSettings
from tests.tokens import (
    ALICE,
    COOKIE,
    PROJECT,
    SECRET,
    KeyServer,
    claims,
    ec_key,
    public_ec,
    public_rsa,
    rsa_key,
    session_cookie,
    signed,
)
from tests.unit.examples import Clock


@pytest.fixture
async def keys() -> AsyncIterator[KeyServer]:
    """A project's keys: ``first`` for ES256, ``rsa`` for RS256, and what must not be taken for a key."""
    server = KeyServer()
    server.document = {
        "keys": [
            public_ec("first", alg="ES256", use="sig"),
            public_rsa("rsa"),
            public_ec("to-encrypt", use="enc"),
            public_ec("other-algorithm", alg="RS256"),
            {"kty": "oct", "kid": "shared", "alg": "HS256", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"},
            {"kty": "EC", "crv": "P-256", "kid": "broken", "x": "AA", "y": "AA"},
            {"kty": ["EC"], "kid": "odd"},
            "nothing",
        ]
    }
    async with TestServer(server.app()) as running:
        server.url = str(running.make_url("/auth/v1/.well-known/jwks.json"))  # type: ignore[attr-defined]
        yield server


def key_set(server: Any, clock: Clock) -> KeySet:
    return KeySet(server.url, clock)


def tokens(server: KeyServer, *, secret: str | None = SECRET, anonymous: bool = False) -> Tokens:
    settings = SupabaseAuthSettings(url=PROJECT, jwt_secret=SecretStr(secret) if secret else None, anonymous=anonymous)
    return Tokens(settings, key_set(server, Clock()))


NOW = int(time.time())


# Whom a token names


@pytest.mark.parametrize(
    "token",
    [
        signed(),
        signed(key=ec_key("first"), algorithm="ES256", kid="first"),
        signed(key=rsa_key("rsa"), algorithm="RS256", kid="rsa"),
        signed(claims(is_anonymous=None)),
    ],
    ids=["HS256", "ES256", "RS256", "no is_anonymous"],
)
async def test_a_good_token_names_its_user(keys: KeyServer, token: str) -> None:
    asker = await tokens(keys).read(token)
    assert asker.user_id == UUID(ALICE)
    assert asker.claims is not None
    assert asker.claims["email"] == "alice@example.com"
    assert not asker.sees_all


async def test_clocks_may_be_a_little_apart(keys: KeyServer) -> None:
    now = int(time.time())
    assert await tokens(keys).read(signed(claims(exp=now - 1, iat=now + LEEWAY_SECONDS - 1)))


def unsigned(said: dict[str, Any], algorithm: str = "none") -> str:
    header, body = ({"alg": algorithm, "typ": "JWT"}, said)
    parts = [urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, body)]
    return ".".join([*parts, ""])


def signed_with_the_public_key() -> str:
    """HS256, with what everybody can fetch as the secret: a library that goes by the token's word would believe it."""
    pem = rsa_key("rsa").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    parts = unsigned(claims(), "HS256").rstrip(".")
    signature = hmac.digest(pem, parts.encode(), hashlib.sha256)
    return f"{parts}.{urlsafe_b64encode(signature).decode().rstrip('=')}"


BAD = {
    "wrong audience": signed(claims(aud="anon")),
    "list of audiences": signed(claims(aud=["authenticated", "other"])),
    "wrong issuer": signed(claims(issuer="https://other.supabase.co")),
    "issuer of another path": signed(claims(iss=PROJECT)),
    "not yet valid": signed(claims(nbf=NOW + 86_400)),
    "issued tomorrow": signed(claims(iat=NOW + 86_400)),
    "no exp": signed(claims(exp=None)),
    "no sub": signed(claims(sub=None)),
    "no aud": signed(claims(aud=None)),
    "no iss": signed(claims(iss=None)),
    "no role": signed(claims(role=None)),
    "exp is text": signed(claims(exp="never")),
    "exp is infinite": signed(claims(exp=1e308 * 10)),
    "empty sub": signed(claims(sub="")),
    "sub no UUID": signed(claims(sub="admin")),
    "sub with SQL": signed(claims(sub=f"{ALICE}' OR true --")),
    "sub a number": signed(claims(sub=7)),
    "service role": signed(claims(role="service_role")),
    "legacy service key": signed({"iss": "supabase", "ref": "abcdefgh", "role": "service_role", "exp": NOW + 9999}),
    "legacy anon key": signed({"iss": "supabase", "ref": "abcdefgh", "role": "anon", "exp": NOW + 9999}),
    "unknown kid": signed(key=ec_key("other"), algorithm="ES256", kid="other"),
    "known kid, other key": signed(key=ec_key("other"), algorithm="ES256", kid="first"),
    "no kid": signed(key=ec_key("first"), algorithm="ES256"),
    "kid of a shared key": signed(key="secret-secret-secret-secret-secret", algorithm="HS256", kid="shared"),
    "kid of a key to encrypt": signed(key=ec_key("to-encrypt"), algorithm="ES256", kid="to-encrypt"),
    "kid of a contradictory key": signed(key=ec_key("other-algorithm"), algorithm="ES256", kid="other-algorithm"),
    "kid is a path": signed(key=ec_key("first"), algorithm="ES256", kid="../../first"),
    "algorithm of another key": signed(key=rsa_key("rsa"), algorithm="RS256", kid="first"),
    "PS256 with the RSA key": signed(key=rsa_key("rsa"), algorithm="PS256", kid="rsa"),
    "HS512 with the secret": signed(key=SECRET * 2, algorithm="HS512"),
    "wrong secret": signed(key="another-secret-another-secret-another-secret"),
    "alg none": unsigned(claims()),
    "alg None": unsigned(claims(), "None"),
    "HS256 with the public key": signed_with_the_public_key(),
    "no signature": signed().rpartition(".")[0] + ".",
    "other body": ".".join(
        part if place != 1 else unsigned(claims(role="service_role")).split(".")[1]
        for place, part in enumerate(signed().split("."))
    ),
    "two parts": "a.b",
    "nested": signed(claims(), jku="https://evil.example", x5u="https://evil.example") + ".x",
    "nonsense": "nonsense",
    "nothing but dots": "..",
    "deep": urlsafe_b64encode(b"[" * 5000).decode().rstrip("=") + ".e30.e30",
    "huge number": urlsafe_b64encode(b'{"alg":' + b"9" * 5000 + b"}").decode().rstrip("=") + ".e30.e30",
}


@pytest.mark.parametrize("token", BAD.values(), ids=BAD.keys())
async def test_a_bad_token_is_refused_whatever_is_wrong_with_it(keys: KeyServer, token: str) -> None:
    with pytest.raises(BadToken) as refused:
        await tokens(keys).read(token)
    assert str(refused.value) == ""


async def test_an_expired_token_is_told_apart_only_when_it_was_good(keys: KeyServer) -> None:
    old = claims(exp=NOW - LEEWAY_SECONDS - 5)
    with pytest.raises(ExpiredToken):
        await tokens(keys).read(signed(old))
    with pytest.raises(BadToken):
        await tokens(keys).read(signed(old, key="another-secret-another-secret-another-secret"))


async def test_without_a_secret_hs256_is_refused(keys: KeyServer) -> None:
    with pytest.raises(BadToken):
        await tokens(keys, secret=None).read(signed())


@pytest.mark.parametrize("said", [True, "false", 1])
async def test_anonymous_users_come_in_only_where_they_may(keys: KeyServer, said: object) -> None:
    token = signed(claims(is_anonymous=said))
    with pytest.raises(AnonymousUser):
        await tokens(keys).read(token)
    assert (await tokens(keys, anonymous=True).read(token)).user_id == UUID(ALICE)


# The set of keys


async def test_keys_are_fetched_once_and_again_when_they_are_old(keys: KeyServer) -> None:
    clock = Clock()
    found = key_set(keys, clock)
    for _ in range(3):
        assert (await found.find("first")) is not None
    assert keys.asked == 1
    clock.now += KEPT_SECONDS + 1
    await found.find("first")
    assert keys.asked == 2


async def test_a_new_key_is_found_and_strangers_cannot_make_us_ask_at_every_request(keys: KeyServer) -> None:
    clock = Clock()
    found = key_set(keys, clock)
    assert await found.find("second") is None
    keys.document = {"keys": [public_ec("first"), public_ec("second")]}
    for number in range(5):
        assert await found.find(f"made-up-{number}") is None
        assert await found.find("second") is None
    assert keys.asked == 1
    clock.now += BETWEEN_LOOKS
    assert await found.find("second") is not None
    assert keys.asked == 2


async def test_a_key_that_was_taken_back_counts_no_more(keys: KeyServer) -> None:
    clock = Clock()
    found = key_set(keys, clock)
    assert await found.find("first") is not None
    keys.document = {"keys": [public_ec("second")]}
    clock.now += KEPT_SECONDS + 1
    assert await found.find("first") is None


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (500, {}),
        (302, {"keys": [public_ec("evil")]}),
        (200, b"<html>"),
        (200, b"\xff"),
        (200, b"[" * 10_000),
        (200, b"[]"),
        (200, {"keys": {}}),
        (200, json.dumps({"keys": [public_ec("evil")]}).encode() + b" " * 70_000),
    ],
)
async def test_the_old_set_is_kept_while_there_is_no_newer_one(
    keys: KeyServer, status: int, document: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    found = key_set(keys, clock)
    assert await found.find("first") is not None
    keys.status, keys.document = status, document
    clock.now += KEPT_SECONDS + 1
    with caplog.at_level(logging.WARNING, "tenkaigen.api"):
        assert await found.find("first") is not None
        assert await found.find("evil") is None
    assert [record.action for record in caplog.records] == ["sign_in_keys_unavailable"]  # type: ignore[attr-defined]
    assert keys.asked == 2


async def test_without_any_set_nobody_can_be_checked_until_there_is_one(keys: KeyServer) -> None:
    clock = Clock()
    found = key_set(keys, clock)
    keys.status = 503
    for _ in range(2):
        with pytest.raises(KeysUnavailable):
            await found.find("first")
    assert keys.asked == 1
    keys.status = 200
    clock.now += BETWEEN_FIRST_LOOKS
    assert await found.find("first") is not None


async def test_a_server_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeysUnavailable):
        await KeySet("http://127.0.0.1:1/keys").find("first")
    assert "cannot be fetched" in caplog.text


# What a request carries


def credentials_of(*headers: tuple[str, str]) -> Credentials | None:
    return read_credentials(make_mocked_request("POST", "/", CIMultiDict(headers)), COOKIE)


def in_cookies(cookies: dict[str, str]) -> tuple[str, str]:
    return "Cookie", "; ".join(f"{name}={value}" for name, value in cookies.items())


TOKEN = signed()


@pytest.mark.parametrize("sent", ["Bearer {}", "bearer   {}", "BEARER {} "])
def test_a_bearer_token_is_read(sent: str) -> None:
    assert credentials_of(("Authorization", sent.format(TOKEN))) == Credentials(TOKEN)


@pytest.mark.parametrize("chunk", [100_000, 3180, 50])
def test_a_session_is_read_from_its_cookies(chunk: int) -> None:
    whole = session_cookie(TOKEN, chunk)
    reordered = dict(reversed(whole.items()))
    for cookies in (whole, reordered, {**whole, "theme": "dark", f"{COOKIE}-code-verifier": "x"}):
        assert credentials_of(in_cookies(cookies)) == Credentials(TOKEN, from_cookie=True)


def test_a_session_may_stand_there_as_plain_json() -> None:
    quoted = {name: quote(value) for name, value in session_cookie(TOKEN, 2000, raw=True).items()}
    assert credentials_of(in_cookies(quoted)) == Credentials(TOKEN, from_cookie=True)


def test_without_any_there_are_none() -> None:
    assert credentials_of() is None
    assert credentials_of(in_cookies({COOKIE: ""})) is None
    assert credentials_of(in_cookies({f"{COOKIE}.1": "a later part alone"})) is None
    assert credentials_of(in_cookies({"sb-other-auth-token": session_cookie(TOKEN, 9999)[COOKIE]})) is None


def test_the_same_token_twice_is_one() -> None:
    both = (("Authorization", f"Bearer {TOKEN}"), in_cookies(session_cookie(TOKEN)))
    assert credentials_of(*both) == Credentials(TOKEN)


WHOLE = session_cookie(TOKEN, 100_000)[COOKIE]
OTHER = signed(claims(email="x"))


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "")],
        [("Authorization", TOKEN)],
        [("Authorization", f"Basic {TOKEN}")],
        [("Authorization", "Bearer")],
        [("Authorization", f"Bearer {TOKEN} {TOKEN}")],
        [("Authorization", f"Bearer {TOKEN}, Bearer {TOKEN}")],
        [("Authorization", "Bearer tökén")],
        [("Authorization", "Bearer " + "x" * 8193)],
        [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {OTHER}")],
        [("Authorization", f"Bearer {OTHER}"), in_cookies({COOKIE: WHOLE})],
        [in_cookies({COOKIE: WHOLE}), ("Cookie", f"{COOKIE}={session_cookie(OTHER, 99_999)[COOKIE]}")],
        [in_cookies({COOKIE: WHOLE[:-40]})],
        [in_cookies({COOKIE: "base64-"})],
        [in_cookies({COOKIE: "base64-%%%"})],
        [in_cookies({COOKIE: "base64-" + "W" * 9000})],
        [in_cookies({COOKIE: quote("[" * 5000)})],
        [in_cookies({COOKIE: quote('["token"]')})],
        [in_cookies({COOKIE: quote('{"access_token": 7}')})],
        [in_cookies({COOKIE: quote('{"access_token": "a b"}')})],
        [in_cookies({COOKIE: quote('{"refresh_token": "a"}')})],
        [in_cookies({COOKIE: quote(json.dumps({"access_token": "x" * 9000}))})],
        [in_cookies({COOKIE: "\x00"})],
    ],
)
def test_what_is_not_one_token_is_unreadable(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(Unreadable):
        credentials_of(*headers)


def test_the_cookie_has_the_name_that_supabase_js_gives_it() -> None:
    assert cookie_name(PROJECT) == COOKIE
    assert cookie_name("http://127.0.0.1:54321") == "sb-127-auth-token"


def test_tokens_here_are_what_the_library_reads() -> None:
    assert jwt.decode(TOKEN, SECRET, ["HS256"], audience="authenticated")["sub"] == ALICE
