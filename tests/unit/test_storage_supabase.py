"""Files in Supabase Storage: on a stand-in with its wire behaviour, and on a real one that the environment names."""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from typing import Any

import httpx
import pytest
from aiohttp import web
from storage3 import AsyncStorageClient
from tenacity import RetryCallState, wait_none

from tenkaigen_worker.config import Settings
from tenkaigen_worker.config_storage import SupabaseStorageSettings
from tenkaigen_worker.errors import ConfigError, StorageError
from tenkaigen_worker.storage import supabase
from tenkaigen_worker.storage.factory import open_storage
from tenkaigen_worker.storage.refusals import Kind, Refused
from tenkaigen_worker.storage.supabase import SupabaseStorage
from tests.supabase_storage import PASSING, SECRET_KEY, Bucket, Fault, StandIn, page, refuse

KEY = "7d0c/3f1c/1-0-0123456789ab.png"
PNG = b"\x89PNG" + secrets.token_bytes(100_000)
CONTEXT = ssl.create_default_context()
REAL = ("SUPABASE_URL", "SUPABASE_SECRET_KEY")

Make = Callable[..., SupabaseStorage]


@dataclass
class Cloud:
    """Buckets somewhere, and what makes storages on them."""

    url: str
    secret_key: str
    bucket: str = "generated-designs"
    private: str = "private-designs"
    uploads: str = "generation-uploads"
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def storage(self, **settings: Any) -> SupabaseStorage:
        public = settings.get("public", True)
        names = {"bucket": self.bucket if public else self.private, "uploads_bucket": self.uploads}
        checked = SupabaseStorageSettings(url=self.url, **{**names, **settings})
        storage = SupabaseStorage(
            checked, url=self.url, secret_key=self.secret_key, files_url="https://shop.example/files/"
        )
        self.stack.push_async_callback(storage.close)
        return storage


async def stand_in_cloud(stack: AsyncExitStack) -> tuple[Cloud, StandIn]:
    server = await stack.enter_async_context(StandIn().serving())
    cloud = Cloud(server.url, SECRET_KEY, stack=stack)
    server.buckets[cloud.private] = Bucket(public=False)
    return cloud, server


async def real_cloud(stack: AsyncExitStack) -> Cloud:
    """Buckets of our own on a real server, which are removed in the end."""
    url, key = (os.environ[name] for name in REAL)
    names = [f"tenkaigen-test-{secrets.token_hex(6)}" for _ in range(3)]
    http = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    client = AsyncStorageClient(f"{url.rstrip('/')}/storage/v1/", headers, http_client=http)
    for name, public in zip(names, (True, False, False), strict=True):
        await client.create_bucket(name, options={"public": public})
        stack.push_async_callback(client.delete_bucket, name)
        stack.push_async_callback(client.empty_bucket, name)
    return Cloud(url.rstrip("/"), key, *names, stack=stack)


@pytest.fixture(params=["stand-in", *(["real"] if all(name in os.environ for name in REAL) else [])])
async def cloud(request: pytest.FixtureRequest) -> AsyncIterator[Cloud]:
    async with AsyncExitStack() as stack:
        yield (await stand_in_cloud(stack))[0] if request.param == "stand-in" else await real_cloud(stack)


@pytest.fixture
async def here() -> AsyncIterator[tuple[Cloud, StandIn]]:
    """The stand-in alone, where a test needs a hand in it."""
    async with AsyncExitStack() as stack:
        yield await stand_in_cloud(stack)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supabase, "BETWEEN_TRIES", wait_none())
    # Reading all the certificates of the world takes longer than any of these tests.
    monkeypatch.setattr(ssl, "create_default_context", lambda **_: CONTEXT)


async def put(storage: SupabaseStorage, key: str = KEY, data: bytes = PNG) -> str:
    return await storage.put(key, data, content_type="image/png")


async def load(url: str) -> httpx.Response:
    """What somebody without a key gets."""
    async with httpx.AsyncClient(timeout=60) as client:
        return await client.get(url)


