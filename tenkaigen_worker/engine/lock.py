"""One worker per GPU: a lock file for each, held by the engine's child for as long as it lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

from tenkaigen_worker.errors import Code, EngineError


def lock_device(uid: str, *, name: str, owner: int, folder: Path | None = None) -> int:
    """Lock one device of this machine, by its unique id, for the worker with process id ``owner``.

    The lock is the answered file descriptor's; the kernel releases it when the process ends, and the file stays, since
    removing it could let two in. It lies where every user's temporary files do: two workers share a GPU, not a
    configuration. Raises ``EngineError`` when another worker has the device.
    """
    path = (folder or Path(tempfile.gettempdir())) / f"tenkaigen-{uid}.lock"
    try:
        file = _open(path)
    except OSError as error:
        raise EngineError(
            Code.ENGINE_FAILED, f"the lock file {path} of {name} cannot be opened: {error.strerror}"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(file)
        raise EngineError(
            Code.ENGINE_FAILED,
            f"{name} is in use by another worker, process {holder}; stop that one, or choose another GPU with "
            f"engine.device (lock file {path})",
        ) from None
    os.ftruncate(file, 0)
    os.pwrite(file, f"{owner}\n".encode(), 0)
    return file


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    # Without O_CREAT first: the kernel refuses that for another user's file in a shared folder.
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    file = os.open(path, flags | os.O_CREAT, 0o666)
    with contextlib.suppress(PermissionError):
        os.fchmod(file, 0o666)  # whatever the umask: other users' workers must be able to take it
    return file
