"""Fetching one file over HTTPS: goes on where it was cut, tries again what may pass, and says what will not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import aiohttp
import tenacity
from yarl import URL

from tenkaigen_worker.errors import JobError
from tenkaigen_worker.loras.partial import Partial
from tenkaigen_worker.loras.problems import disk_explained, failed, unusable
from tenkaigen_worker.plugin.lora_source import HubFile, WebFile, check_url

T = TypeVar("T")

ATTEMPTS = 6
LONGEST_PAUSE = 60.0  # seconds
_CHUNK = 1 << 20
_REDIRECTS = 6
_REDIRECTED = frozenset({301, 302, 303, 307, 308})
_MAY_PASS = frozenset({408, 425, 429})
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


class MayPass(Exception):
    """This attempt did not succeed, another one may; ``after`` is how many seconds the server wants it to wait."""

    def __init__(self, why: str, after: float = 0) -> None:
        super().__init__(why)
        self.after = after


@dataclass(frozen=True, slots=True)
class Hub:
    """Where the Hugging Face hub is, who asks, and whether it may be asked at all."""

    endpoint: URL
    token: str | None = None
    offline: bool = False

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Hub:
        """Read ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` as its own client does; raises ``ValueError``."""
        endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        check_url(endpoint)
        offline = environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
        return cls(URL(endpoint), environ.get("HF_TOKEN", "").strip() or None, offline)

    def url(self, file: HubFile) -> URL:
        """Where a file is."""
        path = f"{file.repo}/resolve/{quote(file.revision, safe='')}/{quote(file.file)}"
        return URL(f"{self.endpoint}/{path}", encoded=True)

    def headers(self, url: URL) -> dict[str, str]:
        """What only the hub's own host is told."""
        known = self.token and url.origin() == self.endpoint.origin()
        return {"Authorization": f"Bearer {self.token}"} if known else {}


def wait_for_it(state: tenacity.RetryCallState) -> float:
    """How long to wait before the next attempt, in seconds: longer each time, or as the server asks."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.after if isinstance(error, MayPass) else 0
    return min(LONGEST_PAUSE, max(asked, tenacity.wait_exponential_jitter(initial=1, max=30)(state)))


@dataclass(slots=True)
class Download:
    """One file on its way. ``commit`` is the hub's commit that it was found at, once that is known.

    ``checked`` is whether its SHA-256 is known: without that, bytes of two versions may only be put together where the
    server names the version. ``make_room`` is called with the bytes that are still to come; ``progress`` with those
    that are there and the total, where the server says it. ``wait`` is tenacity's.
    """

    name: str
    source: HubFile | WebFile
    partial: Partial
    session: aiohttp.ClientSession
    hub: Hub
    max_bytes: int
    checked: bool
    make_room: Callable[[int], None]
    progress: Callable[[int, int | None], None]
    wait: Callable[[tenacity.RetryCallState], float] = wait_for_it
    commit: str | None = None
    _furthest: int = 0
    _fruitless: int = 0

    async def run(self) -> None:
        """Fetch the file to its end.

        Raises ``InputError`` with code ``lora_unusable`` for what will not pass, ``InfrastructureError`` with code
        ``lora_failed`` for what may. What was fetched stays in the partial file, unless the disk is full.
        """
        if isinstance(self.source, HubFile) and self.hub.offline:
            raise failed(self.name, f"{self.source} is not on this machine, and HF_HUB_OFFLINE is set")
        self._furthest, self._fruitless = self.partial.size, 0
        trying = tenacity.AsyncRetrying(
            stop=self._got_nowhere,
            wait=self.wait,
            retry=tenacity.retry_if_exception_type(MayPass),
            reraise=True,
        )
        try:
            await trying(self._attempt)
        except MayPass as error:
            raise failed(self.name, f"{self.source}: {error}") from error

    def _got_nowhere(self, _: tenacity.RetryCallState) -> bool:
        """Whether the last attempts all came no further than those before: only they count."""
        self._fruitless = 0 if self.partial.size > self._furthest else self._fruitless + 1
        self._furthest = max(self._furthest, self.partial.size)
        return self._fruitless >= ATTEMPTS

    async def _attempt(self) -> None:
        try:
            async with self._answer() as response:
                total = await self._begin(response)
                if total is not None and self.partial.size == total:
                    return
                self.progress(self.partial.size, total)
                await self._receive(response, total)
        except (aiohttp.InvalidURL, ValueError) as error:
            raise unusable(self.name, f"{self.source}: this is no address: {error}") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise failed(self.name, f"{self.source}: {error}") from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise MayPass(_in_words(error)) from error

    @asynccontextmanager
    async def _answer(self) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask for what is missing, wherever the server sends us: by https only, and with the token only to the hub."""
        url = self.hub.url(self.source) if isinstance(self.source, HubFile) else URL(self.source.url)
        for _ in range(_REDIRECTS):
            # Compressed bytes could not be counted, nor gone on with.
            headers = {"Accept-Encoding": "identity", **self.hub.headers(url), **self._range()}
            async with self.session.get(
                url, headers=headers, allow_redirects=False, timeout=_TIMEOUT, proxy=_proxy(url)
            ) as response:
                if commit := _commit(response):
                    self.commit = commit
                if response.status not in _REDIRECTED or "Location" not in response.headers:
                    yield response
                    return
                url = self._redirected(url, response.headers["Location"])
        raise unusable(self.name, f"{self.source}: the server sends us from one place to the next without an end")

    def _redirected(self, url: URL, location: str) -> URL:
        try:
            target = url.join(URL(location, encoded=True))
            check_url(str(target))
        except ValueError as error:
            raise unusable(self.name, f"{self.source}: the server sends us to another place: {error}") from None
        if url.scheme == "https" and target.scheme != "https":
            raise unusable(self.name, f"{self.source}: the server sends us from https to http")
        return target

    def _range(self) -> dict[str, str]:
        if not self.partial.size or not (self.checked or self.partial.etag):
            return {}
        version = {"If-Range": self.partial.etag} if self.partial.etag else {}
        return {"Range": f"bytes={self.partial.size}-", **version}

    async def _begin(self, response: aiohttp.ClientResponse) -> int | None:
        """Find out which bytes will come, and how many there are in all, where the server says it."""
        status = response.status
        part = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        total = int(part[2]) if part and part[2] != "*" else None
        if status == 416 and total == self.partial.size:
            return total
        if status == 416 or (status == 206 and not self._continues(part, response)):
            await self._restart(None)
            raise MayPass(f"the server did not go on where the file was cut ({status}): begun again")
        if status not in (200, 206):
            raise self._refusal(response)
        if status == 200:  # the whole file: another version, or a server that knows no ranges
            total = response.content_length
            await self._restart(_strong(response))

        missing = (total or self.partial.size) - self.partial.size
        if (total or 0) > self.max_bytes:
            raise unusable(self.name, f"it has {total} bytes, and loras.max_file_bytes is {self.max_bytes}")
        await self._on_disk(self.make_room, missing)
        return total

    def _continues(self, part: re.Match[str] | None, response: aiohttp.ClientResponse) -> bool:
        same = not self.partial.etag or _strong(response) in (None, self.partial.etag)
        return bool(same and part and part[1] and int(part[1]) == self.partial.size)

    async def _receive(self, response: aiohttp.ClientResponse, total: int | None) -> None:
        waiting = bytearray()
        try:
            async for data in response.content.iter_any():
                waiting += data
                await self._check_size(self.partial.size + len(waiting), total)
                if len(waiting) >= _CHUNK:
                    await self._keep(waiting, total)
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            await self._keep(waiting, total)
            raise
        await self._keep(waiting, total)
        if total is not None and self.partial.size < total:
            raise MayPass(f"the connection ended after {self.partial.size} of {total} bytes")

    async def _check_size(self, size: int, total: int | None) -> None:
        if size > self.max_bytes:
            await self._restart(None)
            raise unusable(self.name, f"it has more than loras.max_file_bytes, {self.max_bytes} bytes")
        if total is not None and size > total:
            await self._restart(None)
            raise MayPass(f"the server sent more than the {total} bytes it spoke of")

    async def _keep(self, waiting: bytearray, total: int | None) -> None:
        data = bytes(waiting)
        waiting.clear()
        await self._on_disk(self.partial.append, data)
        self.progress(self.partial.size, total)

    async def _restart(self, etag: str | None) -> None:
        await self._on_disk(self.partial.restart, etag)

    async def _on_disk(self, function: Callable[..., T], *values: Any) -> T:
        with disk_explained(self.name, self.partial.path.parent):
            return await in_thread(function, *values)

    def _refusal(self, response: aiohttp.ClientResponse) -> JobError | MayPass:
        status = response.status
        said = ", ".join(filter(None, (response.reason, response.headers.get("X-Error-Code"))))
        answer = f"{self.source}: the server answers {status}{f' ({said})' if said else ''}"
        if status in _MAY_PASS or status >= 500:
            return MayPass(f"the server answers {status} ({said})", _retry_after(response))
        if status in (401, 403):
            # The hub says 401 of repositories that do not exist, too.
            hint = "is the name right? If it is private or gated, set HF_TOKEN"
            return failed(
                self.name, f"{answer}: {hint if isinstance(self.source, HubFile) else 'it is not for anyone'}"
            )
        return unusable(self.name, answer)


async def in_thread(function: Callable[..., T], *values: Any, undo: Callable[[T], object] | None = None) -> T:
    """Run what blocks in a thread. A caller that is cancelled still waits for its end, so that files are settled.

    ``undo`` is then given the answer that nobody will get.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *values))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if work.exception() is None and undo is not None:
            undo(work.result())
        raise


def _strong(response: aiohttp.ClientResponse) -> str | None:
    """The version that a server names, where it is one that ranges may be put together by (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else None


def _commit(response: aiohttp.ClientResponse) -> str | None:
    commit = response.headers.get("X-Repo-Commit", "")
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


def _retry_after(response: aiohttp.ClientResponse) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d{1,6}", value) else 0


def _proxy(url: URL) -> str | None:
    """The proxy that the environment names; aiohttp would also read ~/.netrc, which may not be mixed with a token."""
    return None if proxy_bypass(url.host or "") else getproxies().get(url.scheme)


def _in_words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the server was silent for too long"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection was cut"
    if isinstance(error, aiohttp.ClientResponseError):  # its own text has the whole URL, and with it a signature
        return f"the server's answer is no HTTP: {' '.join(error.message.split())[:200]}"
    return " ".join(str(error).split())[:300] or type(error).__name__
