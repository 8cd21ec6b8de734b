"""Finished files in a bucket of Supabase Storage, and what users upload in a private one."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import httpx
from storage3 import AsyncStorageClient
from storage3.exceptions import StorageApiError
from storage3.types import FileOptions, SearchV2Options
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from tenkaigen_worker.config_storage import SupabaseStorageSettings
from tenkaigen_worker.errors import StorageError
from tenkaigen_worker.storage.keys import UPLOADS, check_key, is_upload
from tenkaigen_worker.storage.refusals import Kind, Refused, read_refusal

if TYPE_CHECKING:
    from storage3._async.file_api import AsyncBucketProxy

T = TypeVar("T")

# A year, in seconds. Storage puts `max-age=` in front by itself.
FOR_EVER = "31536000, immutable"
# How often one request is tried. What lasts longer is for the caller to wait for.
TRIES = 4
BETWEEN_TRIES = wait_random_exponential(multiplier=0.25, max=4)
# Longer than this nobody waits here, whatever the server asks for, in seconds.
LONGEST_PAUSE = 10.0
# The server lists 1000 files at most, and takes 1000 names to delete, in transactions of 500.
LISTED_AT_ONCE = 1000
DELETED_AT_ONCE = 500
# What we store, as a bucket may be told to take nothing else.
TYPES = ("image/png", "image/webp")

_ADVICE = {
    Kind.PASSING: "this may pass",
    Kind.TAKEN: "something else was there first",
    Kind.NO_FILE: "the file went away",
    Kind.NO_BUCKET: "create the bucket {bucket}, or name another one in storage.supabase.{setting}",
    Kind.KEY: "put the project's secret key into TENKAIGEN_STORAGE__SUPABASE__SECRET_KEY",
    Kind.ADDRESS: "this is not Supabase Storage; check storage.supabase.url",
    Kind.FILE: "look at the limits of the bucket {bucket}",
}


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A bucket, and the setting that names it."""

    name: str
    public: bool
    setting: str