class TestFiles:
    """What storage is asked for, on every server there is."""

    async def test_a_file_comes_and_goes(self, cloud: Cloud) -> None:
        storage = cloud.storage()
        assert await storage.read(KEY) is None
        await put(storage)
        assert await storage.read(KEY) == PNG
        assert await storage.list("7d0c/") == [KEY]
        assert await storage.find(KEY) is None
        await storage.delete([KEY, "7d0c/3f1c/not-there.png"])
        assert await storage.read(KEY) is None
        assert await storage.list("7d0c/") == []

    async def test_a_public_picture_loads_for_everybody_and_for_ever(self, cloud: Cloud) -> None:
        storage = cloud.storage()
        url = await put(storage)
        assert url == f"{cloud.url}/storage/v1/object/public/{cloud.bucket}/{KEY}"
        assert await storage.link(KEY) == url
        answer = await load(url)
        assert (answer.status_code, answer.content, answer.headers["Content-Type"]) == (200, PNG, "image/png")
        assert "max-age=31536000, immutable" in answer.headers["Cache-Control"]

    async def test_a_private_picture_loads_through_a_link_of_the_moment(self, cloud: Cloud) -> None:
        storage = cloud.storage(public=False)
        assert await put(storage) == f"https://shop.example/files/{KEY}"
        link = await storage.link(KEY)
        assert link is not None
        assert (await load(link)).content == PNG
        assert cloud.secret_key not in link
        assert (await load(f"{cloud.url}/storage/v1/object/public/{cloud.private}/{KEY}")).status_code == 400
        assert await storage.link("7d0c/3f1c/not-there.png") is None

    async def test_uploads_are_private_whatever_pictures_are(self, cloud: Cloud) -> None:
        storage, key = cloud.storage(), "uploads/anonymous/0190.png"
        assert await put(storage, key) == f"https://shop.example/files/{key}"
        assert (await load(f"{cloud.url}/storage/v1/object/public/{cloud.uploads}/{key}")).status_code == 400
        assert await storage.list("") == []
        assert await storage.list("uploads/") == [key]
        assert await storage.read(key) == PNG
        await put(storage)
        await storage.delete([key, KEY])
        assert await storage.list("uploads/") == await storage.list("7d0c/") == []

    async def test_the_same_bytes_twice_are_fine_and_others_are_refused(self, cloud: Cloud) -> None:
        storage = cloud.storage()
        assert await put(storage) == await put(storage)
        for other in (b"shorter", PNG[::-1]):
            with pytest.raises(StorageError, match="other bytes") as caught:
                await put(storage, data=other)
            assert caught.value.permanent
        assert await storage.read(KEY) == PNG

    async def test_long_lists_come_in_pages(self, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supabase, "LISTED_AT_ONCE", 2)
        monkeypatch.setattr(supabase, "DELETED_AT_ONCE", 2)
        storage = cloud.storage()
        keys = [f"7d0c/{folder}/1-{number}.png" for folder in ("a", "a_", "b/c") for number in range(3)]
        for key in keys:
            await put(storage, key, b"x")
        assert sorted(await storage.list("7d0c/")) == sorted(keys)
        assert sorted(await storage.list("7d0c/a_/1-")) == keys[3:6]
        assert await storage.list("7d0_/") == [], "an underscore stands for itself"
        await storage.delete(keys)
        assert await storage.list("7d0c/") == []

    async def test_names_that_need_quoting(self, cloud: Cloud) -> None:
        storage, key = cloud.storage(), "7d0c/a b/it's 100 & more?.png"
        assert (await load(await put(storage, key))).content == PNG
        assert await storage.read(key) == PNG
        assert await storage.list("7d0c/a b/") == [key]

    @pytest.mark.parametrize(
        "key", ["../x.png", "7d0c//x.png", "/x.png", ".x", "7d0c/../uploads/x", "x" * 3000, "a%.png"]
    )
    async def test_names_that_no_file_can_have(self, cloud: Cloud, key: str) -> None:
        with pytest.raises(StorageError) as caught:
            await put(cloud.storage(), key)
        assert caught.value.permanent

    async def test_a_check_leaves_nothing(self, cloud: Cloud) -> None:
        assert await cloud.storage().check() == (
            f"files go to the public bucket {cloud.bucket} at {cloud.url}, what users upload to the private bucket "
            f"{cloud.uploads}"
        )
        private = cloud.storage(public=False)
        assert "the private bucket " + cloud.private in await private.check()
        assert await cloud.storage().list("") == await private.list("uploads/") == []

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            (
                {"bucket": "nobody-made-it"},
                "create the bucket nobody-made-it, or name another one in storage.supabase.b",
            ),
            ({"uploads_bucket": "nobody-made-it"}, "name another one in storage.supabase.uploads_bucket"),
            ({"public": False, "bucket": "generated-designs"}, "is public, not private: set storage.supabase.public"),
        ],
    )
    async def test_a_check_says_what_is_wrong(self, cloud: Cloud, settings: dict[str, Any], says: str) -> None:
        if "public" in settings:
            settings = {**settings, "bucket": cloud.bucket}
        with pytest.raises(StorageError, match=says):
            await cloud.storage(**settings).check()

    async def test_a_missing_bucket_may_still_be_made(self, cloud: Cloud) -> None:
        storage = cloud.storage(bucket="nobody-made-it")
        with pytest.raises(StorageError, match="create the bucket nobody-made-it") as caught:
            await put(storage)
        assert not caught.value.permanent, "finished pictures wait for it"

    async def test_a_wrong_key_is_named_and_not_shown(self, cloud: Cloud) -> None:
        cloud.secret_key = "sb_secret_of_somebody_else"
        storage = cloud.storage()
        for asking in (put(storage), storage.delete([KEY]), storage.check()):
            with pytest.raises(StorageError, match="TENKAIGEN_STORAGE__SUPABASE__SECRET_KEY") as caught:
                await asking
            assert cloud.secret_key not in str(caught.value)
            assert not caught.value.permanent, "finished pictures wait for the right one"


