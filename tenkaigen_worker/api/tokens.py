"""Access tokens of Supabase: whether one is good, and whom it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import jwt
from jwt import PyJWK
from jwt.exceptions import ExpiredSignatureError, PyJWTError
from jwt.utils import base64url_decode

from tenkaigen_worker.api.body import read_uuid
from tenkaigen_worker.api.key_set import KeySet, issuer_of, keys_url
from tenkaigen_worker.config_api import SupabaseAuthSettings
from tenkaigen_worker.jobs import Asker

# How far two clocks may be apart, in seconds.
LEEWAY_SECONDS = 10

_CLAIMS = ["exp", "sub", "aud", "iss"]
_USER = "authenticated"


class BadToken(Exception):
    """The token is not one of a user of the project. Why is nobody's business who sends such a one."""


class ExpiredToken(Exception):
    """The token was good, and needs to be refreshed."""


class AnonymousUser(Exception):
    """The token is one of an anonymous sign-in, and these are not let in."""


class Tokens:
    """Checks the tokens of one project: signature, times, and every claim that says for whom they are."""

    def __init__(self, settings: SupabaseAuthSettings, keys: KeySet | None = None) -> None:
        issuer = issuer_of(settings.url or "")
        self._issuer = issuer
        self._keys = keys or KeySet(keys_url(issuer))
        self._secret = settings.jwt_secret
        self._anonymous = settings.anonymous

    async def read(self, token: str) -> Asker:
        """The user of a token, with its claims.

        Raises :class:`BadToken`, :class:`ExpiredToken`, :class:`AnonymousUser`, or
        :class:`~tenkaigen_worker.api.key_set.KeysUnavailable` when its signature cannot be checked.
        """
        claims = await self._claims(token)
        user_id = read_uuid(claims["sub"])
        if claims.get("role") != _USER or user_id is None:
            raise BadToken
        if not self._anonymous and claims.get("is_anonymous", False) is not False:
            raise AnonymousUser
        return Asker(user_id, claims)

    async def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            key, algorithm = await self._key_of(_header(token))
            return cast(
                "Mapping[str, Any]",
                jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    audience=_USER,
                    issuer=self._issuer,
                    leeway=LEEWAY_SECONDS,
                    options={"require": _CLAIMS, "strict_aud": True},
                ),
            )
        except ExpiredSignatureError:
            raise ExpiredToken from None
        except PyJWTError:
            raise BadToken from None

    async def _key_of(self, header: Mapping[str, Any]) -> tuple[PyJWK | str, str]:
        """The key that a token names, and the one algorithm for which that key is."""
        if header.get("alg") == "HS256":
            if self._secret is None:
                raise BadToken
            return self._secret.get_secret_value(), "HS256"
        key_id = header.get("kid")
        key = await self._keys.find(key_id) if isinstance(key_id, str) else None
        if key is None:
            raise BadToken
        return key, key.algorithm_name


def _header(token: str) -> Mapping[str, Any]:
    """What a token says of its key; the library's own function would decode the whole token for it."""
    try:
        header = json.loads(base64url_decode(token.partition(".")[0]))
    except (ValueError, RecursionError):
        raise BadToken from None
    if not isinstance(header, dict):
        raise BadToken
    return header
