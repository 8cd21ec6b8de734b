"""Tokens as Supabase signs them, the keys behind them, and a server that gives these out."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from functools import cache
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

PROJECT = "https://abcdefgh.supabase.co"
COOKIE = "sb-abcdefgh-auth-token"
SECRET = "the-jwt-secret-of-a-project-that-signs-with-hs256"
ALICE = "00000000-0000-4000-8000-00000000a11c"
BOB = "00000000-0000-4000-8000-000000000b0b"


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    """A private key for ES256; the same one for the same name."""
    return ec.generate_private_key(ec.SECP256R1())


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """A private key for RS256."""
    return rsa.generate_private_key(65537, 2048)


def public_ec(name: str, **more: Any) -> dict[str, Any]:
    """Its public half, as a set of keys has it."""
    return {**ECAlgorithm.to_jwk(ec_key(name).public_key(), as_dict=True), "kid": name, **more}


def public_rsa(name: str, **more: Any) -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(rsa_key(name).public_key(), as_dict=True), "kid": name, **more}


def claims(user: str = ALICE, issuer: str = PROJECT, **changed: Any) -> dict[str, Any]:
    """What Supabase says of a user; a claim that is changed to ``None`` is left out."""
    now = int(time.time())
    said = {
        "iss": f"{issuer}/auth/v1",
        "sub": user,
        "aud": "authenticated",
        "role": "authenticated",
        "exp": now + 3600,
        "iat": now,
        "email": "alice@example.com",
        "is_anonymous": False,
        "app_metadata": {"provider": "email"},
    }
    return {name: value for name, value in {**said, **changed}.items() if value is not None}


def signed(said: dict[str, Any] | None = None, key: Any = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    """A token."""
    return jwt.encode(claims() if said is None else said, key, algorithm, headers=header)


def session_cookie(token: str, chunk: int = 3180, *, raw: bool = False) -> dict[str, str]:
    """The cookies in which @supabase/ssr keeps a session."""
    text = json.dumps({"access_token": token, "refresh_token": "r", "user": {"id": ALICE, "name": "Älice" * 300}})
    if not raw:
        text = "base64-" + urlsafe_b64encode(text.encode()).decode().rstrip("=")
    if len(text) <= chunk:
        return {COOKIE: text}
    starts = range(0, len(text), chunk)
    return {f"{COOKIE}.{number}": text[start : start + chunk] for number, start in enumerate(starts)}


class KeyServer:
    """Gives out ``document`` where a project does; ``asked`` counts."""

    def __init__(self) -> None:
        self.document: Any = {"keys": [public_ec("first")]}
        self.status = 200
        self.asked = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/auth/v1/.well-known/jwks.json", self._answer)
        app.router.add_get("/elsewhere", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        body = self.document if isinstance(self.document, bytes) else json.dumps(self.document).encode()
        headers = {"Location": "/elsewhere"} if self.status == 302 and request.path != "/elsewhere" else {}
        return web.Response(status=self.status, body=body, headers=headers)
