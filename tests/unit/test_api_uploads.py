"""Uploading a picture: what is kept, what is refused before it is read or decoded, and who may see it."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData, web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image
from yarl import URL

from tenkaigen_worker.api.app import make_app
from tenkaigen_worker.api.parts import Parts
from tenkaigen_worker.api.serve import serving
from tenkaigen_worker.config import ReferenceSettings
from tenkaigen_worker.config_api import ApiSettings
from tenkaigen_worker.errors import StorageError
from tenkaigen_worker.references.given import Upload, read_reference
from tenkaigen_worker.references.uploads import Uploads, upload_key
from tenkaigen_worker.storage.local import LocalStorage
from tests.unit.pictures import bomb, encoded, gradient
from tests.unit.test_api_http import problem

SETTINGS = ReferenceSettings(max_bytes=40_000, max_pixels=1_000_000)
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="fox.png"\r\n\r\n'
PNG = encoded(gradient())


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files", "http://127.0.0.1/files")


@pytest.fixture
def app(storage: LocalStorage) -> web.Application:
    parts = Parts(None, storage, Uploads(storage, SETTINGS), None, None, None, None)  # type: ignore[arg-type]
    return make_app(parts, ApiSettings(max_body_bytes=1024))  # which is for JSON


@pytest.fixture
async def client(app: web.Application) -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(app)) as client:
        yield client


def form(data: bytes = PNG, name: str | None = "fox.png") -> FormData:
    fields = FormData()
    fields.add_field("file", data, filename=name, content_type="application/x-whatever")
    return fields


async def nothing_kept(storage: LocalStorage) -> bool:
    return list(await storage.list("")) == []


async def test_a_picture_is_kept(client: TestClient, storage: LocalStorage) -> None:
    response = await client.post("/api/uploads", data=form())
    assert response.status == 201
    assert response.headers["Cache-Control"] == "no-store"
    body = await response.json()
    assert body == {"reference": body["reference"], "width": 48, "height": 32}
    given = read_reference(body["reference"])
    assert isinstance(given, Upload)
    kept = await storage.read(upload_key(given, None))
    assert kept is not None
    assert Image.open(io.BytesIO(kept)).tobytes() == gradient().tobytes()


async def test_what_is_kept_is_a_clean_png(client: TestClient, storage: LocalStorage) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "my garden"
    body = await (await client.post("/api/uploads", data=form(encoded(gradient(), "JPEG", exif=exif)))).json()
    assert (body["width"], body["height"]) == (32, 48)
    (key,) = await storage.list("uploads/anonymous/")
    kept = await storage.read(key)
    assert kept is not None
    assert kept.startswith(b"\x89PNG")
    assert b"my garden" not in kept


async def test_the_same_picture_twice_has_two_names(client: TestClient) -> None:
    first, second = [await (await client.post("/api/uploads", data=form())).json() for _ in range(2)]
    assert first["reference"] != second["reference"]


@pytest.mark.parametrize("path", ["uploads/anonymous/{}.png", "UPLOADS/anonymous/{}.png", "%75ploads/anonymous/{}.png"])
async def test_an_upload_is_not_given_out(client: TestClient, storage: LocalStorage, path: str) -> None:
    body = await (await client.post("/api/uploads", data=form())).json()
    name = body["reference"].removeprefix("upload:")
    if path.startswith("UPLOADS"):  # a disk that does not tell upper from lower case
        (storage.root / "UPLOADS").symlink_to(storage.root / "uploads")
    await problem(await client.get(f"/files/{path.format(name)}"), 404, "file_not_found")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no PNG, JPEG or WebP picture"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "is no PNG, JPEG or WebP picture"),
        (encoded(gradient(), "GIF"), "is no PNG, JPEG or WebP picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no PNG, JPEG or WebP picture"),
        (PNG[:-200], "is a damaged picture"),
        (bomb(10_000, 10_000), "are taken"),
        (bomb(1001, 1000), "has 1001 x 1000 pixels"),
    ],
    ids=["empty", "cut", "gif", "svg", "damaged", "bomb", "large"],
)
async def test_what_is_no_picture(client: TestClient, storage: LocalStorage, data: bytes, says: str) -> None:
    body = await problem(await client.post("/api/uploads", data=form(data)), 400, "invalid_picture")
    assert body["errors"][0]["field"] == "file"
    assert says in body["detail"]
    assert await nothing_kept(storage)


@pytest.mark.parametrize("says_its_length", [True, False])
async def test_a_file_that_is_too_long(client: TestClient, storage: LocalStorage, says_its_length: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield HEAD
        for _ in range(80):
            yield b"\0" * 1000
        yield b"\r\n--x--\r\n"

    data: Any = b"".join([chunk async for chunk in chunks()]) if says_its_length else chunks()
    response = await client.post("/api/uploads", data=data, headers=FORM)
    body = await problem(response, 413, "upload_too_large")
    assert "40000 bytes (references.max_bytes)" in body["detail"]
    assert await nothing_kept(storage)


async def test_an_announced_length_is_refused_before_anything_is_read(client: TestClient) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    head = "POST /api/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n"
    writer.write((head + "Content-Type: multipart/form-data; boundary=x\r\n\r\n").encode())
    assert b"413" in await reader.readline()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut short or damaged"),
        (b"--x--\r\n", "there is no file in it"),
        (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nA fox\r\n--x--\r\n', "is not a file"),
        (b"--x\r\n\r\nA fox\r\n--x--\r\n", "is not a file"),
        (
            b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\na\r\n--y--\r\n--x--\r\n",
            "is not a file",
        ),
        (HEAD + PNG + b"\r\n" + HEAD + PNG + b"\r\n--x--\r\n", "more than one field"),
        (
            HEAD + PNG + b'\r\n--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nA fox\r\n--x--\r\n',
            "more than one field",
        ),
        (HEAD, "cut short or damaged"),
        (HEAD + PNG[:100], "cut short or damaged"),
        (HEAD + PNG, "cut short or damaged"),
        (HEAD + PNG + b"\r\n--x", "or its end is missing"),
        (HEAD[:20], "cut short or damaged"),
        (b"--x\r\n" + b"A: b\r\n" * 500, "cut short or damaged"),
        (b"--x\r\nA: " + b"b" * 20_000, "cut short or damaged"),
        (b"hello" * 100, "cut short or damaged"),
    ],
)
async def test_forms_that_are_not_as_they_should_be(
    client: TestClient, storage: LocalStorage, data: bytes, says: str
) -> None:
    body = await problem(await client.post("/api/uploads", data=data, headers=FORM), 400, "malformed_upload")
    assert says in body["detail"]
    assert await nothing_kept(storage)


class Heard(logging.Handler):
    """Waits for the log's first line."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.first: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def emit(self, record: logging.LogRecord) -> None:
        self.first.set_result(record.getMessage())


