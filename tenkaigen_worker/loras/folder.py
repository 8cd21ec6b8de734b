"""The folder that LoRA files are kept in: one file per SHA-256, shared by all processes of a machine.

The files are their own locks (``flock``): whoever uses one holds a shared lock on it, whoever fetches or removes it an
exclusive one. The kernel releases them when a process ends, however it ends. A lock counts only while the name still
leads to the locked file: it may have been renamed or removed just before.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tenkaigen_worker.plugin.lora_source import SUFFIX

log = logging.getLogger("tenkaigen.loras")

PARTIAL_SUFFIX = ".part"
ETAG_SUFFIX = ".etag"

# Other files in this folder are somebody's own, and are never removed.
_OURS = re.compile(
    rf"[0-9a-f]{{64}}({re.escape(SUFFIX)}|{re.escape(PARTIAL_SUFFIX)})|new-[0-9a-f]{{16}}{re.escape(PARTIAL_SUFFIX)}"
)


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of the folder, complete or not; ``used_at`` is its last use, in seconds since 1970."""

    path: Path
    bytes: int
    used_at: float

    @property
    def sha256(self) -> str | None:
        """What its content must have; ``None`` for what is not complete."""
        return self.path.stem if self.path.suffix == SUFFIX else None


@dataclass(frozen=True, slots=True)
class Loan:
    """A file that nobody removes until :meth:`give_back`."""

    path: Path
    _handle: int

    def give_back(self) -> None:
        """Let others remove the file."""
        os.close(self._handle)


class Folder:
    """The files in ``path``, of which those that were not used for longest go beyond ``max_bytes``."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes

    def file(self, sha256: str) -> Path:
        """Where the file with this SHA-256 is, or will be."""
        return self.path / f"{sha256}{SUFFIX}"

    def partial(self, key: str) -> Path:
        """Where a file is while it is being fetched."""
        return self.path / f"{key}{PARTIAL_SUFFIX}"

    def entries(self) -> list[Kept]:
        """Every file that was fetched, the one that was not used for longest first."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # removed meanwhile
                        status = entry.stat()
                        found.append(Kept(Path(entry.path), status.st_size, status.st_atime))
        return sorted(found, key=lambda kept: kept.used_at)

    def lend(self, sha256: str) -> Loan | None:
        """Hold a complete file, and note that it is used now; ``None`` when it is not there."""
        path = self.file(sha256)
        handle = lock(path, os.O_RDONLY, fcntl.LOCK_SH)
        if handle is None:
            return None
        with suppress(OSError):  # a folder that is only read serves, too
            os.utime(handle, ns=(time.time_ns(), os.fstat(handle).st_mtime_ns))
        return Loan(path, handle)

    def remove(self, path: Path) -> bool:
        """Remove a file, unless somebody uses or fetches it."""
        handle = lock(path, os.O_RDONLY, fcntl.LOCK_EX)
        if handle is None:
            return not path.exists()
        try:
            path.with_suffix(ETAG_SUFFIX).unlink(missing_ok=True)
            path.unlink()
        finally:
            os.close(handle)
        return True

    def make_room(self, wanted: int = 0, *, known: Set[str] | None = None, dry_run: bool = False) -> list[Kept]:
        """Remove files until ``wanted`` more bytes fit, and all whose SHA-256 is not ``known``, where that is given.

        Answers what was removed, or would be.
        """
        entries = self.entries()
        total = sum(kept.bytes for kept in entries)
        removed = []
        for kept in entries:
            forgotten = known is not None and kept.sha256 not in known
            if (forgotten or total + wanted > self._max_bytes) and self._let_go(kept, dry_run):
                removed.append(kept)
                total -= kept.bytes
        if total + wanted > self._max_bytes and not dry_run:
            extra = {"action": "loras_over_limit", "bytes": total + wanted, "max_bytes": self._max_bytes}
            log.warning("The LoRA files in use need more than loras.max_bytes", extra=extra)
        return removed

    def _let_go(self, kept: Kept, dry_run: bool) -> bool:
        if dry_run:
            handle = lock(kept.path, os.O_RDONLY, fcntl.LOCK_EX)
            if handle is not None:
                os.close(handle)
            return handle is not None
        if not self.remove(kept.path):
            return False
        extra = {"action": "lora_removed", "file": kept.path.name, "bytes": kept.bytes}
        log.info("Removed the LoRA file %s", kept.path.name, extra=extra)
        return True


def lock(path: Path, flags: int, kind: int) -> int | None:
    """Open and lock a file without waiting; ``None`` when it is not there, or locked by somebody else."""
    try:
        handle = os.open(path, flags | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None