def _why(status: int, _: web.Request, *, inside: bool) -> web.Response:
    return refuse(status, "x", "why", "x", wire=400 if inside else status)


class TestFaults:
    """What a server does to a request, and what becomes of it."""

    @pytest.mark.parametrize("fault", PASSING)
    async def test_a_fault_passes_and_the_file_is_there_once(self, here: tuple[Cloud, StandIn], fault: Fault) -> None:
        cloud, server = here
        storage = cloud.storage()
        server.script.append(fault)
        await put(storage)
        assert server.met == {fault: 1}
        assert server.written == {f"{cloud.bucket}/{KEY}": 1}
        for asking in (lambda: storage.read(KEY), lambda: storage.list("7d0c/"), lambda: storage.delete([KEY])):
            server.script.append(fault)
            assert await asking() in (PNG, [KEY], None)
        assert server.met == {fault: 4}
        assert not server.buckets[cloud.bucket].objects

    @pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.SLOW])
    async def test_what_does_not_pass_is_said_in_one_clean_line(
        self, here: tuple[Cloud, StandIn], fault: Fault
    ) -> None:
        cloud, server = here
        storage = cloud.storage(timeout_seconds=0.2 if fault is Fault.HANGS else 120)
        server.down = fault
        with pytest.raises(StorageError) as caught:
            await put(storage)
        assert not caught.value.permanent
        if fault is not Fault.HANGS:  # of which a busy machine may not even have sent all
            assert len(server.requests) == supabase.TRIES
        said = str(caught.value)
        assert said.startswith(f"{KEY} cannot be stored: {cloud.url} answers ")
        assert len(said) < 500
        assert not set(said) & set("<>\n")
        assert cloud.secret_key not in said

    @pytest.mark.parametrize("inside", [True, False])
    @pytest.mark.parametrize(
        ("statuses", "tries", "permanent"),
        [
            ((408, 423, 425, 429, 500, 502, 503, 504, 540, 544), supabase.TRIES, False),
            ((400, 413, 415, 422), 1, True),
            ((401, 403, 404), 1, False),
        ],
    )
    async def test_which_answers_are_tried_again(
        self, here: tuple[Cloud, StandIn], statuses: tuple[int, ...], tries: int, permanent: bool, inside: bool
    ) -> None:
        cloud, server = here
        storage = cloud.storage()
        for status in statuses:
            answer = partial(_why, status, inside=inside)
            server.script.extend([answer] * tries)
            with pytest.raises(StorageError, match=f"answers {status} why") as caught:
                await put(storage)
            assert caught.value.permanent is permanent
            assert not server.script
        assert len(server.requests) == tries * len(statuses)

    async def test_a_server_that_is_not_there(self, here: tuple[Cloud, StandIn]) -> None:
        cloud, _ = here
        cloud.url = "http://127.0.0.1:9"
        with pytest.raises(StorageError, match="ConnectError") as caught:
            await put(cloud.storage())
        assert not caught.value.permanent

    @pytest.mark.parametrize(
        "answer",
        [
            lambda request: page(200, request),
            lambda request: page(404, request),
            lambda _: web.Response(status=308, headers={"Location": "https://shop.example"}),
            lambda _: web.json_response(["not", "ours"]),
            lambda _: web.json_response({"hello": "world"}),
            lambda _: refuse(400, "TenantNotFound", "Missing tenant config for tenant ref", "TenantNotFound"),
        ],
    )
    async def test_what_is_no_supabase_storage(
        self, here: tuple[Cloud, StandIn], answer: Callable[[web.Request], web.Response]
    ) -> None:
        cloud, server = here
        server.script.append(answer)
        with pytest.raises(StorageError, match="this is not Supabase Storage; check") as caught:
            await put(cloud.storage())
        assert len(server.requests) == 1
        assert not caught.value.permanent

    async def test_a_gateway_that_refuses_the_key_in_its_own_words(self, here: tuple[Cloud, StandIn]) -> None:
        cloud, server = here
        server.script.append(lambda _: web.json_response({"message": "Invalid API key"}, status=401))
        with pytest.raises(StorageError, match=r"401 .*Invalid API key.*SECRET_KEY"):
            await put(cloud.storage())

    @pytest.mark.parametrize(
        ("limits", "says"),
        [
            ({"file_size_limit": 10}, "413 The object exceeded"),
            ({"allowed_mime_types": ["image/jpeg"]}, "415 mime type"),
        ],
    )
    async def test_a_file_that_the_bucket_does_not_take(
        self, here: tuple[Cloud, StandIn], limits: dict[str, Any], says: str
    ) -> None:
        cloud, server = here
        server.buckets[cloud.bucket] = Bucket(True, **limits)
        with pytest.raises(StorageError, match=says) as caught:
            await put(cloud.storage())
        assert caught.value.permanent
        if "allowed_mime_types" in limits:
            with pytest.raises(StorageError, match="does not take image/png and image/webp"):
                await cloud.storage().check()

    async def test_without_an_md5_the_bytes_themselves_are_compared(self, here: tuple[Cloud, StandIn]) -> None:
        cloud, server = here
        server.md5_etags = False
        storage = cloud.storage()
        server.script.append(Fault.LOST_ANSWER)
        await put(storage)
        assert server.requests[-1] == f"GET /storage/v1/object/{cloud.bucket}/{KEY}"
        with pytest.raises(StorageError, match="other bytes"):
            await put(storage, data=PNG[::-1])

    async def test_no_more_requests_than_agreed_are_under_way(self, here: tuple[Cloud, StandIn]) -> None:
        cloud, server = here
        storage = cloud.storage(concurrency=3)
        await asyncio.gather(*(put(storage, f"7d0c/3f1c/1-{number}.png") for number in range(12)))
        assert server.most_at_once == 3

    async def test_many_names_are_removed_in_several_requests(
        self, here: tuple[Cloud, StandIn], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cloud, server = here
        await cloud.storage().delete([f"7d0c/3f1c/1-{number}.png" for number in range(1001)])
        assert server.requests == [f"DELETE /storage/v1/object/{cloud.bucket}"] * 3
        server.requests.clear()
        await cloud.storage().delete([])
        assert server.requests == []

    async def test_a_key_that_may_not_delete_is_found(self, here: tuple[Cloud, StandIn]) -> None:
        cloud, server = here
        storage = cloud.storage()
        server.script.extend([None, None, None, lambda _: web.json_response([]), None])
        with pytest.raises(StorageError, match="does not delete files"):
            await storage.check()


class TestRetryAfter:
    """How long a server asks to be left alone."""

    @staticmethod
    def pause(seconds: float) -> float:
        state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
        refused = Refused(Kind.PASSING, "429", seconds)
        state.set_exception((type(refused), refused, None))
        return supabase._pause(state)

    def test_it_is_waited_for(self) -> None:
        assert [self.pause(seconds) for seconds in (0, 3)] == [0, 3]

    @pytest.mark.parametrize("value", ["3600", "Fri, 01 Jan 2100 00:00:00 GMT", "11"])
    async def test_but_not_for_long(self, here: tuple[Cloud, StandIn], value: str) -> None:
        cloud, server = here
        server.script.append(lambda request: page(429, request, **{"Retry-After": value}))
        with pytest.raises(StorageError, match="this may pass"):
            await put(cloud.storage())
        assert len(server.requests) == 1

    @pytest.mark.parametrize("value", ["0", "soon", "-1", "", format_datetime(datetime(2020, 1, 1, tzinfo=UTC))])
    async def test_what_is_no_time_to_wait_for(self, here: tuple[Cloud, StandIn], value: str) -> None:
        cloud, server = here
        server.script.append(lambda request: page(429, request, **{"Retry-After": value}))
        await put(cloud.storage())
        assert len(server.requests) == 2


async def test_the_factory_follows_the_settings() -> None:
    section: dict[str, Any] = {"kind": "supabase", "supabase": {"url": "https://ref.supabase.co"}}
    with pytest.raises(ConfigError, match="SUPABASE_SECRET_KEY"):
        async with open_storage(Settings.model_validate({"storage": section})):
            pass
    section["supabase"] |= {"secret_key": SECRET_KEY, "public": False}
    async with open_storage(Settings.model_validate({"storage": section})) as storage:
        assert isinstance(storage, SupabaseStorage)
        assert SECRET_KEY not in repr(storage)
