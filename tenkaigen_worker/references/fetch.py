"""Fetching pictures from other servers, from allowed hosts alone, and never from inside our own network.

Which host a URL names is checked before it is asked, and which address that leads to when the socket is made: a name
may lead anywhere, and elsewhere the next time. Every redirect goes through both checks again.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from ipaddress import ip_address
from ssl import SSLContext

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from tenkaigen_worker.config import ReferenceSettings
from tenkaigen_worker.errors import Code, InfrastructureError
from tenkaigen_worker.references.addresses import IPAddress, is_public
from tenkaigen_worker.references.given import read_url

log = logging.getLogger("tenkaigen.references")

MAX_REDIRECTS = 3
_CHUNK = 64 * 1024  # bytes
_LATER = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_REDIRECTS = frozenset(
    {
        HTTPStatus.MOVED_PERMANENTLY,
        HTTPStatus.FOUND,
        HTTPStatus.SEE_OTHER,
        HTTPStatus.TEMPORARY_REDIRECT,
        HTTPStatus.PERMANENT_REDIRECT,
    }
)
# Compressed answers are not unpacked: pictures are compressed already, and a small answer could become a huge one.
_HEADERS = {"Accept": "image/png, image/jpeg, image/webp", "Accept-Encoding": "identity", "User-Agent": "tenkaigen"}


class Fetcher:
    """Fetches bytes from the hosts of ``references.allowed_hosts``.

    For tests only: ``may_connect`` says which addresses sockets may lead to, ``resolver`` where names lead, and ``tls``
    which certificates are trusted.
    """

    def __init__(
        self,
        settings: ReferenceSettings,
        *,
        may_connect: Callable[[IPAddress], bool] = is_public,
        resolver: AbstractResolver | None = None,
        tls: SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._may_connect = may_connect
        self._resolver = resolver
        self._tls = tls

    async def fetch(self, address: str) -> bytes:
        """Fetch what is at an https URL.

        Raises ``ValueError`` that says what is wrong with the URL or with what is there, and
        :class:`~tenkaigen_worker.errors.InfrastructureError` with code ``reference_unavailable`` where trying again may
        help.
        """
        url = read_url(address)
        forbidden: list[str] = []

        def connect(info: aiohttp.AddrInfoType) -> socket.socket:
            family, kind, protocol, _, where = info
            if not self._may_connect(ip_address(where[0])):
                forbidden.append(str(where[0]))
                raise PermissionError(f"{where[0]} is not in the public internet")
            return socket.socket(family, kind, protocol)

        connector = aiohttp.TCPConnector(
            socket_factory=connect, resolver=self._resolver, ssl=self._tls or True, force_close=True
        )
        try:
            async with aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
                auto_decompress=False,
                trust_env=False,
            ) as session:
                return await self._follow(session, url)
        except aiohttp.InvalidURL:
            raise ValueError("leads to what is no URL") from None
        except (aiohttp.ClientError, OSError) as error:
            if forbidden:
                raise ValueError("leads to an address that is not in the public internet") from None
            log.warning("%s: %s", url.host, str(error) or "too slow", extra={"action": "reference_unavailable"})
            raise _unavailable(f"{url.host} {_why(error)}") from error

    async def _follow(self, session: aiohttp.ClientSession, url: URL) -> bytes:
        """Ask, and ask again where a redirect leads."""
        for _ in range(MAX_REDIRECTS + 1):
            refuse_host(url, self._settings.allowed_hosts)
            async with session.get(url, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or location is None:
                    return await self._read(response)
            try:
                url = read_url(str(url.join(URL(location))))
            except ValueError as error:
                raise ValueError(f"leads to {location[:200]!r}, which {error}") from None
        raise ValueError(f"leads on and on: after {MAX_REDIRECTS} redirects there is another one")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        status, host = response.status, response.url.host
        if status in _LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _unavailable(f"{host} answered {status}")
        if status != HTTPStatus.OK:
            raise ValueError(f"{host} answered {status}: nothing is given out at this URL")

        limit = self._settings.max_bytes
        data = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK):
            data += chunk
            if len(data) > limit:
                raise ValueError(f"is longer than {limit} bytes (references.max_bytes)")
        return bytes(data)


def refuse_host(url: URL, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless the settings allow the URL's host; ``*.example.com`` stands for all below it."""
    host = (url.raw_host or "").lower()
    for entry in allowed:
        if host == entry or (entry.startswith("*.") and host.endswith(entry[1:])):
            return
    advice = f"they are {', '.join(allowed)}" if allowed else "there is none; upload the picture instead"
    raise ValueError(f"{host} is not a host that pictures are fetched from (references.allowed_hosts): {advice}")


def _why(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "took too long"
        case aiohttp.ClientConnectorCertificateError():
            return "has no certificate that can be trusted"
        case _:
            return "could not be reached"


def _unavailable(why: str) -> InfrastructureError:
    return InfrastructureError(Code.REFERENCE_UNAVAILABLE, f"The picture could not be fetched: {why}")
