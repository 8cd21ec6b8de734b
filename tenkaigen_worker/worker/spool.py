"""Finished pictures on this machine's disk, for as long as storage does not take them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay, wait_random_exponential

from tenkaigen_worker.errors import Code, ConfigError, InfrastructureError, StorageError
from tenkaigen_worker.jobs import Job
from tenkaigen_worker.storage.base import Storage
from tenkaigen_worker.worker.waiting import in_thread

log = logging.getLogger("tenkaigen.worker")

# Between two tries to store a picture, in seconds.
BETWEEN_UPLOADS = wait_random_exponential(multiplier=0.5, max=30)


class Spool:
    """Keeps pictures in ``folder`` until ``storage`` has them, and gives each up after ``patience_seconds``.

    The files have no names: the kernel removes them when they are closed, or when the process ends, however it ends.
    So nothing is ever left over, and nobody has to find out whose it was.
    """

    def __init__(self, folder: Path, storage: Storage, patience_seconds: float) -> None:
        self._folder = folder
        self._storage = storage
        self._patience_seconds = patience_seconds

    def check(self) -> None:
        """Raise ``ConfigError`` when nothing can be kept here: better than at the end of the first job."""
        try:
            with self.file() as file:
                file.write(b"probe")
        except InfrastructureError as error:
            raise ConfigError(str(error)) from error

    @contextmanager
    def file(self) -> Iterator[SpoolFile]:
        """Give an empty file for one picture, and remove it in the end.

        Raises ``InfrastructureError`` with code ``upload_failed`` when it cannot be made.
        """
        with _explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            # Without a buffer: closing must not write once more what the disk refused.
            stream = cast("BinaryIO", TemporaryFile(dir=self._folder, buffering=0))  # noqa: SIM115
        with stream:
            yield SpoolFile(self._folder, stream)

    async def upload(self, file: SpoolFile, key: str, job: Job, *, content_type: str = "image/png") -> str:
        """Store a picture under ``key`` and answer its URL, for as long as storage may take it on the next try.

        Raises ``InfrastructureError`` with code ``upload_failed`` after ``patience_seconds``, or at once when trying
        again cannot help.
        """

        def say(state: RetryCallState) -> None:
            cause = state.outcome.exception() if state.outcome else None
            extra = {"action": "upload_waits", "job_id": job.id, "attempt": job.attempt}
            log.warning("A picture of job %s waits for storage: %s", job.id, cause, extra=extra)

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, StorageError) and not error.permanent),
            wait=BETWEEN_UPLOADS,
            stop=stop_after_delay(self._patience_seconds),
            before_sleep=say,
            reraise=True,
        )
        try:
            return await retrying(self._put, file, key, content_type)
        except StorageError as error:
            raise InfrastructureError(Code.UPLOAD_FAILED, f"The picture could not be stored: {error}") from error

    async def _put(self, file: SpoolFile, key: str, content_type: str) -> str:
        return await self._storage.put(key, await in_thread(file.read), content_type=content_type)


class SpoolFile:
    """One picture on disk. To be written and read in a thread, one after the other."""

    def __init__(self, folder: Path, stream: BinaryIO) -> None:
        self._folder = folder
        self._stream = stream

    def write(self, data: bytes) -> None:
        """Write the whole picture. Raises ``InfrastructureError`` with code ``upload_failed``."""
        rest = memoryview(data)
        with _explained(self._folder):
            while rest:
                rest = rest[self._stream.write(rest) :]

    def read(self) -> bytes:
        """The whole picture. Raises ``InfrastructureError`` with code ``upload_failed``."""
        with _explained(self._folder):
            self._stream.seek(0)
            return self._stream.read()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn an operating system's refusal into a sentence that names the folder and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InfrastructureError(
            Code.UPLOAD_FAILED,
            f"no picture can be kept in {folder} until it is stored: {reason}: make room there, give this user the "
            "right to write there, or set state_dir to another folder",
        ) from error
