"""A stand-in for Supabase Storage: its wire behaviour as of version 1.70, with faults on demand.

Written from its sources (``src/http/routes``, ``src/internal/errors``): nearly every refusal travels as HTTP 400 with
the real status inside, and gateways in front of it answer pages of their own.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import re
import secrets
import socket
import struct
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any
from uuid import uuid4

from aiohttp import web

SECRET_KEY = "sb_secret_Kq3vTn8cW1xYzR5u_stand1n"
KNOWN = web.RequestKey("known", bool)
MOMENT = "2026-11-01T12:00:00.000Z"
# What the real one is told by default.
PART_BYTES = 5 * 1024 * 1024
DELETED_AT_ONCE = LISTED_AT_ONCE = 1000
_KEY = re.compile(r"[A-Za-z0-9_/!.*'() &$=@;:+,?-]+")


Answer = Callable[[web.Request], web.Response]


class Fault(Enum):
    """What can go wrong with a request."""

    INTERNAL = auto()  # 500, in Storage's words
    PAGE_502 = auto()  # a gateway's page, which repeats the request's headers
    PAGE_503 = auto()
    PAGE_504 = auto()
    DATABASE_TIMEOUT = auto()  # 544
    SLOW_DOWN = auto()  # 429
    WAIT = auto()  # 429 of a gateway, with Retry-After
    LOCKED = auto()  # 423 inside a 400
    READ_ONLY = auto()  # 503 inside a 400
    DROPPED = auto()  # the connection ends before the request is read
    RESET = auto()  # the connection is reset while the request is read
    LOST_ANSWER = auto()  # it is done, and then the connection ends
    LOST_HALF = auto()  # it is done, and the connection ends in the middle of the answer
    SLOW = auto()  # it is done, and the answer comes in drops
    HANGS = auto()  # nothing comes, ever


# Those that a request may meet at any time; after HANGS it is the client's patience that ends.
PASSING = tuple(fault for fault in Fault if fault is not Fault.HANGS)


@dataclass
class Object:
    """One stored file, as it arrived."""

    data: bytes | None
    mimetype: str
    cache_control: str
    sha256: str
    size: int
    etag: str


@dataclass
class Bucket:
    """What a bucket is, and what is in it."""

    public: bool
    allowed_mime_types: list[str] | None = None
    file_size_limit: int | None = None
    objects: dict[str, Object] = field(default_factory=dict)


class StandIn:
    """Buckets in memory. ``script`` has what the next requests meet; else a share of ``failing`` meets some fault.

    ``down`` is what all of them meet. Without ``remembers`` it keeps what files are, but not their bytes.
    ``written`` counts how often each object was written, ``met`` the faults.
    """

    def __init__(self, *, failing: float = 0.0, seed: int = 0, remembers: bool = True) -> None:
        self.url = ""
        self.remembers = remembers
        self.keys = {SECRET_KEY}
        self.buckets = {"generated-designs": Bucket(public=True), "generation-uploads": Bucket(public=False)}
        self.failing = failing
        self.down: Fault | None = None
        self.script: deque[Fault | Answer | None] = deque()
        self.most_at_once = 0
        self.requests: list[str] = []
        self.written: Counter[str] = Counter()
        self.met: Counter[Fault] = Counter()
        self.md5_etags = True
        self.asked = asyncio.Condition()
        self._random = random.Random(seed)
        self._under_way = 0
        self._closing = asyncio.Event()

    @property
    def environ(self) -> dict[str, str]:
        """What a command needs in its environment to keep its files here."""
        return {
            "TENKAIGEN_STORAGE__KIND": "supabase",
            "TENKAIGEN_STORAGE__SUPABASE__URL": self.url,
            "SUPABASE_SECRET_KEY": SECRET_KEY,
        }

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[StandIn]:
        app = web.Application(middlewares=[self._faults, self._authenticate], client_max_size=100_000_000)
        app.add_routes(
            [
                web.get("/storage/v1/bucket/{bucket}", self._get_bucket),
                web.post("/storage/v1/object/list-v2/{bucket}", self._list),
                web.post("/storage/v1/object/sign/{bucket}/{key:.+}", self._sign),
                web.get("/storage/v1/object/sign/{bucket}/{key:.+}", self._get_signed),
                web.get("/storage/v1/object/public/{bucket}/{key:.+}", self._get_public),
                web.get("/storage/v1/object/info/{bucket}/{key:.+}", self._info),
                web.get("/storage/v1/object/{bucket}/{key:.+}", self._get),
                web.post("/storage/v1/object/{bucket}/{key:.+}", self._upload),
                web.delete("/storage/v1/object/{bucket}", self._delete),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self._closing.set()
            await runner.cleanup()

    def objects(self) -> Iterator[tuple[str, Object]]:
        """Every object as ``bucket/key``."""
        for name, bucket in self.buckets.items():
            for key, found in bucket.objects.items():
                yield f"{name}/{key}", found

    async def until_asked(self, times: int) -> None:
        """Wait for so many more requests."""
        wanted = len(self.requests) + times
        async with self.asked:
            await self.asked.wait_for(lambda: len(self.requests) >= wanted)

    # Faults

    @web.middleware
    async def _faults(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        async with self.asked:
            self.asked.notify_all()
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            return await self._answer(request, handler)
        finally:
            self._under_way -= 1

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        fault = self._next_fault()
        if fault is None:
            return await handler(request)
        if not isinstance(fault, Fault):
            return fault(request)
        self.met[fault] += 1
        match fault:
            case Fault.DROPPED:
                return _end(request)
            case Fault.RESET:
                await request.content.readany()
                return _end(request, reset=True)
            case Fault.HANGS:
                await self._closing.wait()
                return _end(request)
            case Fault.LOST_ANSWER:
                await handler(request)
                return _end(request)
            case Fault.LOST_HALF | Fault.SLOW:
                return await self._in_drops(request, await handler(request), cut=fault is Fault.LOST_HALF)
            case _:
                return _refusal_of(fault, request)

    def _next_fault(self) -> Fault | Answer | None:
        if self.down is not None:
            return self.down
        if self.script:
            return self.script.popleft()
        return self._random.choice(PASSING) if self._random.random() < self.failing else None

    async def _in_drops(self, request: web.Request, done: web.StreamResponse, *, cut: bool) -> web.StreamResponse:
        assert isinstance(done, web.Response)
        body = done.body
        assert isinstance(body, bytes)
        response = web.StreamResponse(status=done.status, headers={"Content-Type": done.content_type})
        response.content_length = len(body)
        await response.prepare(request)
        half = len(body) // 2
        await response.write(body[:half])
        if cut:
            return _end(request)
        await asyncio.sleep(0.01)
        await response.write(body[half:])
        await response.write_eof()
        return response

    # Who asks

    @web.middleware
    async def _authenticate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        request[KNOWN] = key in self.keys and request.headers.get("apikey") == key
        # Strangers may read objects of public buckets, by any route.
        if not request[KNOWN] and not (request.method == "GET" and "/object/" in request.path):
            # With the key in it, as no server should.
            return refuse(403, "Unauthorized", f"Invalid Compact JWS {key}", "AccessDenied")
        return await handler(request)

    # Buckets and objects

    async def _get_bucket(self, request: web.Request) -> web.Response:
        name = request.match_info["bucket"]
        bucket = self.buckets.get(name)
        if bucket is None:
            return no_bucket()
        body = {
            "id": name,
            "name": name,
            "owner": "",
            "public": bucket.public,
            "file_size_limit": bucket.file_size_limit,
            "allowed_mime_types": bucket.allowed_mime_types,
            "created_at": MOMENT,
            "updated_at": MOMENT,
        }
        return web.json_response(body)

    async def _upload(self, request: web.Request) -> web.Response:
        name, key = request.match_info["bucket"], request.match_info["key"]
        bucket = self.buckets.get(name)
        if bucket is None:
            return no_bucket()
        if not _KEY.fullmatch(key):
            return refuse(400, "InvalidKey", f"Invalid key: {key}", "InvalidKey")
        if request.headers.get("x-upsert") != "true" and key in bucket.objects:
            return refuse(409, "Duplicate", "The resource already exists", "ResourceAlreadyExists")

        parts = {name: (kind, value) for name, kind, value in read_form(request, await request.read())}
        mimetype, data = parts["file"]
        if bucket.allowed_mime_types and mimetype not in bucket.allowed_mime_types:
            return refuse(415, "invalid_mime_type", f"mime type {mimetype} is not supported", "InvalidMimeType")
        if bucket.file_size_limit and len(data) > bucket.file_size_limit:
            message = "The object exceeded the maximum allowed size"
            return refuse(413, "Payload too large", message, "EntityTooLarge")

        cache_control = f"max-age={parts['cacheControl'][1].decode()}" if "cacheControl" in parts else "no-cache"
        digest, kept = hashlib.sha256(data).hexdigest(), data if self.remembers else None
        bucket.objects[key] = Object(kept, mimetype, cache_control, digest, len(data), self._etag(data))
        self.written[f"{name}/{key}"] += 1
        return web.json_response({"Id": str(uuid4()), "Key": f"{name}/{key}"})

    def _etag(self, data: bytes) -> str:
        if self.md5_etags and len(data) <= PART_BYTES:
            return f'"{hashlib.md5(data).hexdigest()}"'
        return f'"{secrets.token_hex(16)}-{len(data) // PART_BYTES + 1}"'

    def _bucket_for(self, request: web.Request) -> Bucket | None:
        """The bucket that is named, unless it is hidden from a stranger."""
        bucket = self.buckets.get(request.match_info["bucket"])
        return bucket if bucket and (bucket.public or request[KNOWN]) else None

    async def _get(self, request: web.Request) -> web.Response:
        bucket = self._bucket_for(request)
        return no_bucket() if bucket is None else self._serve(bucket, request.match_info["key"])

    async def _get_public(self, request: web.Request) -> web.Response:
        bucket = self.buckets.get(request.match_info["bucket"])
        return no_bucket() if bucket is None or not bucket.public else self._serve(bucket, request.match_info["key"])

    async def _get_signed(self, request: web.Request) -> web.Response:
        name, key = request.match_info["bucket"], request.match_info["key"]
        token = json.loads(base64.urlsafe_b64decode(request.query["token"]))
        if token["url"] != f"{name}/{key}":
            return refuse(400, "InvalidSignature", "Invalid signature", "InvalidSignature")
        if token["exp"] < datetime.now(UTC).timestamp():
            return refuse(400, "ExpiredToken", "The provided token has expired.", "ExpiredToken")
        return self._serve(self.buckets[name], key)

    def _serve(self, bucket: Bucket, key: str) -> web.Response:
        found = bucket.objects.get(key)
        if found is None:
            return no_key()
        assert found.data is not None, f"{key} was forgotten"
        headers = {"Content-Type": found.mimetype, "ETag": found.etag, "Cache-Control": found.cache_control}
        return web.Response(body=found.data, headers=headers)

    async def _info(self, request: web.Request) -> web.Response:
        name, key = request.match_info["bucket"], request.match_info["key"]
        bucket = self._bucket_for(request)
        if bucket is None:
            return no_bucket()
        found = bucket.objects.get(key)
        if found is None:
            return no_key()
        body = {
            "id": str(uuid4()),
            "name": key,
            "version": str(uuid4()),
            "bucket_id": name,
            "size": found.size,
            "content_type": found.mimetype,
            "cache_control": found.cache_control,
            "etag": found.etag,
            "metadata": {},
            "last_modified": MOMENT,
            "created_at": MOMENT,
        }
        return web.json_response(body)

    async def _sign(self, request: web.Request) -> web.Response:
        name, key = request.match_info["bucket"], request.match_info["key"]
        bucket = self.buckets.get(name)
        if bucket is None or key not in bucket.objects:
            return no_key()
        expires = datetime.now(UTC).timestamp() + int((await request.json())["expiresIn"])
        token = base64.urlsafe_b64encode(json.dumps({"url": f"{name}/{key}", "exp": expires}).encode()).decode()
        return web.json_response({"signedURL": f"/object/sign/{name}/{key}?token={token}"})

    async def _list(self, request: web.Request) -> web.Response:
        bucket = self.buckets.get(request.match_info["bucket"], Bucket(public=False))
        asked = await request.json()
        assert not asked.get("with_delimiter"), "folders are not needed here"
        limit = min(asked.get("limit") or LISTED_AT_ONCE, LISTED_AT_ONCE)
        behind = base64.b64decode(asked.get("cursor", "")).decode().removeprefix("l:")
        found = sorted(key for key in bucket.objects if key.startswith(asked.get("prefix", "")) and key > behind)
        page = found[:limit]
        body: dict[str, Any] = {"hasNext": len(found) > limit, "folders": []}
        body["objects"] = [
            {"id": str(uuid4()), "name": key, "metadata": {}, "updated_at": MOMENT, "created_at": MOMENT}
            for key in page
        ]
        if len(found) > limit:
            body["nextCursor"] = base64.b64encode(f"l:{page[-1]}".encode()).decode()
        return web.json_response(body)

    async def _delete(self, request: web.Request) -> web.Response:
        bucket = self.buckets.get(request.match_info["bucket"], Bucket(public=False))
        keys = (await request.json())["prefixes"]
        if not keys:
            return refuse(400, "Error", "body/prefixes must NOT have fewer than 1 items", "InvalidRequest")
        if len(keys) > DELETED_AT_ONCE:
            message = f"Bulk object requests are limited to {DELETED_AT_ONCE} objects per request."
            return refuse(400, "InvalidRequest", message, "InvalidRequest")
        return web.json_response([{"name": key} for key in keys if bucket.objects.pop(key, None)])


def read_form(request: web.Request, body: bytes) -> Iterator[tuple[str, str, bytes]]:
    """The fields of a form by name, with their types; aiohttp's own reader warns of itself."""
    boundary = request.headers["Content-Type"].partition("boundary=")[2].encode()
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        kind = re.search(rb"content-type: *([^\r]*)", head, re.IGNORECASE)
        assert name, head
        yield name[1].decode(), kind[1].decode() if kind else "", value.removesuffix(b"\r\n")