class SupabaseStorage:
    """Files in the buckets that ``settings`` name. ``files_url`` is where a browser finds the API's ``/files``.

    To be used on one event loop, and closed there. Errors never hold the secret key, nor whole pages of HTML.
    """

    def __init__(self, settings: SupabaseStorageSettings, *, url: str, secret_key: str, files_url: str) -> None:
        self._settings = settings
        self._url = url
        self._secret_key = secret_key
        self._files_url = files_url.rstrip("/")
        self.private = not settings.public
        self._pictures = _Bucket(settings.bucket, settings.public, "bucket")
        self._uploads = _Bucket(settings.uploads_bucket, False, "uploads_bucket")
        # Not HTTP/2, the library's default: it loses requests on connections that the server closes.
        self._http = httpx.AsyncClient(
            http2=False,
            timeout=httpx.Timeout(settings.timeout_seconds, connect=settings.connect_timeout_seconds, pool=None),
            limits=httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
        )
        headers = {"apikey": secret_key, "Authorization": f"Bearer {secret_key}"}
        self._client = AsyncStorageClient(f"{url}/storage/v1/", headers, http_client=self._http)
        self._places = asyncio.Semaphore(settings.concurrency)

    async def put(self, key: str, data: bytes, *, content_type: str) -> str:
        """Keep ``data`` under ``key``; answer its public URL, or one of the API's where the bucket is private."""
        bucket, path = self._place(key)
        options: FileOptions = {"content-type": content_type, "cache-control": FOR_EVER, "x-upsert": "false"}
        with self._explained(f"{key} cannot be stored", bucket):
            try:
                await self._ask(lambda: self._files(bucket).upload(path, data, options))
            except Refused as refused:
                if refused.kind is not Kind.TAKEN:
                    raise
                # Taken by ourselves, when the answer to an earlier request was lost.
                if not await self._holds(bucket, path, data):
                    message = f"{key} holds other bytes in {bucket.name}, and a file is never overwritten"
                    raise StorageError(message, permanent=True) from None
        return self._public_url(bucket, key) if bucket.public else f"{self._files_url}/{quote(key)}"

    async def read(self, key: str) -> bytes | None:
        """The bytes kept under ``key``, or ``None``."""
        bucket, path = self._place(key)
        with self._explained(f"{key} cannot be read", bucket):
            return await self._unless_missing(lambda: self._files(bucket).download(path))

    async def list(self, prefix: str) -> Sequence[str]:
        """All keys that start with ``prefix``, sorted; those of uploads only when it leads to them."""
        bucket = self._bucket(prefix)
        keys: list[str] = []
        options: SearchV2Options = {"prefix": prefix, "limit": LISTED_AT_ONCE, "with_delimiter": False}
        with self._explained(f"the files under {prefix} cannot be listed", bucket):
            while True:
                page = await self._ask(partial(self._files(bucket).list_v2, options))
                keys += [found.name for found in page.objects]
                if not page.hasNext or not page.nextCursor:
                    return keys
                options = {**options, "cursor": page.nextCursor}

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove files, some hundreds with each request."""
        for bucket in (self._pictures, self._uploads):
            paths = [key for key in keys if self._place(key)[0] is bucket]
            for start in range(0, len(paths), DELETED_AT_ONCE):
                batch = paths[start : start + DELETED_AT_ONCE]
                with self._explained(f"{batch[0]} and {len(batch) - 1} more cannot be removed", bucket):
                    await self._ask(partial(self._files(bucket).remove, batch))

    async def link(self, key: str) -> str | None:
        """Where a browser finds the file for now; of a public bucket, whether it is there or not."""
        bucket, path = self._place(key)
        if bucket.public:
            return self._public_url(bucket, key)
        seconds = self._settings.signed_url_seconds
        with self._explained(f"no link to {key} can be made", bucket):
            signed = await self._unless_missing(lambda: self._files(bucket).create_signed_url(path, seconds))
        return None if signed is None else signed["signedURL"]

    async def find(self, key: str) -> Path | None:
        """Nothing is kept on this machine."""
        return None

    async def check(self) -> str:
        """Look at both buckets, and write, read and delete a probe file in each."""
        for bucket, key in ((self._pictures, "probe"), (self._uploads, f"{UPLOADS}/probe")):
            await self._check_bucket(bucket)
            await self._probe(f"{key}-{secrets.token_hex(8)}.png", bucket)
        kind = "public" if self._pictures.public else "private"
        return (
            f"files go to the {kind} bucket {self._pictures.name} at {self._url}, "
            f"what users upload to the private bucket {self._uploads.name}"
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _check_bucket(self, bucket: _Bucket) -> None:
        with self._explained(f"bucket {bucket.name} cannot be used", bucket):
            found = await self._ask(lambda: self._client.get_bucket(bucket.name))
        if found.public != bucket.public:
            kinds = {True: "public", False: "private"}
            advice = "set storage.supabase.public to what it is" if bucket is self._pictures else "make it private"
            raise StorageError(f"bucket {bucket.name} is {kinds[found.public]}, not {kinds[bucket.public]}: {advice}")
        refused = [kind for kind in TYPES if not _takes(found.allowed_mime_types, kind)]
        if refused:
            raise StorageError(f"bucket {bucket.name} does not take {' and '.join(refused)}: allow these types there")

    async def _probe(self, key: str, bucket: _Bucket) -> None:
        data = secrets.token_bytes(32)
        await self.put(key, data, content_type=TYPES[0])
        try:
            found = await self.read(key)
        finally:
            await self.delete([key])
        if found != data:
            raise StorageError(f"bucket {bucket.name} gave back other bytes than were written to it")
        if await self.read(key) is not None:
            raise StorageError(f"bucket {bucket.name} does not delete files: {_ADVICE[Kind.KEY]}")

    async def _holds(self, bucket: _Bucket, path: str, data: bytes) -> bool:
        """Whether a file has these bytes. Where its ETag is an MD5, nothing needs to be fetched."""
        kept = await self._ask(lambda: self._files(bucket).info(path))
        if kept["size"] != len(data):
            return False
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if str(kept["etag"]).strip('"') == md5:
            return True
        return await self._ask(lambda: self._files(bucket).download(path)) == data

    async def _unless_missing(self, request: Callable[[], Awaitable[T]]) -> T | None:
        try:
            return await self._ask(request)
        except Refused as refused:
            if refused.kind is Kind.NO_FILE:
                return None
            raise

    async def _ask(self, request: Callable[[], Awaitable[T]]) -> T:
        """Send a request, some times over when a refusal may pass; raises ``Refused``."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_pass), wait=_pause, stop=stop_after_attempt(TRIES), reraise=True
        ):
            with attempt:
                return await self._ask_once(request)
        raise AssertionError("unreachable: the last try raises")

    async def _ask_once(self, request: Callable[[], Awaitable[T]]) -> T:
        async with self._places:
            try:
                # httpx limits each read: a body that comes in drops would never end.
                async with asyncio.timeout(self._settings.timeout_seconds):
                    return await request()
            except StorageApiError as error:
                raise read_refusal(error, self._mask) from None
            except (httpx.TransportError, TimeoutError) as error:
                raise Refused(Kind.PASSING, self._mask(f"{type(error).__name__} {error}".rstrip())) from None
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                # Nothing else comes of an answer that is not what the library expects.
                raise Refused(Kind.ADDRESS, f"{type(error).__name__} in reading the answer") from None

    def _mask(self, text: str) -> str:
        return text.replace(self._secret_key, "***")

    @contextmanager
    def _explained(self, what: str, bucket: _Bucket) -> Iterator[None]:
        """Turn a refusal into an error that says what to do. What is only about one file is refused for good."""
        try:
            yield
        except Refused as refused:
            advice = _ADVICE[refused.kind].format(bucket=bucket.name, setting=bucket.setting)
            message = f"{what}: {self._url} answers {refused}: {advice}"
            raise StorageError(message, permanent=refused.kind in (Kind.FILE, Kind.TAKEN)) from None

    def _bucket(self, key: str) -> _Bucket:
        return self._uploads if is_upload(key) else self._pictures

    def _place(self, key: str) -> tuple[_Bucket, str]:
        """The bucket of a key, and the key as the library wants it, which undoes quoting; raises ``StorageError``."""
        check_key(key)
        return self._bucket(key), quote(key)

    def _files(self, bucket: _Bucket) -> AsyncBucketProxy:
        return self._client.from_(bucket.name)

    def _public_url(self, bucket: _Bucket, key: str) -> str:
        return f"{self._url}/storage/v1/object/public/{bucket.name}/{quote(key)}"


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, Refused) and error.kind is Kind.PASSING and error.retry_after <= LONGEST_PAUSE


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(BETWEEN_TRIES(state), error.retry_after if isinstance(error, Refused) else 0.0)


def _takes(allowed: Sequence[str] | None, kind: str) -> bool:
    return not allowed or kind in allowed or f"{kind.partition('/')[0]}/*" in allowed
