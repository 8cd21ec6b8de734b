"""Files in a folder: whole or not at all, never overwritten, never outside."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from tenkaigen_worker.config import Settings
from tenkaigen_worker.errors import StorageError
from tenkaigen_worker.storage.factory import open_storage
from tenkaigen_worker.storage.local import LocalStorage

KEY = "u1/j1/3-0-abc.png"


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files", "http://127.0.0.1:8000/files/")


async def put(storage: LocalStorage, key: str, data: bytes = b"data") -> str:
    return await storage.put(key, data, content_type="image/png")


async def test_put_keeps_the_bytes_and_names_a_url(storage: LocalStorage) -> None:
    assert await put(storage, KEY) == "http://127.0.0.1:8000/files/u1/j1/3-0-abc.png"
    path = storage.root / KEY
    assert path.read_bytes() == b"data"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_what_was_put_can_be_read(storage: LocalStorage) -> None:
    await put(storage, KEY)
    assert await storage.read(KEY) == b"data"


async def test_only_files_of_ours_are_read(storage: LocalStorage) -> None:
    await put(storage, KEY)
    (storage.root.parent / "secret").write_bytes(b"secret")
    (storage.root / "link").symlink_to(storage.root.parent / "secret")
    for key in ("u1/j1/none.png", "u1", "../secret", "link", "/etc/passwd", ""):
        assert await storage.read(key) is None


async def test_a_url_is_quoted(storage: LocalStorage) -> None:
    assert await put(storage, "a b/ü?#.png") == "http://127.0.0.1:8000/files/a%20b/%C3%BC%3F%23.png"


async def test_the_mode_does_not_depend_on_the_umask(storage: LocalStorage) -> None:
    before = os.umask(0o077)
    try:
        await put(storage, KEY)
    finally:
        os.umask(before)
    assert (storage.root / KEY).stat().st_mode & 0o777 == 0o644


async def test_the_same_bytes_twice_are_fine(storage: LocalStorage) -> None:
    assert await put(storage, KEY) == await put(storage, KEY)


async def test_other_bytes_under_a_key_are_refused(storage: LocalStorage) -> None:
    await put(storage, KEY)
    with pytest.raises(StorageError, match="never overwritten") as caught:
        await put(storage, KEY, b"other")
    assert caught.value.permanent
    assert (storage.root / KEY).read_bytes() == b"data"


async def test_a_cancelled_put_ends_when_nothing_is_written_any_more(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    real = storage._put

    def slow(path: Path, data: bytes) -> None:
        began.set()
        go_on.wait()
        real(path, data)

    monkeypatch.setattr(storage, "_put", slow)
    putting = asyncio.create_task(put(storage, KEY))
    await asyncio.to_thread(began.wait)
    putting.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    ended_early = putting.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert not ended_early
    assert list(await storage.list("")) == [KEY]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a/./b",
        "a//b",
        "a/",
        ".hidden",
        "a/.b.png.1234.tmp",
        "a\nb",
        "a\0b",
        "\udcff",
        "x" * 201,
        "/".join(["x" * 100] * 11),
    ],
)
async def test_keys_that_are_no_plain_relative_path_are_refused(storage: LocalStorage, key: str) -> None:
    with pytest.raises(StorageError, match="cannot be a file's key") as caught:
        await put(storage, key)
    assert caught.value.permanent
    assert await storage.find(key) is None
    with pytest.raises(StorageError):
        await storage.delete([key])
    assert not storage.root.exists()


async def test_list_by_prefix(storage: LocalStorage) -> None:
    for key in ("u1/j1/1-a.png", "u1/j1/2-b.png", "u1/j10/1-c.png", "u2/j1/1-d.png", "top.png"):
        await put(storage, key)
    assert list(await storage.list("u1/j1/")) == ["u1/j1/1-a.png", "u1/j1/2-b.png"]
    assert list(await storage.list("u1/j1/2-")) == ["u1/j1/2-b.png"]
    assert list(await storage.list("u1/j1")) == ["u1/j1/1-a.png", "u1/j1/2-b.png", "u1/j10/1-c.png"]
    assert list(await storage.list("")) == sorted(await storage.list(""))
    assert len(await storage.list("")) == 5
    assert list(await storage.list("nobody/")) == []
    assert list(await storage.list("top.png/")) == []
    with pytest.raises(StorageError):
        await storage.list("../")


async def test_a_file_whose_writing_was_cut_short_is_no_picture_but_can_be_removed(storage: LocalStorage) -> None:
    await put(storage, KEY)
    half = storage.root / "u1/j1/.3-1-def.png.0123abcd.tmp"
    half.write_bytes(b"half")
    assert await storage.find("u1/j1/3-1-def.png") is None
    assert list(await storage.list("u1/")) == sorted([KEY, "u1/j1/3-1-def.png"])

    await storage.delete(["u1/j1/3-1-def.png"])
    assert not half.exists()
    assert list(await storage.list("u1/")) == [KEY]


async def test_delete_prunes_empty_folders_and_spares_the_rest(storage: LocalStorage) -> None:
    await put(storage, "u1/j1/a.png")
    await put(storage, "u1/j2/b.png")
    await storage.delete(["u1/j1/a.png", "u1/j9/never-was.png"])
    assert not (storage.root / "u1/j1").exists()
    assert list(await storage.list("")) == ["u1/j2/b.png"]
    await storage.delete(["u1/j2/b.png"])
    assert list(storage.root.iterdir()) == []


async def test_put_and_delete_of_neighbours_do_not_disturb_each_other(storage: LocalStorage) -> None:
    async def come_and_go(name: str) -> None:
        for _ in range(30):
            await put(storage, f"u/{name}/x.png")
            await storage.delete([f"u/{name}/x.png"])

    await asyncio.gather(*(come_and_go(str(n)) for n in range(4)))
    assert list(await storage.list("")) == []


async def test_a_folder_pruned_under_a_new_file_is_made_again(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, gone = Path.mkdir, []

    def mkdir_then_vanish(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        real(self, mode, parents, exist_ok)
        if self.name == "j1" and not gone:
            gone.append(self)
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir_then_vanish)
    await put(storage, KEY)
    assert gone
    assert (storage.root / KEY).read_bytes() == b"data"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "right to write"),
        (errno.EROFS, "right to write"),
        (errno.EIO, "check this folder"),
    ],
)
async def test_a_refusing_disk_is_explained_and_leaves_nothing(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tenkaigen_worker.storage.local.os.fsync", refuse)
    with pytest.raises(StorageError, match=advice) as caught:
        await put(storage, KEY)
    assert not caught.value.permanent, "somebody can put it right while the picture waits"
    assert str(storage.root / KEY) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert list((storage.root / KEY).parent.iterdir()) == []


async def test_a_file_where_a_folder_should_be_is_explained(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    storage = LocalStorage(tmp_path / "files", "http://x")
    with pytest.raises(StorageError, match="set storage"):
        await put(storage, KEY)
    assert await storage.find(KEY) is None


async def test_find_stays_inside(storage: LocalStorage, tmp_path: Path) -> None:
    await put(storage, KEY)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (storage.root / "out.png").symlink_to(tmp_path / "secret.png")
    (storage.root / "up").symlink_to(tmp_path)
    (storage.root / "in.png").symlink_to(storage.root / KEY)
    (storage.root / "loop.png").symlink_to(storage.root / "loop.png")
    assert await storage.find(KEY) == (storage.root / KEY).resolve()
    assert await storage.find("in.png") == (storage.root / KEY).resolve()
    for key in ("out.png", "up/secret.png", "loop.png", "u1", "u1/j1", "none.png", f"{KEY}/deeper"):
        assert await storage.find(key) is None, key


async def test_check_leaves_nothing_and_says_where(storage: LocalStorage) -> None:
    answer = await storage.check()
    assert str(storage.root) in answer
    assert "GB free" in answer
    assert list(storage.root.iterdir()) == []


async def test_check_names_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    with pytest.raises(StorageError, match="files"):
        await LocalStorage(tmp_path / "files", "http://x").check()


async def test_the_factory_follows_the_settings(tmp_path: Path) -> None:
    settings = Settings.model_validate({"state_dir": tmp_path, "api": {"port": 9000}})
    async with open_storage(settings) as storage:
        assert isinstance(storage, LocalStorage)
        assert storage.root == tmp_path / "files"
        assert storage.base_url == "http://127.0.0.1:9000/files"
    elsewhere = {"local": {"path": tmp_path / "x", "public_url": "https://shop.example/files/"}}
    async with open_storage(Settings.model_validate({"storage": elsewhere})) as storage:
        assert isinstance(storage, LocalStorage)
        assert storage.root == tmp_path / "x"
        assert storage.base_url == "https://shop.example/files"


@pytest.mark.parametrize(
    ("host", "url"),
    [("::1", "http://[::1]:8000/files"), ("0.0.0.0", "http://127.0.0.1:8000/files"), ("::", "http://[::1]:8000/files")],
)
async def test_the_url_can_be_loaded_in_a_browser(host: str, url: str) -> None:
    async with open_storage(Settings.model_validate({"api": {"host": host}})) as storage:
        assert isinstance(storage, LocalStorage)
        assert storage.base_url == url


async def test_a_link_is_there_for_what_is_there(storage: LocalStorage) -> None:
    url = await put(storage, KEY)
    assert await storage.link(KEY) == url
    assert await storage.link("u1/j1/none.png") is None
