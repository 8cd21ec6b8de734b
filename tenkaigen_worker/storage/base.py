"""What the worker needs of a place for finished files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Storage(Protocol):
    """A place for finished files. Keys are relative, ``/``-separated, and never written twice.

    Methods raise :class:`~tenkaigen_worker.errors.StorageError`.
    """

    @property
    def private(self) -> bool:
        """Whether a file needs a link of the moment, which is only for those who may see it."""

    async def put(self, key: str, data: bytes, *, content_type: str) -> str:
        """Keep ``data`` under ``key`` and answer the URL for its row, good for ever. The same bytes twice is fine."""

    async def read(self, key: str) -> bytes | None:
        """The bytes kept under ``key``, or ``None`` when there are none."""

    async def list(self, prefix: str) -> Sequence[str]:
        """All keys that start with ``prefix``."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove files; a key that is not there is fine."""

    async def find(self, key: str) -> Path | None:
        """The file under ``key`` on this machine, or ``None`` when there is none here."""

    async def link(self, key: str) -> str | None:
        """A URL that a browser can load now, perhaps not for long; ``None`` when there is nothing under ``key``."""

    async def check(self) -> str:
        """Write, read and delete a probe file; answer in words where files go."""

    async def close(self) -> None:
        """Give back what the storage holds open."""
