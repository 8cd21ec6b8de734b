"""Finished files in a folder of this machine; the API serves them under ``/files``."""

from __future__ import annotations

import asyncio
import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from tenkaigen_worker.errors import StorageError
from tenkaigen_worker.storage.keys import check_key

FILE_MODE = 0o644  # a web server under another user must be able to read what we keep
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class LocalStorage:
    """Files under ``root``, one per key, with ``base_url`` in front of the key as the URL.

    A file appears whole or not at all: it is written beside its place under a hidden name, flushed to the disk, and
    renamed. Parts of a key may not begin with a dot, so that no key ever names such an unfinished file.
    """

    private = False

    def __init__(self, root: Path, base_url: str) -> None:
        self.root = root
        self.base_url = base_url.rstrip("/")

    async def put(self, key: str, data: bytes, *, content_type: str) -> str:
        """Keep ``data`` under ``key``; the type is not kept, it follows from the key's ending when it is served."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._put, self._path(key), data))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread cannot be stopped, and whoever cleans up after us must find all that it wrote.
            await asyncio.wait([writing])
            raise
        return f"{self.base_url}/{quote(key)}"

    async def read(self, key: str) -> bytes | None:
        """The bytes kept under ``key``, or ``None``; a file outside ``root`` is none of ours."""
        path = await self.find(key)
        return None if path is None else await asyncio.to_thread(self._read, path)

    async def list(self, prefix: str) -> Sequence[str]:
        """All keys that start with ``prefix``, sorted; also those of files whose writing was cut short."""
        folder, _, _ = prefix.rpartition("/")
        start = self._path(folder) if folder else self.root
        keys = await asyncio.to_thread(self._keys, start)
        return [key for key in keys if key.startswith(prefix)]

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove files, and the folders that they leave empty."""
        paths = [self._path(key) for key in keys]
        await asyncio.to_thread(self._delete, paths)

    async def link(self, key: str) -> str | None:
        """Where the API serves the file."""
        return f"{self.base_url}/{quote(key)}" if await self.find(key) else None

    async def check(self) -> str:
        """Write, read and delete a probe file; answer where files go and how much room there is."""
        key, data = f"probe-{secrets.token_hex(8)}.txt", secrets.token_bytes(32)
        await self.put(key, data, content_type="text/plain")
        try:
            found = await asyncio.to_thread(self._read, self._path(key))
        finally:
            await self.delete([key])
        if found != data:
            raise StorageError(f"{self.root} gave back other bytes than were written to it: check this disk")
        free = await asyncio.to_thread(shutil.disk_usage, self.root)
        return f"files go to {self.root.absolute()} ({free.free / 1e9:.1f} GB free) and are served at {self.base_url}"

    async def close(self) -> None:
        """Nothing is held open."""

    async def find(self, key: str) -> Path | None:
        """The file kept under ``key``, or ``None``; never one outside ``root``, not even through a symbolic link."""
        try:
            path = self._path(key)
        except StorageError:
            return None
        return await asyncio.to_thread(self._find, path)

    def _path(self, key: str) -> Path:
        check_key(key)
        return self.root / key

    def _find(self, path: Path) -> Path | None:
        with _explained(path):
            try:
                real = path.resolve(strict=True)
            except RuntimeError:  # a loop of symbolic links, as Python before 3.13 calls it
                return None
            except OSError as error:
                if error.errno in _MISSING:
                    return None
                raise
            return real if real.is_file() and real.is_relative_to(self.root.resolve()) else None

    def _put(self, path: Path, data: bytes) -> None:
        with _explained(path):
            if path.exists():
                if path.read_bytes() == data:
                    return
                raise StorageError(f"{path} holds other bytes, and a file is never overwritten", permanent=True)
            _write(path, data, self.root)

    def _read(self, path: Path) -> bytes:
        with _explained(path):
            return path.read_bytes()

    def _keys(self, start: Path) -> Sequence[str]:
        keys = []
        with _explained(start):
            for folder, folders, names in os.walk(start, onerror=_raise_unless_missing):
                folders[:] = [name for name in folders if not name.startswith(".")]
                inside = Path(folder).relative_to(self.root)
                keys += [(inside / final).as_posix() for name in names if (final := _final_name(name))]
        return sorted(set(keys))

    def _delete(self, paths: Sequence[Path]) -> None:
        for path in paths:
            with _explained(path):
                path.unlink(missing_ok=True)
                for unfinished in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
                    unfinished.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.root:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break  # not empty, or already gone: somebody else's files, somebody else's work


def _final_name(name: str) -> str | None:
    """The name that a file has, or was to get; ``None`` for files that are not ours."""
    if unfinished := _UNFINISHED.fullmatch(name):
        return unfinished[1]
    return None if name.startswith(".") else name


def _write(path: Path, data: bytes, root: Path) -> None:
    """Write the file under a hidden name, flush, and rename."""
    temporary, file = _create_beside(path)
    try:
        with os.fdopen(file, "wb") as stream:
            os.fchmod(stream.fileno(), FILE_MODE)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _flush_folders(path, root)


def _create_beside(path: Path) -> tuple[Path, int]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    for _ in range(3):
        # A delete may prune the new folder just before its first file comes: make it again then.
        with suppress(FileNotFoundError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    raise StorageError(f"{path.parent} is removed again and again while a file is written into it")


def _flush_folders(path: Path, root: Path) -> None:
    """Make the new names last through a power cut: the row that names this file is committed right after."""
    for folder in path.parents:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if folder == root:
            break


def _raise_unless_missing(error: OSError) -> None:
    if error.errno not in _MISSING:
        raise error


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal into a sentence that names the path and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            advice = "free some space there, or set storage.local.path to another disk"
        elif error.errno in _FORBIDDEN:
            advice = "give this user the right to write there, or set storage.local.path to another folder"
        else:
            advice = "check this folder, or set storage.local.path to another one"
        raise StorageError(f"{path}: {reason}: {advice}") from error
