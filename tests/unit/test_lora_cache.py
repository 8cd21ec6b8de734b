"""The LoRA cache beside a server that cuts, lies and answers nonsense: it ends right, or says why."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import tenacity
from aiohttp import web
from yarl import URL

from tenkaigen_worker.errors import Code, InfrastructureError, InputError
from tenkaigen_worker.loras.cache import LoraCache
from tenkaigen_worker.loras.download import ATTEMPTS, Hub, MayPass, wait_for_it
from tenkaigen_worker.loras.folder import Folder, lock
from tenkaigen_worker.loras.partial import Partial
from tenkaigen_worker.plugin import Lora
from tenkaigen_worker.plugin.lora_source import WebFile, parse_source
from tests.unit.lora_bytes import lora_bytes
from tests.unit.lora_server import (
    ETAG,
    Answer,
    Asked,
    LoraServer,
    all_of_it,
    cut_after,
    instead,
    serving,
    status,
)

# More than one piece of a megabyte, so that files also grow in several writes.
CONTENT = lora_bytes(rank=200, into=2000, out=2000)
OTHER = lora_bytes(1)
HALF = len(CONTENT) // 2

Serve = Callable[..., Awaitable[LoraServer]]
MakeCache = Callable[..., LoraCache]


def lora_of(server: LoraServer, content: bytes = CONTENT, *, source: str | None = None, name: str = "Style") -> Lora:
    return Lora(name, source or server.url, hashlib.sha256(content).hexdigest(), base_model="tiny")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """What starts servers that end with the test."""
    async with AsyncExitStack() as stack:

        async def start(*script: Answer, content: bytes = CONTENT) -> LoraServer:
            return await stack.enter_async_context(serving(content, *script))

        yield start


@pytest.fixture
async def make_cache(tmp_path: Path) -> AsyncIterator[MakeCache]:
    """What makes caches in one folder; they do not wait between attempts."""
    made: list[LoraCache] = []

    def make(*, max_bytes: int = 10**9, max_file_bytes: int = 10**8, **options: Any) -> LoraCache:
        folder = Folder(tmp_path / "loras", max_bytes)
        cache = LoraCache(folder, max_file_bytes=max_file_bytes, wait=lambda state: 0, **options)
        made.append(cache)
        return cache

    yield make
    for cache in made:
        await cache.close()


async def held(cache: LoraCache, lora: Lora) -> bytes:
    async with cache.hold([lora]) as files:
        return files[lora.sha256].read_bytes()


def names(cache: LoraCache) -> set[str]:
    return {path.name for path in cache.folder.path.iterdir()}


async def test_a_file_is_fetched_once_and_then_used_without_a_network(serve: Serve, make_cache: MakeCache) -> None:
    server = await serve()
    lora = lora_of(server)

    assert await held(make_cache(), lora) == CONTENT
    assert await held(make_cache(), lora) == CONTENT

    assert server.ranges == [None]
    assert names(make_cache()) == {f"{lora.sha256}.safetensors"}


# A cut connection, and servers that go on in other ways than they were asked to


@pytest.mark.parametrize(
    ("script", "goes_on"),
    [
        ([cut_after(HALF)], [False, True]),
        ([cut_after(HALF, etag=None)], [False, True]),
        ([cut_after(HALF), cut_after(10)], [False, True, True]),
        ([cut_after(HALF), all_of_it], [False, True]),
        ([cut_after(HALF), status(416, Content_Range="bytes */7")], [False, True, False]),
        ([cut_after(HALF), status(416)], [False, True, False]),
        ([cut_after(HALF), instead(b"x", status=206, start=3)], [False, True, False]),
        ([cut_after(HALF), status(206)], [False, True, False]),
        ([cut_after(HALF), instead(b"", status=206, etag='"two"')], [False, True, False]),
        ([cut_after(HALF), instead(CONTENT, status=206, length=-1)], [False, True, False]),
        ([status(503), status(429), status(425), status(408)], [False] * 5),
        ([cut_after(0)], [False, False]),
    ],
    ids=[
        "cut", "cut without an etag", "cut twice", "200 to a range", "416 with another size", "416", "another part",
        "206 without a range", "another version", "more than it spoke of", "passing answers", "nothing at all",
    ],
)  # fmt: skip
async def test_it_ends_right(serve: Serve, make_cache: MakeCache, script: list[Answer], goes_on: list[bool]) -> None:
    server = await serve(*script)

    assert await held(make_cache(), lora_of(server)) == CONTENT
    assert [asked is not None for asked in server.ranges] == goes_on


async def test_bytes_of_an_earlier_process_are_gone_on_with(serve: Serve, make_cache: MakeCache) -> None:
    server = await serve(cut_after(HALF), *[status(503)] * ATTEMPTS)
    with pytest.raises(InfrastructureError):
        await held(make_cache(), lora_of(server))
    assert [asked is not None for asked in server.ranges] == [False, *[True] * ATTEMPTS]

    assert await held(make_cache(), lora_of(server)) == CONTENT
    assert server.seen[-1].headers["If-Range"] == ETAG


async def test_a_file_that_was_complete_but_unnamed_needs_no_byte_more(serve: Serve, make_cache: MakeCache) -> None:
    server = await serve()
    cache, lora = make_cache(), lora_of(server)
    cache.folder.path.mkdir()
    cache.folder.partial(lora.sha256).write_bytes(CONTENT)

    assert await held(cache, lora) == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


async def test_a_damaged_beginning_is_fetched_again(serve: Serve, make_cache: MakeCache) -> None:
    server = await serve()
    cache, lora = make_cache(), lora_of(server)
    cache.folder.path.mkdir()
    cache.folder.partial(lora.sha256).write_bytes(CONTENT[: HALF - 1] + b"?")

    assert await held(cache, lora) == CONTENT
    assert server.ranges == [f"bytes={HALF}-", None]


async def test_a_file_that_was_damaged_on_disk_is_fetched_again(serve: Serve, make_cache: MakeCache) -> None:
    server = await serve()
    cache, lora = make_cache(), lora_of(server)
    await held(cache, lora)
    cache.folder.file(lora.sha256).write_bytes(CONTENT[:-1] + b"?")

    assert await held(cache, lora) == CONTENT
    assert len(server.seen) == 2


@pytest.mark.parametrize(("etag", "goes_on"), [(ETAG, True), (None, False), ('W/"one"', False)])
async def test_without_a_checksum_only_a_version_lets_it_go_on(
    serve: Serve, make_cache: MakeCache, etag: str | None, goes_on: bool
) -> None:
    server = await serve(cut_after(HALF, etag=etag))

    fetched = await make_cache().fetch("Style", WebFile(server.url))

    assert fetched.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert fetched.path.read_bytes() == CONTENT
    assert [asked is not None for asked in server.ranges] == [False, goes_on]


# What will not pass, and what may


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (status(404), r"style.safetensors: the server answers 404 \(Not Found\)"),
        (status(410), "answers 410"),
        (instead(OTHER, length=len(OTHER)), "should have"),
        (instead(CONTENT[:-1] + b"?"), r"has the SHA-256 [0-9a-f]{64}, and should have"),
        (instead(CONTENT[:HALF], length=HALF), "it is cut short"),
        (instead(CONTENT[:HALF], length=-1), "it is cut short"),
        (instead(CONTENT + b"beyond", length=-1), "goes on after its last tensor"),
        (instead(b"PK\x03\x04" + bytes(99), length=103), r"a zip archive, such as a PyTorch pickle"),
        (instead(b"\x80\x02}q\x00" + bytes(99), length=104), "a Python pickle"),
        (instead(b"<html>", length=6), "a web page"),
        (instead(b"", length=0), "it is empty"),
        (instead(b"version https://git-lfs.github.com/spec/v1\n", length=43), "Git LFS pointer"),
        (status(302, Location="http://example.org/x"), "sends us to another place: a URL must begin with https://"),
        (status(302, Location="/style.safetensors"), "from one place to the next without an end"),
    ],
)  # fmt: skip
async def test_what_will_not_pass_ends_the_job(serve: Serve, make_cache: MakeCache, answer: Answer, says: str) -> None:
    server = await serve(*[answer] * 10)
    cache = make_cache()

    with pytest.raises(InputError, match=says) as error:
        await held(cache, lora_of(server))

    assert error.value.code is Code.LORA_UNUSABLE
    assert names(cache) == set()


@pytest.mark.parametrize(
    ("answer", "attempts", "says"),
    [
        (status(503), ATTEMPTS, r"the server answers 503 \(Service Unavailable\)"),
        (status(429), ATTEMPTS, "answers 429"),
        (cut_after(0), ATTEMPTS, "the connection was cut"),
        (status(403), 1, "answers 403"),
        (status(401), 1, "answers 401"),
    ],
)
async def test_what_may_pass_is_tried_again(
    serve: Serve, make_cache: MakeCache, answer: Answer, attempts: int, says: str
) -> None:
    server = await serve(*[answer] * 20)

    with pytest.raises(InfrastructureError, match=says) as error:
        await held(make_cache(), lora_of(server))

    assert error.value.code is Code.LORA_FAILED
    assert len(server.seen) == attempts


async def test_a_server_that_is_away(make_cache: MakeCache, unused_tcp_port: int) -> None:
    gone = LoraServer(CONTENT, origin=f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(InfrastructureError, match="Connect call failed"):
        await held(make_cache(), lora_of(gone))


async def test_no_signature_gets_into_an_error(serve: Serve, make_cache: MakeCache) -> None:
    server = await serve(*[status(200, X="a" * 10_000)] * ATTEMPTS)
    with pytest.raises(InfrastructureError, match="the server's answer is no HTTP: Got more than 8190") as caught:
        await held(make_cache(), lora_of(server, source=f"{server.url}?signature=secret"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://a..b/x", "https://x.y:99999/z", f"https://{'a' * 70}.b/z"])
async def test_an_address_that_is_none(make_cache: MakeCache, url: str) -> None:
    with pytest.raises((InputError, ValueError), match=r"this is no|no address"):
        await held(make_cache(), Lora("Style", url, "0" * 64, base_model="tiny"))


async def test_a_server_may_ask_for_patience() -> None:
    def wait(error: Exception, attempt: int) -> float:
        state = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})
        state.attempt_number = attempt
        state.set_exception((type(error), error, None))  # type: ignore[arg-type]
        return wait_for_it(state)

    assert wait(MayPass("busy", after=20), 1) == 20
    assert wait(MayPass("busy", after=99999), 1) == 60
    assert 1 <= wait(MayPass("cut"), 1) <= 2
    assert wait(MayPass("cut"), 9) == 30


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (None, f"it has {len(CONTENT)} bytes, and loras.max_file_bytes is {HALF}"),
        (-1, "more than loras.max_file_bytes"),
    ],
)
async def test_a_file_beyond_the_limit_is_not_fetched(
    serve: Serve, make_cache: MakeCache, length: int | None, says: str
) -> None:
    server = await serve(instead(CONTENT, length=length))
    cache = make_cache(max_file_bytes=HALF)

    with pytest.raises(InputError, match=says):
        await held(cache, lora_of(server))
    assert names(cache) == set()


async def test_a_full_disk_is_said_and_left_tidy(
    serve: Serve, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def full(handle: int, data: bytes, at: int) -> int:
        if at > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[:1000], at)

    server, cache = await serve(), make_cache()
    monkeypatch.setattr(os, "pwrite", full)

    with pytest.raises(InfrastructureError, match="No space left on device: make room there") as error:
        await held(cache, lora_of(server))
    assert error.value.code is Code.LORA_FAILED
    assert names(cache) == set()


async def test_a_folder_that_cannot_be_made(serve: Serve, make_cache: MakeCache) -> None:
    server, cache = await serve(), make_cache()
    cache.folder.path.write_text("in the way")

    with pytest.raises(InfrastructureError, match=r"set loras.cache_dir to another"):
        await held(cache, lora_of(server))


# Many at once


async def test_many_jobs_share_one_download(serve: Serve, make_cache: MakeCache) -> None:
    server, cache = await serve(), make_cache()

    contents = await asyncio.gather(*(held(cache, lora_of(server)) for _ in range(10)))

    assert contents == [CONTENT] * 10
    assert len(server.seen) == 1


async def test_one_job_that_gives_up_takes_nothing_from_the_others(serve: Serve, make_cache: MakeCache) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(asked: Asked) -> web.StreamResponse:
        response = await asked.begin()
        begun.set()
        await go_on.wait()
        await response.write(CONTENT)
        return response

    server, cache = await serve(slowly), make_cache()
    lora = lora_of(server)
    source = parse_source(lora.source)
    assert isinstance(source, WebFile)
    # Not through hold, which looks at the disk first: the second might come after the first one has given up.
    first, second = (asyncio.create_task(cache.fetch(lora.name, source, lora.sha256)) for _ in range(2))
    await begun.wait()
    first.cancel()
    go_on.set()

    assert (await second).path.read_bytes() == CONTENT
    assert first.cancelled()
    assert len(server.seen) == 1


async def test_the_last_to_give_up_ends_the_download_and_leaves_it_to_go_on_with(
    serve: Serve, make_cache: MakeCache
) -> None:
    grown = asyncio.Event()

    async def half(asked: Asked) -> web.StreamResponse:
        response = await asked.begin()
        await response.write(CONTENT[:HALF])
        await asyncio.Event().wait()
        return response

    server = await serve(half)
    cache = make_cache(progress=lambda name, done, total: grown.set() if done else None)
    job = asyncio.create_task(held(cache, lora_of(server)))
    await grown.wait()
    job.cancel()
    await asyncio.wait([job])

    left = Partial.open(cache.folder.partial(lora_of(server).sha256))
    assert left is not None, "it is still locked"
    assert left.size >= 1 << 20
    left.close()


PROGRAM = """
import asyncio, logging, sys
from pathlib import Path
from tenkaigen_worker.loras.cache import LoraCache
from tenkaigen_worker.loras.folder import Folder
from tenkaigen_worker.plugin import Lora