def refuse(status: int, error: str, message: str, code: str, *, wire: int = 400) -> web.Response:
    """A refusal as Storage sends it."""
    return web.json_response({"statusCode": str(status), "code": code, "error": error, "message": message}, status=wire)


def no_bucket() -> web.Response:
    return refuse(404, "Bucket not found", "Bucket not found", "NoSuchBucket")


def no_key() -> web.Response:
    return refuse(404, "not_found", "Object not found", "NoSuchKey")


def page(status: int, request: web.Request, **headers: str) -> web.Response:
    """What a gateway answers: a page, and one that tells more than it should."""
    told = "".join(f"<li>{name}: {value}</li>" for name, value in request.headers.items())
    text = (
        f"<!DOCTYPE html><html><head><title>{status}</title><style>body {{ margin: 0 }}</style></head>"
        f"<body><h1>Bad &amp; gateway</h1><ul>{told}</ul>{'<p>nginx</p>' * 500}</body></html>"
    )
    return web.Response(status=status, text=text, content_type="text/html", headers=headers)


def _refusal_of(fault: Fault, request: web.Request) -> web.Response:
    match fault:
        case Fault.INTERNAL:
            return refuse(500, "InternalError", "Internal server error", "InternalError", wire=500)
        case Fault.DATABASE_TIMEOUT:
            message = "The connection to the database timed out"
            return refuse(544, "DatabaseTimeout", message, "DatabaseTimeout", wire=544)
        case Fault.SLOW_DOWN:
            message = "Too many connections issued to the database"
            return refuse(429, "too_many_connections", message, "SlowDown", wire=429)
        case Fault.LOCKED:
            return refuse(423, "ResourceLocked", "The resource is locked", "ResourceLocked")
        case Fault.READ_ONLY:
            return refuse(503, "DatabaseReadOnly", "The database is currently in read-only mode.", "DatabaseReadOnly")
        case Fault.WAIT:
            return page(429, request, **{"Retry-After": "0"})
    return page({Fault.PAGE_502: 502, Fault.PAGE_503: 503, Fault.PAGE_504: 504}[fault], request)


def _end(request: web.Request, *, reset: bool = False) -> web.Response:
    """End the connection without another word."""
    assert request.transport is not None
    if reset:
        raw: socket.socket = request.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    return web.Response()
