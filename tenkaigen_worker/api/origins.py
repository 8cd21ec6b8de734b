"""Which other sites' pages may call the API from a browser (CORS), and which may do so with a session cookie."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tenkaigen_worker.api.errors import Problem
from tenkaigen_worker.config_api import ApiSettings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, X-Request-Id",
    "Access-Control-Max-Age": "600",
}
_SHOWN = "Location, Retry-After, X-Request-Id"


@dataclass(frozen=True, slots=True)
class Origins:
    """The origins of ``api.cors_origins``, as browsers write them: lower case, and no port that goes without saying."""

    listed: frozenset[str]

    @classmethod
    def of(cls, api: ApiSettings) -> Origins:
        """The listed ones."""
        return cls(frozenset(map(_as_browsers_write, api.cors_origins)))

    def sent_by_own_page(self, request: web.Request) -> bool:
        """Whether a request that changes something comes from a page that may use the user's cookie.

        That is a listed one, or one of the very host and port that the request is sent to. Browsers send ``Origin``
        with every such request; one without it was made by something else, which needs no cookie.
        """
        if request.method in SAFE_METHODS:
            return True
        origin = request.headers.get("Origin", "")
        own = {_as_browsers_write(f"{scheme}://{request.host.lower()}") for scheme in ("http", "https")}
        return origin in self.listed or origin in own

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Signal on every response: let listed pages read it, and caches know that it depends on who asks."""
        if not self.listed:
            return
        response.headers.add("Vary", "Origin")
        origin = request.headers.get("Origin")
        if origin in self.listed:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Credentials"] = "true"
            response.headers["Access-Control-Expose-Headers"] = _SHOWN


def answer_preflight(origins: Origins) -> Middleware:
    """Middleware that answers browsers which ask beforehand whether a page may send a request."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return await handler(request)
        origin = request.headers.get("Origin", "")
        if origin not in origins.listed:
            detail = f"pages from {origin[:200]} may not call this API; api.cors_origins lists who may"
            raise Problem(HTTPStatus.FORBIDDEN, "wrong_origin", detail)
        return web.Response(status=HTTPStatus.NO_CONTENT, headers=_PREFLIGHT)

    return answer


def _as_browsers_write(origin: str) -> str:
    scheme, _, authority = origin.partition("://")
    return origin.removesuffix({"http": ":80", "https": ":443"}[scheme]) if authority else origin
