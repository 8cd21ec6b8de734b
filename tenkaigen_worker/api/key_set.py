"""The public keys with which a Supabase project signs its tokens (JWKS, RFC 7517), fetched and kept."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from math import inf
from time import monotonic
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout
from jwt import PyJWK
from jwt.exceptions import PyJWTError

log = logging.getLogger("tenkaigen.api")

# How old the set may be, and how soon after a look another one is worth it, in seconds: an unknown key is looked for,
# but strangers who make up names of keys must not make us ask at every request.
KEPT_SECONDS = 600.0
BETWEEN_LOOKS = 30.0
BETWEEN_FIRST_LOOKS = 2.0

_TIMEOUT = ClientTimeout(total=5)
_LARGEST_BYTES = 65_536


class KeysUnavailable(Exception):
    """No key could be fetched; the words say why."""


def issuer_of(project: str) -> str:
    """How a project at a URL calls itself in its tokens."""
    return f"{project}/auth/v1"


def keys_url(issuer: str) -> str:
    """Where its keys are."""
    return f"{issuer}/.well-known/jwks.json"


async def fetch_keys(url: str) -> Mapping[str, PyJWK]:
    """The keys there that can check signatures, by their ids; raises :class:`KeysUnavailable`."""
    try:
        return _usable(await _fetch(url))
    except (ClientError, OSError, TimeoutError, ValueError, RecursionError) as error:
        raise KeysUnavailable(str(error)[:200] or type(error).__name__) from None


class KeySet:
    """The keys at ``url``, by their ids. An old set is kept while no newer one can be had."""

    def __init__(self, url: str, clock: Callable[[], float] = monotonic) -> None:
        self._url = url
        self._clock = clock
        self._keys: Mapping[str, PyJWK] | None = None
        self._fresh_until = -inf
        self._next_look = -inf
        self._looking = asyncio.Lock()

    async def find(self, key_id: str) -> PyJWK | None:
        """The key of this id; raises :class:`KeysUnavailable` while there has never been a set."""
        if not self._answers(key_id) and not (self._looking.locked() and key_id in (self._keys or {})):
            async with self._looking:
                if not self._answers(key_id) and self._clock() >= self._next_look:
                    await self._look()
        if self._keys is None:
            raise KeysUnavailable
        return self._keys.get(key_id)

    def _answers(self, key_id: str) -> bool:
        return self._keys is not None and key_id in self._keys and self._clock() < self._fresh_until

    async def _look(self) -> None:
        try:
            self._keys = await fetch_keys(self._url)
            self._fresh_until = self._clock() + KEPT_SECONDS
        except KeysUnavailable as error:
            log.warning(
                "The keys at %s cannot be fetched: %s",
                self._url,
                error,
                extra={"action": "sign_in_keys_unavailable"},
            )
        finally:
            self._next_look = self._clock() + (BETWEEN_FIRST_LOOKS if self._keys is None else BETWEEN_LOOKS)


async def _fetch(url: str) -> Any:
    """The JSON there. What redirects, or is larger than any set of keys, is not it."""
    async with (
        ClientSession(timeout=_TIMEOUT) as session,
        session.get(url, allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        data = await response.content.read(_LARGEST_BYTES + 1)
        while len(data) <= _LARGEST_BYTES and (more := await response.content.read(_LARGEST_BYTES)):
            data += more
        if len(data) > _LARGEST_BYTES:
            raise ValueError(f"more than {_LARGEST_BYTES} bytes")
        return json.loads(data)


def _usable(document: Any) -> Mapping[str, PyJWK]:
    """The keys of a set that can check signatures. Raises ``ValueError`` when the document is no set of keys."""
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("there is no list of keys in it")
    keys: dict[str, PyJWK] = {}
    for entry in entries:
        algorithm = _algorithm(entry)
        if algorithm is None or not isinstance(entry.get("kid"), str):
            continue
        try:
            keys[entry["kid"]] = PyJWK(entry, algorithm)
        except PyJWTError:
            continue
    return keys


def _algorithm(key: Any) -> str | None:
    """The one algorithm that a key is for, by its kind, whatever a token says; ``None`` for one that checks nothing."""
    match key:
        case {"use": use} if use != "sig":
            return None
        case {"kty": "EC", "crv": "P-256"}:
            algorithm = "ES256"
        case {"kty": "RSA"}:
            algorithm = "RS256"
        case _:
            return None
    return algorithm if key.get("alg", algorithm) == algorithm else None
