"""What a request carries to say who sends it: one token, as ``Authorization: Bearer`` or in Supabase's cookie."""

from __future__ import annotations

import binascii
import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from urllib.parse import unquote, urlsplit

from aiohttp import web

# Tokens of Supabase have about 1000 characters; hooks may add claims.
LONGEST_TOKEN = 8192

_TOKEN = re.compile(rf"[A-Za-z0-9._~+/=-]{{1,{LONGEST_TOKEN}}}")
_BEARER = re.compile(r"(?i:bearer) +(?P<token>\S+) *")
_BASE64 = "base64-"


class Unreadable(Exception):
    """There are credentials, but not one token that can be read."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """One token. ``from_cookie`` is one that a browser sends by itself, whoever made it send the request."""

    token: str
    from_cookie: bool = False


def cookie_name(url: str) -> str:
    """The cookie in which supabase-js keeps the session of the project at ``url``."""
    return f"sb-{(urlsplit(url).hostname or '').split('.')[0]}-auth-token"


def read_credentials(request: web.Request, cookie: str | None) -> Credentials | None:
    """The request's token, or ``None`` when it carries none; ``cookie`` is the name of the one that is looked at.

    Raises :class:`Unreadable`, also for two tokens that differ: nobody could tell which of them is meant.
    """
    bearer = _bearer(request.headers.getall("Authorization", []))
    in_cookie = _session_token(_parts(request, cookie), cookie) if cookie else None
    if bearer is None:
        return None if in_cookie is None else Credentials(in_cookie, from_cookie=True)
    if in_cookie is not None and in_cookie != bearer:
        raise Unreadable
    return Credentials(bearer)


def _bearer(headers: list[str]) -> str | None:
    if not headers:
        return None
    match = _BEARER.fullmatch(headers[0])
    if len(headers) > 1 or match is None:
        raise Unreadable
    return _checked(match["token"])


def _session_token(parts: Mapping[str, str], name: str) -> str | None:
    """The access token of a session as @supabase/ssr writes it: whole, or cut into ``name.0``, ``name.1`` and so on.

    It is JSON, either as it is or as base64url behind a prefix. A session that ended leaves an empty cookie.
    """
    chunks = takewhile(bool, (parts.get(f"{name}.{number}", "") for number in count()))
    text = parts.get(name) or "".join(chunks)
    if not text:
        return None
    try:
        if text.startswith(_BASE64):
            text = urlsafe_b64decode(text.removeprefix(_BASE64) + "==").decode()
        session = json.loads(text)
    except (binascii.Error, ValueError, RecursionError):
        raise Unreadable from None
    token = session.get("access_token") if isinstance(session, dict) else None
    return _checked(token)


def _parts(request: web.Request, name: str) -> Mapping[str, str]:
    """The cookies in which a session may stand. Of two with one name nobody could tell which is meant."""
    found: dict[str, str] = {}
    for pair in ";".join(request.headers.getall("Cookie", [])).split(";"):
        key, _, value = pair.strip().partition("=")
        if key != name and not key.startswith(f"{name}."):
            continue
        value = unquote(value.strip('"'))
        if found.setdefault(key, value) != value:
            raise Unreadable
    return found


def _checked(token: object) -> str:
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise Unreadable
    return token
