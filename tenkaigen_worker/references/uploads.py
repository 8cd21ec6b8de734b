"""Uploaded pictures: checked, made uniform, kept in storage for some days."""

from __future__ import annotations

import asyncio
import io
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from time import time
from uuid import UUID

from PIL import Image

from tenkaigen_worker.config import ReferenceSettings
from tenkaigen_worker.errors import StorageError
from tenkaigen_worker.references.decode import decode
from tenkaigen_worker.references.given import Upload
from tenkaigen_worker.storage.base import Storage
from tenkaigen_worker.storage.keys import UPLOADS

log = logging.getLogger("tenkaigen.references")

NOBODY = "anonymous"
# How often to look for uploads that are too old, in seconds. Looking lists all of them.
BETWEEN_SWEEPS = 3600.0
_DAY = 86_400.0


def new_id(now: float) -> UUID:
    """Make an id that nobody can guess and that says when it was made: a UUID of version 7 (RFC 9562).

    ``now`` is seconds since 1970. 74 of its bits are random.
    """
    milliseconds = int(now * 1000) & (1 << 48) - 1
    return UUID(int=milliseconds << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62))


def made_at(upload_id: UUID) -> float:
    """When an id of :func:`new_id` was made, in seconds since 1970."""
    return (upload_id.int >> 80) / 1000


def upload_key(upload: Upload, owner: UUID | None) -> str:
    """Where storage keeps an upload: nobody finds it under another owner."""
    return f"{UPLOADS}/{owner or NOBODY}/{upload.id}.png"


@dataclass(frozen=True, slots=True)
class Kept:
    """An upload that storage has; ``width`` and ``height`` in pixels."""

    upload: Upload
    width: int
    height: int


class Uploads:
    """Takes pictures from users into ``storage``."""

    def __init__(self, storage: Storage, settings: ReferenceSettings, *, clock: Callable[[], float] = time) -> None:
        self.max_bytes = settings.max_bytes
        self._storage = storage
        self._max_pixels = settings.max_pixels
        self._clock = clock
        # A decoded picture takes hundreds of megabytes: one at a time.
        self._turn = asyncio.Semaphore(1)

    async def keep(self, data: bytes, *, owner: UUID | None) -> Kept:
        """Check a picture and keep it as PNG without what its file said beside the pixels.

        Raises :class:`~tenkaigen_worker.errors.PictureError` when it is none, ``StorageError`` when it cannot be kept.
        """
        async with self._turn:
            png, width, height = await asyncio.to_thread(self._normalise, data)
        upload = Upload(new_id(self._clock()))
        await self._storage.put(upload_key(upload, owner), png, content_type="image/png")
        log.info("Upload %s: %d x %d", upload.id, width, height, extra={"action": "upload_kept"})
        return Kept(upload, width, height)

    def _normalise(self, data: bytes) -> tuple[bytes, int, int]:
        image = decode(data, max_pixels=self._max_pixels)
        return encode(image), image.width, image.height


def encode(image: Image.Image) -> bytes:
    """Encode as PNG: fast, at some cost in bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


async def remove_old_uploads(storage: Storage, keep_days: float, *, now: float) -> int:
    """Remove uploads that are older than ``keep_days``, and answer how many."""
    keys = await storage.list(f"{UPLOADS}/")
    old = [key for key in keys if (made := _made(key)) is not None and made < now - keep_days * _DAY]
    await storage.delete(old)
    return len(old)


async def keep_uploads_young(storage: Storage, settings: ReferenceSettings) -> None:
    """Remove old uploads now and then, until cancelled. Workers and API may all do it: each file goes once."""
    while True:
        try:
            removed = await remove_old_uploads(storage, settings.keep_days, now=time())
            if removed:
                log.info("Removed %d old uploads", removed, extra={"action": "uploads_removed"})
        except StorageError as error:
            log.warning("Old uploads stay for now: %s", error, extra={"action": "uploads_not_removed"})
        await asyncio.sleep(BETWEEN_SWEEPS)


def _made(key: str) -> float | None:
    """When an upload was made, by its key; ``None`` for a file that is no upload."""
    name = key.rpartition("/")[2].removesuffix(".png")
    try:
        upload_id = UUID(name)
    except ValueError:
        return None
    return made_at(upload_id) if upload_id.version == 7 else None
