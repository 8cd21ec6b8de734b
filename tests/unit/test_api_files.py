"""Finished pictures over HTTP: the right bytes, kept for ever by caches, and nothing from outside the folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tenkaigen_worker.api.app import make_app
from tenkaigen_worker.api.parts import Parts
from tenkaigen_worker.config_api import ApiSettings
from tenkaigen_worker.errors import StorageError
from tenkaigen_worker.storage.local import LocalStorage

KEY = "u1/j1/3-0-abc.png"
SECRET = b"bytes that nobody may read"
DATA = bytes(range(256)) * 8


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files", "http://127.0.0.1/files")


@pytest.fixture
async def client(storage: LocalStorage) -> AsyncIterator[TestClient]:
    # Nothing but files is asked for here.
    parts = Parts(None, storage, None, None, None, None, None)  # type: ignore[arg-type]
    async with TestClient(TestServer(make_app(parts, ApiSettings()))) as client:
        await storage.put(KEY, DATA, content_type="image/png")
        yield client


async def test_a_file_is_served_for_ever(client: TestClient) -> None:
    response = await client.get(f"/files/{KEY}")
    assert (response.status, await response.read()) == (200, DATA)
    assert response.content_type == "image/png"
    assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Accept-Ranges"] == "bytes"
    again = await client.get(f"/files/{KEY}", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")


async def test_head_has_the_length_and_no_body(client: TestClient) -> None:
    response = await client.head(f"/files/{KEY}")
    assert (response.status, response.content_length, await response.read()) == (200, len(DATA), b"")
    assert response.headers["ETag"]


@pytest.mark.parametrize(("asked", "part"), [("bytes=10-19", DATA[10:20]), ("bytes=-5", DATA[-5:])])
async def test_a_part_of_a_file(client: TestClient, asked: str, part: bytes) -> None:
    response = await client.get(f"/files/{KEY}", headers={"Range": asked})
    assert (response.status, await response.read()) == (206, part)


async def test_a_part_beyond_the_end_is_not_kept_by_caches(client: TestClient) -> None:
    response = await client.get(f"/files/{KEY}", headers={"Range": "bytes=9999-"})
    assert response.status == 416
    assert response.headers["Content-Range"] == f"bytes */{len(DATA)}"
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", "image/jpeg"),
        ("a.webp", "image/webp"),
        ("a.html", "application/octet-stream"),
        ("a", "application/octet-stream"),
    ],
)
async def test_types_follow_the_name_and_pages_are_never_served_as_pages(
    client: TestClient, storage: LocalStorage, name: str, kind: str
) -> None:
    await storage.put(name, b"x", content_type=kind)
    response = await client.get(f"/files/{name}")
    assert response.content_type == kind


async def test_names_that_need_quoting(client: TestClient, storage: LocalStorage) -> None:
    url = await storage.put("ü x/a?b#c.png", DATA, content_type="image/png")
    _, _, path = url.partition("127.0.0.1")
    assert await raw_get(client, path) == 200


async def test_what_is_not_there_is_a_problem(client: TestClient) -> None:
    response = await client.get("/files/u1/j1/none.png")
    assert response.status == 404
    assert (await response.json(content_type="application/problem+json"))["code"] == "file_not_found"
    assert response.headers["Cache-Control"] == "no-store"


async def raw_get(client: TestClient, path: str) -> int:
    """The status of a GET whose path no client has tidied up."""
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert SECRET not in answer
    return int(answer.split()[1])


@pytest.mark.parametrize(
    "path",
    [
        "/files/../secret.png",
        "/files/%2e%2e/secret.png",
        "/files/..%2fsecret.png",
        "/files/u1/%2e%2e/%2e%2e/secret.png",
        "/files/u1/..%5c..%5csecret.png",
        "/files//etc/passwd",
        "/files/%2fetc%2fpasswd",
        "/files/.secret.png.0000.tmp",
        "/files/u1/j1/.4-0-x.png.0000.tmp",
        "/files/link.png",
        "/files/up/secret.png",
        "/files/a%00.png",
        "/files/u1",
        "/files/u1/",
        "/files/",
        "/files",
        "/files/" + "x" * 3000,
    ],
)
async def test_nothing_else_can_be_read(client: TestClient, storage: LocalStorage, path: str) -> None:
    (storage.root.parent / "secret.png").write_bytes(SECRET)
    (storage.root / ".secret.png.0000.tmp").write_bytes(SECRET)
    (storage.root / "u1/j1/.4-0-x.png.0000.tmp").write_bytes(SECRET)
    (storage.root / "link.png").symlink_to(storage.root.parent / "secret.png")
    (storage.root / "up").symlink_to(storage.root.parent)
    assert await raw_get(client, path) == 404


class Elsewhere:
    """Files that this machine does not have; ``links`` are good for a while."""

    def __init__(self) -> None:
        self.links = {KEY: "https://ref.supabase.co/storage/v1/object/sign/x?token=abc"}
        self.error: StorageError | None = None

    async def find(self, key: str) -> Path | None:
        return None

    async def link(self, key: str) -> str | None:
        if self.error:
            raise self.error
        return self.links.get(key)


@pytest.fixture
async def elsewhere() -> AsyncIterator[tuple[TestClient, Elsewhere]]:
    files = Elsewhere()
    files.links["uploads/anonymous/x.png"] = "https://ref.supabase.co/nobody-may-know"
    parts = Parts(None, files, None, None, None, None, None)  # type: ignore[arg-type]
    async with TestClient(TestServer(make_app(parts, ApiSettings()))) as client:
        yield client, files


async def test_a_file_in_another_place_is_found_by_a_link_of_the_moment(
    elsewhere: tuple[TestClient, Elsewhere],
) -> None:
    client, files = elsewhere
    response = await client.get(f"/files/{KEY}", allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (302, files.links[KEY])
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("key", ["u1/j1/none.png", "uploads/anonymous/x.png", "Uploads/anonymous/x.png"])
async def test_there_is_no_way_to_what_is_not_there_or_private(
    elsewhere: tuple[TestClient, Elsewhere], key: str
) -> None:
    client, _ = elsewhere
    response = await client.get(f"/files/{key}", allow_redirects=False)
    assert (response.status, (await response.json(content_type=None))["code"]) == (404, "file_not_found")


@pytest.mark.parametrize(("permanent", "status"), [(True, 404), (False, 503)])
async def test_a_place_that_does_not_answer(
    elsewhere: tuple[TestClient, Elsewhere], permanent: bool, status: int
) -> None:
    client, files = elsewhere
    files.error = StorageError("the bucket is away", permanent=permanent)
    response = await client.get(f"/files/{KEY}", allow_redirects=False)
    assert response.status == status
    assert "bucket" not in await response.text()
