"""A file while it is being fetched: what is there of it already, and the hash of that."""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from tenkaigen_worker.loras.folder import ETAG_SUFFIX, lock

_CHUNK = 1 << 20


class Partial:
    """A file that grows at its end, locked for this process; all its methods may block.

    ``size`` is what is there, in bytes. ``etag`` is what the server calls the version that these are of, where that is
    known. ``resumed`` is whether some of them were there before.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.size = 0
        self._handle = handle
        self._etag_path = path.with_suffix(ETAG_SUFFIX)
        self._hash = hashlib.sha256()
        while chunk := os.pread(handle, _CHUNK, self.size):
            self._hash.update(chunk)
            self.size += len(chunk)
        self.etag = self._read_etag()
        self.resumed = self.size > 0

    @classmethod
    def open(cls, path: Path) -> Partial | None:
        """Open it, or begin it; ``None`` when somebody else is fetching this file. Raises ``OSError``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = lock(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        return None if handle is None else cls(path, handle)

    @property
    def sha256(self) -> str:
        """The hash of what is there (hex)."""
        return self._hash.copy().hexdigest()

    def append(self, data: bytes) -> None:
        """Write the next bytes. Where that fails, what is there goes, too: the disk is mostly full then."""
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._handle, data[done:], self.size + done)
        except OSError:
            self.restart()
            raise
        self._hash.update(data)
        self.size += len(data)

    def restart(self, etag: str | None = None) -> None:
        """Begin again, with bytes of the version ``etag``."""
        os.ftruncate(self._handle, 0)
        self.size, self._hash, self.resumed = 0, hashlib.sha256(), False
        self.etag = etag
        if etag is None:
            self._etag_path.unlink(missing_ok=True)
        else:
            self._etag_path.write_text(etag, encoding="utf-8")

    def finish(self, path: Path) -> None:
        """Give the complete file its name, so that it is there whole or not at all, whatever happens."""
        os.fsync(self._handle)
        os.replace(self.path, path)
        self._etag_path.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Let others go on with it; where nothing is there, nothing stays."""
        if self.size == 0:
            self._etag_path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        os.close(self._handle)

    def _read_etag(self) -> str | None:
        with suppress(OSError, UnicodeDecodeError):
            return self._etag_path.read_text(encoding="utf-8") or None
        return None
