"""Finished pictures over HTTP: the right bytes, kept for ever by caches, and nothing from outside the folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from aiohttp.test_utils import TestClient, TestServer
from pydantic import SecretStr
from yarl import URL

from tenkaigen_worker.access import ApiKey, Scope, digest_of, new_key
from tenkaigen_worker.api.app import make_app
from tenkaigen_worker.api.parts import Parts
from tenkaigen_worker.config_api import ApiSettings, SupabaseAuthSettings
from tenkaigen_worker.errors import StorageError
from tenkaigen_worker.storage.keys import check_key
from tenkaigen_worker.storage.local import LocalStorage
from tests import tokens
from tests.tokens import ALICE, BOB, PROJECT, claims, session_cookie, signed
from tests.unit.examples import FakeKeys

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

    def __init__(self, *, private: bool = False) -> None:
        self.private = private
        self.links = {KEY: "https://ref.supabase.co/storage/v1/object/sign/x?token=abc"}
        self.error: StorageError | None = None

    async def find(self, key: str) -> Path | None:
        return None

    async def link(self, key: str) -> str | None:
        if self.error:
            raise self.error
        check_key(key)
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


# Private buckets

ALICES = f"{ALICE}/00000000-0000-4000-8000-000000000001/1-0-abc.png"
NOBODYS = "anonymous/00000000-0000-4000-8000-000000000002/1-0-abc.png"
UPLOADED = f"uploads/{ALICE}/x.png"
STEPPING = f"{ALICE}/%2e%2e/{NOBODYS}"

# What a private bucket gives out of Alice's file, nobody's, her upload, and nobody's by a step out of her folder.
PRIVATE = """
caller                  | Alice's | nobody's | upload | stepping
nobody                  | 401     | 401      | 401    | 401
Alice                   | 302     | 404      | 404    | 404
Alice, by cookie        | 302     | 404      | 404    | 404
Bob                     | 404     | 404      | 404    | 404
key: submit, for Alice  | 403     | 403      | 403    | 403
key: read               | 404     | 302      | 404    | 404
key: read, for Alice    | 302     | 404      | 404    | 404
key: read, for Bob      | 404     | 404      | 404    | 404
key: admin              | 302     | 302      | 404    | 404
key: admin, for Bob     | 404     | 404      | 404    | 404
"""


def by_key(*scopes: Scope, user: str | None = None) -> tuple[str, ApiKey, dict[str, str]]:
    key = new_key()
    row = ApiKey(UUID(int=9), "shop", frozenset(scopes), datetime.now(UTC), None, None, None)
    return key, row, {"Authorization": f"Bearer {key}"} | ({"X-User-Id": user} if user else {})


@asynccontextmanager
async def bucket(settings: ApiSettings, keys: FakeKeys, *, private: bool = True) -> AsyncIterator[TestClient]:
    files = Elsewhere(private=private)
    files.links = {key: f"https://ref.supabase.co/{key}?token=t" for key in (ALICES, NOBODYS, UPLOADED)}
    parts = Parts(None, files, None, None, None, None, keys)  # type: ignore[arg-type]
    async with TestClient(TestServer(make_app(parts, settings))) as client:
        yield client


async def statuses(client: TestClient, headers: dict[str, str]) -> list[str]:
    paths = [URL(f"/files/{key}", encoded=True) for key in (ALICES, NOBODYS, UPLOADED, STEPPING)]
    return [str((await client.get(path, headers=headers, allow_redirects=False)).status) for path in paths]


async def test_a_private_bucket_is_for_those_who_may_see_the_job() -> None:
    cookie = "; ".join(f"{name}={value}" for name, value in session_cookie(signed()).items())
    with_keys = {
        "key: submit, for Alice": by_key(Scope.SUBMIT, user=ALICE),
        "key: read": by_key(Scope.READ),
        "key: read, for Alice": by_key(Scope.READ, user=ALICE),
        "key: read, for Bob": by_key(Scope.READ, user=BOB),
        "key: admin": by_key(Scope.ADMIN),
        "key: admin, for Bob": by_key(Scope.ADMIN, user=BOB),
    }
    callers = {
        "nobody": {},
        "Alice": {"Authorization": f"Bearer {signed()}"},
        "Alice, by cookie": {"Cookie": cookie},
        "Bob": {"Authorization": f"Bearer {signed(claims(BOB))}"},
        **{name: headers for name, (_, _, headers) in with_keys.items()},
    }
    keys = FakeKeys()
    keys.rows = {digest_of(key) or b"": row for key, row, _ in with_keys.values()}
    settings = ApiSettings(
        auth=("supabase", "api_keys"), supabase=SupabaseAuthSettings(url=PROJECT, jwt_secret=SecretStr(tokens.SECRET))
    )
    async with bucket(settings, keys) as client:
        found = {name: await statuses(client, headers) for name, headers in callers.items()}
    _, *rows = ([cell.strip() for cell in line.split("|")] for line in PRIVATE.strip().splitlines())
    assert found == {name: cells for name, *cells in rows}


@pytest.mark.parametrize(("auth", "private"), [("none", True), ("api_keys", False)])
async def test_where_nobody_is_asked_or_nothing_is_private_the_key_is_enough(auth: str, private: bool) -> None:
    async with bucket(ApiSettings(auth=auth), FakeKeys(), private=private) as client:
        assert await statuses(client, {}) == ["302", "302", "404", "404"]