async def main(folder, url, sha256):
    cache = LoraCache(Folder(Path(folder), 10**9), max_file_bytes=10**9)
    async with cache.hold([Lora("Style", url, sha256, base_model="tiny")]) as files:
        print(files[sha256].stat().st_size)
    await cache.close()

logging.basicConfig(level="INFO", stream=sys.stderr, format="%(action)s")
asyncio.run(main(*sys.argv[1:]))
"""


async def process_with(folder: Path, lora: Lora) -> asyncio.subprocess.Process:
    """Start another process that wants a LoRA."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(folder), lora.source, lora.sha256,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_two_processes_share_one_download(serve: Serve, tmp_path: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(asked: Asked) -> web.StreamResponse:
        response = await asked.begin()
        await response.write(CONTENT[:HALF])
        begun.set()
        await go_on.wait()
        await response.write(CONTENT[HALF:])
        return response

    server = await serve(slowly)
    first = await process_with(tmp_path, lora_of(server))
    await begun.wait()
    second = await process_with(tmp_path, lora_of(server))
    assert second.stderr is not None
    assert (await second.stderr.readline()).strip() == b"lora_awaited"
    go_on.set()

    for process in (first, second):
        out, _ = await process.communicate()
        assert out.split() == [str(len(CONTENT)).encode()]
    assert len(server.seen) == 1


