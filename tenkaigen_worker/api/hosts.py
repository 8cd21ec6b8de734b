"""Under which names the API answers, and to whose pages: this machine, and hosts and origins that the settings list.

A page from anywhere may make a browser on this machine send requests to 127.0.0.1. Its requests carry the page's
``Origin``, and after a DNS rebinding trick the page's own name as ``Host``; both are checked here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tenkaigen_worker.api.errors import Problem
from tenkaigen_worker.api.origins import SAFE_METHODS, Origins
from tenkaigen_worker.config_api import ApiSettings
from tenkaigen_worker.errors import ConfigError
from tenkaigen_worker.hosts import is_loopback

_AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[^\s:@/?#\[\]]+))(?::\d{1,5})?")


def refuse_open_door(api: ApiSettings) -> None:
    """Refuse to listen beyond this machine while nobody is asked who they are; raises ``ConfigError``."""
    if api.asks_nobody and not api.allow_remote and not is_loopback(api.host):
        raise ConfigError(
            f"api.host: {api.host} can be reached from other machines, and api.auth is 'none': anyone there could "
            "queue jobs and read them. Use 127.0.0.1, or let api.auth ask who they are, or set api.allow_remote: true "
            "when something in front of it keeps strangers out"
        )


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """Names under which this API may be addressed, besides loopback; on any port."""

    names: frozenset[str]

    @classmethod
    def of(cls, api: ApiSettings) -> AllowedHosts:
        """The listed hosts, and the one that is listened on."""
        return cls(frozenset(name.lower() for name in (*api.allowed_hosts, api.host)))

    def allows(self, authority: str) -> bool:
        """Whether ``authority`` (``host`` or ``host:port``) is one of them."""
        match = _AUTHORITY.fullmatch(authority.lower())
        if match is None:
            return False
        host = match["ipv6"] or match["name"]
        return is_loopback(host) or host in self.names


def check_hosts(allowed: AllowedHosts, origins: Origins) -> Middleware:
    """Middleware that refuses other names in ``Host``, and writing requests from other sites' pages."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not allowed.allows(hosts[0]):
            detail = (
                f"this server does not answer for host {', '.join(hosts) or '(none)'}; api.allowed_hosts lists others"
            )
            raise Problem(HTTPStatus.MISDIRECTED_REQUEST, "wrong_host", detail)

        origin = request.headers.get("Origin")
        known = origin is None or origin in origins.listed or _allows_origin(allowed, origin)
        if not known and request.method not in SAFE_METHODS:
            detail = f"pages from {origin} may not send requests here; api.cors_origins lists who may"
            raise Problem(HTTPStatus.FORBIDDEN, "wrong_origin", detail)
        return await handler(request)

    return check


def _allows_origin(allowed: AllowedHosts, origin: str) -> bool:
    scheme, separator, authority = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and allowed.allows(authority)
