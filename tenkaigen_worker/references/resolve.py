"""From what a request names to picture files that the engine can open."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Protocol
from uuid import UUID

from PIL import Image

from tenkaigen_worker.config import ReferenceSettings
from tenkaigen_worker.errors import (
    Code,
    DatabaseError,
    FieldProblem,
    InfrastructureError,
    InputError,
    PictureError,
    StorageError,
)
from tenkaigen_worker.jobs import Made, Status
from tenkaigen_worker.loras.download import in_thread
from tenkaigen_worker.loras.folder import lock
from tenkaigen_worker.references.decode import decode
from tenkaigen_worker.references.fetch import Fetcher
from tenkaigen_worker.references.fit import edit_size, fit_edited, fit_mask, fit_reference, fit_size
from tenkaigen_worker.references.given import Given, JobPicture, Upload, Url, read_reference
from tenkaigen_worker.references.uploads import upload_key
from tenkaigen_worker.storage.base import Storage

log = logging.getLogger("tenkaigen.references")


class OwnJobs(Protocol):
    """What earlier jobs made. Raises :class:`~tenkaigen_worker.errors.DatabaseError`."""

    async def made(self, job_id: UUID, *, user_id: UUID | None) -> Made | None:
        """What a job made, or ``None`` when it is not this user's."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Files of exactly ``width`` x ``height``: ``reference`` is an RGB PNG, ``mask`` a grey one, white is drawn anew.

    The SHA-256 (hex) are of what was given, before it was fitted.
    """

    width: int
    height: int
    reference: Path
    reference_sha256: str
    mask: Path | None
    mask_sha256: str | None


@dataclass(frozen=True, slots=True)
class Edited:
    """Files of the pictures that an edit changes, in their order: RGB PNG, each in its own shape.

    ``width`` and ``height`` are those of the picture that comes out. The SHA-256 (hex) are of what was given.
    """

    width: int
    height: int
    files: tuple[Path, ...]
    sha256: tuple[str, ...]


class References:
    """Finds, reads and fits pictures that users give. Works in ``folder``, which it makes."""

    def __init__(
        self, settings: ReferenceSettings, storage: Storage, jobs: OwnJobs, folder: Path, fetcher: Fetcher
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._jobs = jobs
        self._folder = folder
        self._fetcher = fetcher

    def sweep(self) -> None:
        """Remove the folders of workers that were killed."""
        for left in self._folder.glob("*"):
            with suppress(OSError):  # another user's
                # Whoever works in a folder holds a lock on it, which ends with its process.
                if (handle := lock(left, os.O_RDONLY, fcntl.LOCK_EX)) is not None:
                    shutil.rmtree(left, ignore_errors=True)
                    os.close(handle)

    @asynccontextmanager
    async def fitted(
        self, reference: str, mask: str | None, *, user_id: UUID | None, width: int | None, height: int | None
    ) -> AsyncIterator[Fitted]:
        """Give the files that a job of ``user_id`` needs while the block runs; sizes in pixels, as asked for.

        Raises :class:`~tenkaigen_worker.errors.InputError` that names the field, and
        :class:`~tenkaigen_worker.errors.InfrastructureError` with code ``reference_unavailable`` where trying again may
        help.
        """
        asked = {"reference": reference, **({"mask": mask} if mask else {})}
        data = {field: await self._read(field, text, user_id) for field, text in asked.items()}
        with self._own_folder() as folder:
            yield await in_thread(self._fit, data, (width, height), folder)

    @asynccontextmanager
    async def edited(
        self,
        reference: str,
        more: Sequence[str],
        *,
        user_id: UUID | None,
        width: int | None,
        height: int | None,
        pixels: int,
    ) -> AsyncIterator[Edited]:
        """Give the files that an edit needs while the block runs; ``pixels`` in all where no size was asked for.

        Raises as :meth:`fitted` does.
        """
        asked = [("reference", reference), *(("more_references", text) for text in more)]
        data = [(field, await self._read(field, text, user_id)) for field, text in asked]
        with self._own_folder() as folder:
            yield await in_thread(self._shrink, data, (width, height), pixels, folder)

    @contextmanager
    def _own_folder(self) -> Iterator[Path]:
        """Make a folder for one job, locked so that no worker that starts meanwhile sweeps it."""
        handle = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            while handle is None:  # swept before it was locked: another one
                folder = Path(mkdtemp(dir=self._folder))
                handle = lock(folder, os.O_RDONLY, fcntl.LOCK_SH)
        except OSError as error:
            raise _no_room(self._folder, error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)

    async def _read(self, field: str, text: str, user_id: UUID | None) -> bytes:
        try:
            return await self._find(read_reference(text), user_id)
        except ValueError as error:
            raise InputError.of([FieldProblem(field, str(error))]) from None
        except (DatabaseError, StorageError) as error:
            log.warning("The %s cannot be read: %s", field, error, extra={"action": "reference_unavailable"})
            raise InfrastructureError(
                Code.REFERENCE_UNAVAILABLE, f"The {field} could not be read; the worker's log has the cause."
            ) from error

    async def _find(self, given: Given, user_id: UUID | None) -> bytes:
        """The bytes of what was given; raises ``ValueError`` that says why there are none."""
        match given:
            case Upload():
                data = await self._storage.read(upload_key(given, user_id))
                days = self._settings.keep_days
                missing = f"you have no {given}: uploads are kept for {days:g} days, and only who made one may use it"
            case JobPicture():
                data = await self._storage.read(await self._key(given, user_id))
                missing = f"the file of {given} is not there any more"
            case Url():
                return await self._fetcher.fetch(given.text)
        if data is None:
            raise ValueError(missing)
        return data

    async def _key(self, given: JobPicture, user_id: UUID | None) -> str:
        made = await self._jobs.made(given.job_id, user_id=user_id)
        if made is None:
            raise ValueError(f"you have no job {given.job_id}")
        if made.status is not Status.COMPLETED:
            raise ValueError(f"job {given.job_id} is {made.status}: only pictures of a completed job can be used")
        for output in made.outputs:
            if output.index == given.index:
                return output.key
        there = ", ".join(str(output.index) for output in made.outputs) or "none at all"
        raise ValueError(f"job {given.job_id} has no picture {given.index}; it has {there}")

    def _fit(self, data: Mapping[str, bytes], asked: tuple[int | None, int | None], folder: Path) -> Fitted:
        decoded = {field: self._decode(field, given) for field, given in data.items()}
        reference = decoded["reference"]
        size = fit_size(reference.size, *asked)
        pictures = {"reference": fit_reference(reference, size)}
        if "mask" in decoded:
            try:
                pictures["mask"] = fit_mask(decoded["mask"], reference.size, size)
            except ValueError as error:
                raise InputError.of([FieldProblem("mask", str(error))]) from None

        paths = {field: folder / f"{field}.png" for field in pictures}
        for field, picture in pictures.items():
            _save(picture, paths[field])
        digests = {field: hashlib.sha256(given).hexdigest() for field, given in data.items()}
        return Fitted(*size, paths["reference"], digests["reference"], paths.get("mask"), digests.get("mask"))

    def _shrink(
        self, data: Sequence[tuple[str, bytes]], asked: tuple[int | None, int | None], pixels: int, folder: Path
    ) -> Edited:
        files, sizes = [], []
        for number, (field, given) in enumerate(data):
            try:
                picture = fit_edited(self._decode(field, given))
            except ValueError as error:
                raise InputError.of([FieldProblem(field, str(error))]) from None
            file = folder / f"{number}.png"
            _save(picture, file)
            files.append(file)
            sizes.append(picture.size)
        width, height = edit_size(sizes[0], *asked, pixels=pixels)
        return Edited(width, height, tuple(files), tuple(hashlib.sha256(given).hexdigest() for _, given in data))

    def _decode(self, field: str, data: bytes) -> Image.Image:
        try:
            return decode(data, max_pixels=self._settings.max_pixels)
        except PictureError as error:
            raise InputError.of([FieldProblem(field, str(error))]) from None


def _save(picture: Image.Image, file: Path) -> None:
    try:
        picture.save(file, compress_level=1)
    except OSError as error:
        raise _no_room(file.parent, error) from error


def _no_room(folder: Path, error: OSError) -> InfrastructureError:
    return InfrastructureError(
        Code.REFERENCE_UNAVAILABLE,
        f"no picture can be kept in {folder}: {error.strerror or error}: make room there, give this user the right to "
        "write there, or set state_dir to another folder",
    )
