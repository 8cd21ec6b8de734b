"""How long the API takes to know whose token a request carries, the project's keys being at hand."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from queue_rounds import Rounds

from tenkaigen_worker.api.tokens import Tokens
from tenkaigen_worker.config_api import SupabaseAuthSettings

KEY_ID = "first"
SECRET = "the-jwt-secret-of-a-project-that-signs-with-hs256"
USER = "00000000-0000-4000-8000-00000000a11c"


async def measure(rounds: int, calls: int) -> Rounds:
    """Milliseconds for one token of each kind, the mean of each round."""
    key = ec.generate_private_key(ec.SECP256R1())
    async with _project(key) as url:
        claims = {
            "iss": f"{url}/auth/v1",
            "sub": USER,
            "aud": "authenticated",
            "role": "authenticated",
            "exp": int(time.time()) + 3600,
        }
        signed = {
            "ES256": jwt.encode(claims, key, "ES256", headers={"kid": KEY_ID}),
            "HS256": jwt.encode(claims, SECRET, "HS256"),
        }
        tokens = Tokens(SupabaseAuthSettings.model_validate({"url": url, "jwt_secret": SECRET}))
        found: Rounds = {name: [] for name in signed}
        for number in range(rounds + 1):
            for name, token in signed.items():
                started = perf_counter()
                for _ in range(calls):
                    await tokens.read(token)
                if number:  # the first fetches the keys
                    found[name].append((perf_counter() - started) / calls * 1000)
        return found


@asynccontextmanager
async def _project(key: ec.EllipticCurvePrivateKey) -> AsyncIterator[str]:
    """Give out the public key as a project does; yields the project's URL."""
    public = {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": KEY_ID, "alg": "ES256", "use": "sig"}

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"keys": [public]})

    app = web.Application()
    app.router.add_get("/auth/v1/.well-known/jwks.json", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
