"""One worker per GPU: a lock file for each, held by the engine's child for as long as it lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

from tenkaigen_worker.errors import Code, EngineError


class DeviceLock:
    """A lock on one device of this machine, by its unique id; the kernel releases it when the process ends.

    The file lies where every user's temporary files do: two workers share a GPU, not a configuration.
    """

    def __init__(self, uid: str, *, name: str, folder: Path | None = None) -> None:
        self._name = name
        self._path = (folder or Path(tempfile.gettempdir())) / f"tenkaigen-{uid}.lock"
        self._file = -1

    def acquire(self, owner: int) -> None:
        """Take the lock for the worker with process id ``owner``; raises ``EngineError`` when another one has it."""
        self._file = self._open()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 20, 0).decode(errors="replace").strip() or "unknown"
            self.release()
            raise EngineError(
                Code.ENGINE_FAILED,
                f"{self._name} is in use by another worker, process {holder}; stop that one, or choose another GPU "
                f"with engine.device (lock file {self._path})",
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{owner}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back; the file stays, since removing it could let two in."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            # Without O_CREAT first: the kernel refuses that for another user's file in a shared folder.
            return os.open(self._path, flags)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._unusable(error) from error

        try:
            file = os.open(self._path, flags | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._unusable(error) from error
        with contextlib.suppress(PermissionError):
            os.fchmod(file, 0o666)  # whatever the umask: other users' workers must be able to take it
        return file

    def _unusable(self, error: OSError) -> EngineError:
        return EngineError(
            Code.ENGINE_FAILED, f"the lock file {self._path} of {self._name} cannot be opened: {error.strerror}"
        )