async def test_a_process_that_is_killed_leaves_nothing_in_the_way(serve: Serve, make_cache: MakeCache) -> None:
    begun = asyncio.Event()

    async def half(asked: Asked) -> web.StreamResponse:
        response = await asked.begin()
        await response.write(CONTENT[:HALF])
        begun.set()
        await asyncio.Event().wait()
        return response

    server, cache = await serve(half), make_cache()
    process = await process_with(cache.folder.path, lora_of(server))
    await begun.wait()
    here = asyncio.create_task(held(cache, lora_of(server)))
    process.kill()
    await process.communicate()

    assert await here == CONTENT
    assert names(cache) == {f"{lora_of(server).sha256}.safetensors"}


# The limit of the folder


@pytest.mark.parametrize("length", [None, -1], ids=["before it comes", "when its size is known"])
async def test_what_was_not_used_for_longest_goes_first(
    serve: Serve, make_cache: MakeCache, length: int | None
) -> None:
    contents = [lora_bytes(fill) for fill in range(4)]
    servers = [await serve(content=content) for content in contents]
    loras = [lora_of(server, content) for server, content in zip(servers, contents, strict=True)]
    cache = make_cache(max_bytes=3 * len(contents[0]))
    for lora in (*loras[:3], loras[0]):
        await held(cache, lora)

    servers[3].script.append(instead(contents[3], length=length))
    await held(cache, loras[3])

    assert names(cache) == {f"{loras[number].sha256}.safetensors" for number in (0, 2, 3)}


