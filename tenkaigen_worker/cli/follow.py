"""Following jobs on a terminal until they end, and fetching what they made."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path, PurePosixPath
from uuid import UUID

import aiohttp
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from tenkaigen_worker.errors import DatabaseError, StorageError, TenkaigenError
from tenkaigen_worker.jobs import FINAL, JobView, Status
from tenkaigen_worker.storage.base import Storage

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
DOWNLOAD_SECONDS = 60.0


async def follow(
    jobs: Sequence[JobView],
    get: Callable[[UUID], Awaitable[JobView | None]],
    console: Console,
    *,
    pause: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(POLL_SECONDS),
) -> AsyncIterator[JobView]:
    """Yield each job once it is final, in the order in which they end; show a bar for each one meanwhile.

    An outage of the database is waited for: the jobs are in it, and go on when it is back.
    """
    bars = _Bars(console)
    with bars.progress:
        open_jobs = {job.id: bars.add(job) for job in jobs}
        hint = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, bars.hint)
        try:
            while open_jobs:
                for job_id, bar in list(open_jobs.items()):
                    job = await _look(get, job_id, bars)
                    if job is None:
                        continue
                    bars.show(bar, job)
                    if job.status in FINAL:
                        del open_jobs[job_id]
                        yield job
                if open_jobs:
                    await pause()
        finally:
            hint.cancel()


async def _look(get: Callable[[UUID], Awaitable[JobView | None]], job_id: UUID, bars: _Bars) -> JobView | None:
    """One look at a row; ``None`` while the database is away."""
    try:
        job = await get(job_id)
    except DatabaseError as error:
        bars.away(error)
        return None
    bars.back()
    if job is None:
        raise TenkaigenError(f"job {job_id} is no longer in the table")
    return job


class _Bars:
    """One line per job; nothing at all when nobody watches."""

    def __init__(self, console: Console) -> None:
        self._taken = False
        self._away = False
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            redirect_stdout=sys.stdout.isatty(),  # elsewhere, what is printed meanwhile belongs into the pipe
        )

    def add(self, job: JobView) -> TaskID:
        words = job.prompt if len(job.prompt) <= 40 else f"{job.prompt[:39]}…"
        return self.progress.add_task(escape(words), total=1.0, stage=job.status)

    def show(self, bar: TaskID, job: JobView) -> None:
        self._taken = self._taken or job.status is not Status.QUEUED
        stage = job.stage if job.status is Status.PROCESSING and job.stage else job.status
        self.progress.update(bar, completed=job.progress, stage=stage)
        if job.status in FINAL:
            self.progress.stop_task(bar)

    def away(self, error: DatabaseError) -> None:
        if not self._away:
            self.progress.console.print(f"Waiting for the database: {escape(str(error))}")
        self._away = True

    def back(self) -> None:
        self._away = False

    def hint(self) -> None:
        if not self._taken:
            self.progress.console.print(
                "No worker has taken a job yet. If none is running, start one: tenkaigen worker, or tenkaigen up."
            )


async def fetch(job: JobView, storage: Storage, folder: Path | None) -> list[str]:
    """Copy a job's pictures into ``folder``; without one only say where they are.

    Answers paths, or URLs of pictures that lie elsewhere. Raises ``StorageError`` when one cannot be had.
    """
    places = []
    for output in job.outputs:
        kept = await storage.find(output.key)
        if folder is None:
            places.append(str(kept or output.url))
        else:
            target = folder / f"{job.id}-{output.index}{PurePosixPath(output.key).suffix}"
            await _save(kept or await storage.read(output.key) or await _download(output.url), target)
            places.append(str(target))
    return places


async def _save(source: Path | bytes, target: Path) -> None:
    try:
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        if isinstance(source, Path):
            await asyncio.to_thread(shutil.copyfile, source, target)
        else:
            await asyncio.to_thread(target.write_bytes, source)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{target}: {reason}; choose another folder with --output") from error


async def _download(url: str) -> bytes:
    timeout = aiohttp.ClientTimeout(total=DOWNLOAD_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session,
            session.get(url) as response,
        ):
            return await response.read()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise StorageError(f"{url} could not be downloaded: {error or type(error).__name__}") from error
