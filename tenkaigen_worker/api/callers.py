"""Who sends a request, and what they may do: asked of every route but the open ones."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import NoReturn

from aiohttp import web

from tenkaigen_worker.access import Scope
from tenkaigen_worker.api.body import read_uuid
from tenkaigen_worker.api.credentials import Credentials, Unreadable, cookie_name, read_credentials
from tenkaigen_worker.api.errors import RETRY_AFTER_SECONDS, Problem
from tenkaigen_worker.api.key_set import KeysUnavailable
from tenkaigen_worker.api.keys import Keys
from tenkaigen_worker.api.origins import Origins
from tenkaigen_worker.api.parts import Parts
from tenkaigen_worker.api.tokens import AnonymousUser, BadToken, ExpiredToken, Tokens
from tenkaigen_worker.config_api import ApiSettings
from tenkaigen_worker.jobs import EVERYBODY, Asker

USER_HEADER = "X-User-Id"

_CHALLENGE = {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request: on whose behalf, and with which rights."""

    asker: Asker
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


ANYBODY = Caller(EVERYBODY, frozenset({Scope.ADMIN}))
USER_SCOPES = frozenset({Scope.SUBMIT, Scope.READ})
CALLER = web.RequestKey("caller", Caller)
CALLERS: web.AppKey[Callers] = web.AppKey("callers")


class Callers:
    """Finds out who sends requests, in the ways that ``api.auth`` names."""

    def __init__(self, settings: ApiSettings, origins: Origins, parts: Parts) -> None:
        self._asks_nobody = settings.asks_nobody
        self._origins = origins
        self._tokens = Tokens(settings.supabase) if "supabase" in settings.auth else None
        self._keys = Keys(parts.keys) if "api_keys" in settings.auth else None
        self._cookie = cookie_name(settings.supabase.url) if self._tokens and settings.supabase.url else None

    async def identify(self, request: web.Request, needs: Scope) -> Caller:
        """The caller, who may do what ``needs`` says; raises :class:`~tenkaigen_worker.api.errors.Problem` otherwise.

        What exactly is wrong with a token is not told: only whoever makes up tokens would be helped.
        """
        if self._asks_nobody:
            return ANYBODY
        try:
            credentials = read_credentials(request, self._cookie)
        except Unreadable:
            _refuse_token()
        if credentials is None:
            raise _authentication_required("send a token or a key as Authorization: Bearer, or sign in")
        if credentials.from_cookie and not self._origins.sent_by_own_page(request):
            detail = (
                "a session cookie counts only for pages of this host and of api.cors_origins, which their browser "
                "names in the Origin header"
            )
            raise Problem(HTTPStatus.FORBIDDEN, "wrong_origin", detail)

        caller = await self._caller(request, credentials)
        if not caller.may(needs):
            detail = f"this key may not do that: it needs the scope {needs}"
            raise Problem(HTTPStatus.FORBIDDEN, "insufficient_scope", detail)
        return caller

    async def _caller(self, request: web.Request, credentials: Credentials) -> Caller:
        users = request.headers.getall(USER_HEADER, [])
        if self._keys and (key := await self._keys.find(credentials.token)):
            return Caller(_acting_for(users, everybody=Scope.ADMIN in key.scopes), key.scopes)
        if self._tokens is None:
            _refuse_token()
        asker = await _user(self._tokens, credentials.token)
        if users:
            raise Problem(HTTPStatus.FORBIDDEN, "forbidden", f"only an API key may act for others with {USER_HEADER}")
        return Caller(asker, USER_SCOPES)


async def _user(tokens: Tokens, token: str) -> Asker:
    try:
        return await tokens.read(token)
    except ExpiredToken:
        raise Problem(
            HTTPStatus.UNAUTHORIZED, "token_expired", "the token has expired; refresh the session", headers=_CHALLENGE
        ) from None
    except AnonymousUser:
        raise _authentication_required("anonymous users may not do this; sign in") from None
    except BadToken:
        _refuse_token()
    except KeysUnavailable:
        detail = f"nobody's token can be checked right now; try again in {RETRY_AFTER_SECONDS} seconds"
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "authentication_unavailable", detail, headers=headers) from None


def _acting_for(users: list[str], *, everybody: bool) -> Asker:
    """Whom an API key acts for: the user it names; without one, everybody or, without that right, nobody."""
    if not users:
        return EVERYBODY if everybody else Asker()
    user_id = read_uuid(users[0]) if len(users) == 1 else None
    if user_id is None:
        message = "must be one user's id, such as 3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11"
        raise Problem.of_field(HTTPStatus.BAD_REQUEST, "invalid_user_id", USER_HEADER, message)
    return Asker(user_id)


def _authentication_required(how: str) -> Problem:
    return Problem(
        HTTPStatus.UNAUTHORIZED, "authentication_required", f"authentication required: {how}", headers=_CHALLENGE
    )


def _refuse_token() -> NoReturn:
    detail = "the token or key is not valid here"
    raise Problem(HTTPStatus.UNAUTHORIZED, "invalid_token", detail, headers=_CHALLENGE)