async def test_nothing_that_is_in_use_is_removed(
    serve: Serve, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tenkaigen.loras")
    one, two = lora_of(await serve()), lora_of(await serve(content=OTHER), OTHER)
    cache, others = make_cache(max_bytes=len(CONTENT)), make_cache(max_bytes=0)

    async with cache.hold([one]) as files:
        await held(cache, two)
        others.folder.make_room()
        assert files[one.sha256].read_bytes() == CONTENT
    assert "loras_over_limit" in [getattr(record, "action", "") for record in caplog.records]

    others.folder.make_room()
    assert names(cache) == set()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(CONTENT)
    flock = fcntl.flock

    def just_too_late(handle: int, kind: int) -> None:
        file.unlink(missing_ok=True)
        file.write_bytes(OTHER)
        flock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", just_too_late)
    assert lock(file, os.O_RDONLY, fcntl.LOCK_SH) is None


# The hub


async def test_a_file_of_the_hub_is_found_and_the_token_goes_no_further(serve: Serve, make_cache: MakeCache) -> None:
    store = await serve()
    commit = "c" * 40
    hub = await serve(status(302, Location=store.url, X_Repo_Commit=commit))
    cache = make_cache(hub=Hub(URL(hub.origin), token="hf_secret"))
    source = "hub:someone/loras/deep/my style.safetensors@refs/pr/1"

    assert await held(cache, lora_of(hub, source=source)) == CONTENT

    assert hub.seen[0].raw_path == "/someone/loras/resolve/refs%2Fpr%2F1/deep/my%20style.safetensors"
    assert hub.seen[0].headers["Authorization"] == "Bearer hf_secret"
    assert "Authorization" not in store.seen[0].headers


async def test_a_token_is_not_sent_to_other_servers(serve: Serve, make_cache: MakeCache) -> None:
    server, hub = await serve(), await serve()
    await held(make_cache(hub=Hub(URL(hub.origin), token="hf_secret")), lora_of(server))
    assert "Authorization" not in server.seen[0].headers


async def test_offline_nothing_is_asked(serve: Serve, make_cache: MakeCache) -> None:
    hub = await serve()
    cache = make_cache(hub=Hub(URL(hub.origin), offline=True))
    with pytest.raises(InfrastructureError, match="is not on this machine, and HF_HUB_OFFLINE is set"):
        await held(cache, lora_of(hub, source="hub:a/b/c.safetensors@main"))
    assert hub.seen == []


def test_where_the_hub_is() -> None:
    assert Hub.of({}) == Hub(URL("https://huggingface.co"))
    assert Hub.of({"HF_ENDPOINT": "https://hub.example/x/", "HF_TOKEN": "t", "HF_HUB_OFFLINE": "1"}) == Hub(
        URL("https://hub.example/x"), "t", offline=True
    )
    with pytest.raises(ValueError, match="https://"):
        Hub.of({"HF_ENDPOINT": "http://hub.example"})


# Files of this machine


async def test_a_local_file_is_used_where_it_lies(make_cache: MakeCache, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(CONTENT)
    lora = Lora("Style", str(file), hashlib.sha256(CONTENT).hexdigest(), base_model="tiny")
    cache = make_cache()

    async with cache.hold([lora]) as files:
        assert files == {lora.sha256: file}
    assert not cache.folder.path.exists()

    file.write_bytes(OTHER)
    with pytest.raises(InputError, match="and should have"):
        await held(cache, lora)
    file.unlink()
    with pytest.raises(InputError, match="there is no file"):
        await held(cache, lora)


async def test_a_file_that_is_no_lora_for_this_model_is_refused(make_cache: MakeCache, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(CONTENT)
    with pytest.raises(InputError, match="another model's") as error:
        await held(make_cache(), Lora("Style", str(file), hashlib.sha256(CONTENT).hexdigest()))
    assert error.value.code is Code.LORA_UNUSABLE


async def test_progress_is_logged(serve: Serve, make_cache: MakeCache, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tenkaigen.loras")
    await held(make_cache(), lora_of(await serve()))

    said = [(record.action, record.getMessage()) for record in caplog.records]  # type: ignore[attr-defined]
    assert said == [("lora_downloading", "Downloading the LoRA Style: 0 %"), ("lora_fetched", "Fetched the LoRA Style")]