async def test_a_caller_who_hangs_up_is_no_error_of_ours(
    app: web.Application, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(app, ApiSettings(port=0)) as url:  # a TestServer would cancel the handler
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(url).port)
        head = "POST /api/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n"
        writer.write((head + "Content-Type: multipart/form-data; boundary=x\r\n\r\n").encode())
        assert b"100 Continue" in await reader.readline()
        heard = Heard()
        monkeypatch.setattr(logging.getLogger("tenkaigen.api"), "handlers", [heard])
        caplog.set_level("INFO", "tenkaigen.api")
        writer.write(HEAD + PNG[:500])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert await heard.first == "POST /api/uploads: 400"
        monkeypatch.undo()
    assert await nothing_kept(storage)


@pytest.mark.parametrize(
    "kind", ["application/json", "image/png", "application/x-www-form-urlencoded", "multipart/mixed; boundary=x", None]
)
async def test_other_content_types_are_refused(client: TestClient, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    response = await client.post("/api/uploads", data=PNG, headers=headers, skip_auto_headers=["Content-Type"])
    body = await problem(response, 415, "unsupported_media_type")
    assert "multipart/form-data" in body["detail"]


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 80])
async def test_a_form_without_a_boundary(client: TestClient, kind: str) -> None:
    response = await client.post("/api/uploads", data=HEAD, headers={"Content-Type": kind})
    await problem(response, 400, "malformed_upload")


async def test_pages_from_elsewhere_may_not_upload(client: TestClient, storage: LocalStorage) -> None:
    response = await client.post("/api/uploads", data=form(), headers={"Origin": "https://evil.example"})
    await problem(response, 403, "wrong_origin")
    assert await nothing_kept(storage)


async def test_a_storage_that_is_away(
    client: TestClient, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> str:
        raise StorageError("/secret/path is full")

    monkeypatch.setattr(storage, "put", away)
    body = await problem(await client.post("/api/uploads", data=form()), 503, "storage_unavailable")
    assert "secret" not in body["detail"]
