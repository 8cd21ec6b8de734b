"""LoRA files on this machine: found, fetched, checked, and held while a job uses them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from tenacity import RetryCallState

from tenkaigen_worker.config import LoraSettings
from tenkaigen_worker.loras.download import Download, Hub, in_thread, wait_for_it
from tenkaigen_worker.loras.folder import Folder, Loan
from tenkaigen_worker.loras.header import BadFile, LoraHeader, read_header, read_structure
from tenkaigen_worker.loras.partial import Partial
from tenkaigen_worker.loras.problems import disk_explained, failed, unusable
from tenkaigen_worker.plugin.lora_source import HubFile, LocalFile, WebFile, parse_source
from tenkaigen_worker.plugin.types import Lora

log = logging.getLogger("tenkaigen.loras")

PROGRESS_SECONDS = 5.0
LOCKED_SECONDS = 0.2  # how often to look whether another process is through

Progress = Callable[[str, int, int | None], None]
"""Is told a LoRA's name, the bytes that are here, and the total where that is known."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was fetched: its SHA-256 (hex), where it is, and the hub's commit it was found at."""

    sha256: str
    path: Path
    commit: str | None


@dataclass(slots=True)
class _Fetching:
    """One download and how many wait for it."""

    task: asyncio.Task[Fetched]
    waiting: int = 0


def default_folder(settings: LoraSettings, state_dir: Path) -> Path:
    """Where the files are kept."""
    return settings.cache_dir or state_dir / "loras"


def sha256_of(path: Path) -> str:
    """The SHA-256 (hex) of a file; raises ``OSError``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def log_progress() -> Progress:
    """Make a ``progress`` that logs a line at the beginning and then every few seconds."""
    last: dict[str, float] = {}

    def progress(name: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - last.get(name, -PROGRESS_SECONDS) < PROGRESS_SECONDS:
            return
        last[name] = now
        percent = 100 * done // total if total else None
        here = f"{done / 1e6:.0f} MB" if percent is None else f"{percent} %"
        extra = {"action": "lora_downloading", "lora": name, "bytes": done, "percent": percent}
        log.info("Downloading the LoRA %s: %s", name, here, extra=extra)

    return progress


class LoraCache:
    """The LoRA files of a machine. Several processes may have one folder.

    What is there and right is used without any network. A file on its way is fetched once, however many jobs and
    processes want it, and is given up when none of them does any more.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        max_file_bytes: int,
        hub: Hub | None = None,
        progress: Progress | None = None,
        wait: Callable[[RetryCallState], float] = wait_for_it,
    ) -> None:
        self.folder = folder
        self._max_file_bytes = max_file_bytes
        self._hub = hub
        self._progress = progress or log_progress()
        self._wait = wait
        self._session: aiohttp.ClientSession | None = None
        self._fetching: dict[str, _Fetching] = {}
        self._seen: dict[Path, tuple[tuple[int, int, int], str]] = {}

    @classmethod
    def of(cls, settings: LoraSettings, state_dir: Path, *, progress: Progress | None = None) -> LoraCache:
        """Make the cache that the settings name."""
        folder = Folder(default_folder(settings, state_dir), settings.max_bytes)
        return cls(folder, max_file_bytes=settings.max_file_bytes, progress=progress)

    @asynccontextmanager
    async def hold(self, loras: Sequence[Lora]) -> AsyncIterator[Mapping[str, Path]]:
        """Make the files of some LoRAs present, checked by their SHA-256 and headers, and keep them until the end.

        Yields each one's path by its SHA-256. Raises ``InputError`` with code ``lora_unusable`` when a file is not what
        it should be, ``InfrastructureError`` with code ``lora_failed`` for what may pass: network, server, disk.
        """
        async with AsyncExitStack() as held:
            paths = {}
            for lora in loras:
                source = parse_source(lora.source)
                if isinstance(source, LocalFile):
                    paths[lora.sha256] = await self._local(lora, source.path)
                else:
                    loan = await self._borrow(lora, source)
                    held.callback(loan.give_back)
                    paths[lora.sha256] = loan.path
                await in_thread(check_file, lora.name, paths[lora.sha256], lora.base_model)
            yield paths

    async def fetch(self, name: str, source: HubFile | WebFile, sha256: str | None = None) -> Fetched:
        """Fetch a file into the cache, and answer its SHA-256; checked only where it is given.

        Raises as :meth:`hold` does.
        """
        key = sha256 or f"new-{hashlib.sha256(repr(source).encode()).hexdigest()[:16]}"
        shared = self._fetching.get(key)
        if shared is None:
            task = asyncio.create_task(self._fetch_alone(name, source, key, sha256), name=f"fetch-{name}")
            shared = self._fetching[key] = _Fetching(task)
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # they may all have gone
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if shared.waiting == 0:
                if self._fetching.get(key) is shared:
                    del self._fetching[key]
                if not shared.task.done():
                    shared.task.cancel()
                    await asyncio.wait([shared.task])

    async def close(self) -> None:
        """Close the connections; nothing may be on its way any more."""
        if self._session is not None:
            await self._session.close()

    async def _local(self, lora: Lora, path: Path) -> Path:
        """Check a file that is used where it lies."""
        try:
            found = await in_thread(self._digest, path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise unusable(lora.name, f"there is no file {path}") from None
        except OSError as error:
            raise failed(lora.name, f"{path}: {error.strerror or error}") from error
        if found != lora.sha256:
            raise unusable(lora.name, f"{path} has the SHA-256 {found}, and should have {lora.sha256}")
        return path

    async def _borrow(self, lora: Lora, source: HubFile | WebFile) -> Loan:
        """Get hold of a file of the folder; fetch it before where it is missing or damaged."""
        while True:
            with disk_explained(lora.name, self.folder.path):
                loan = await in_thread(self.folder.lend, lora.sha256, undo=_give_back)
            if loan is None:
                await self.fetch(lora.name, source, lora.sha256)
                continue
            try:
                with disk_explained(lora.name, loan.path):
                    right = await in_thread(self._digest, loan.path) == lora.sha256
            except BaseException:
                loan.give_back()
                raise
            if right:
                return loan
            loan.give_back()
            extra = {"action": "lora_damaged", "lora": lora.name, "file": loan.path.name}
            log.warning("The file of the LoRA %s is damaged, and is fetched again", lora.name, extra=extra)
            with disk_explained(lora.name, loan.path):
                removed = await in_thread(self.folder.remove, loan.path)
            if not removed:
                raise failed(lora.name, f"{loan.path} is damaged, and still in use by another job")

    async def _fetch_alone(self, name: str, source: HubFile | WebFile, key: str, sha256: str | None) -> Fetched:
        """Fetch a file that nobody else in this process is fetching."""
        try:
            hub = self._hub or Hub.of(os.environ)
        except ValueError as error:
            raise failed(name, f"HF_ENDPOINT: {error}") from None
        with disk_explained(name, self.folder.path):
            partial = await self._begin(name, key, sha256)
            if partial is None:
                assert sha256  # noqa: S101 - only files that are known can be there already
                return Fetched(sha256, self.folder.file(sha256), None)
            try:
                return await self._download(name, source, sha256, partial, hub)
            finally:
                await in_thread(partial.close)

    async def _download(
        self, name: str, source: HubFile | WebFile, sha256: str | None, partial: Partial, hub: Hub
    ) -> Fetched:
        download = Download(
            name=name,
            source=source,
            partial=partial,
            session=self._open_session(),
            hub=hub,
            max_bytes=self._max_file_bytes,
            checked=sha256 is not None,
            make_room=self._make_room,
            progress=lambda done, total: self._progress(name, done, total),
            wait=self._wait,
        )
        await download.run()
        if sha256 and partial.sha256 != sha256 and partial.resumed:
            # The first part may have been another version's, or damaged: once more from the start.
            await in_thread(partial.restart)
            await download.run()
        path = await self._accept(name, source, partial, sha256)
        return Fetched(partial.sha256, path, download.commit)

    async def _begin(self, name: str, key: str, sha256: str | None) -> Partial | None:
        """Get the right to fetch a file; ``None`` when another process has fetched it meanwhile."""
        said = False
        while True:
            partial = await in_thread(Partial.open, self.folder.partial(key), undo=_close)
            if sha256 and self.folder.file(sha256).exists():
                _close(partial)
                return None
            if partial:
                return partial
            if not said:
                extra = {"action": "lora_awaited", "lora": name}
                log.info("Another process is fetching the LoRA %s", name, extra=extra)
            said = True
            await asyncio.sleep(LOCKED_SECONDS)

    async def _accept(self, name: str, source: HubFile | WebFile, partial: Partial, sha256: str | None) -> Path:
        """Give a complete file its place, if it is the one."""
        try:
            await in_thread(read_structure, partial.path)
        except BadFile as error:
            await in_thread(partial.restart)
            raise unusable(name, f"{source}: {error}") from None
        found = partial.sha256
        if sha256 and found != sha256:
            await in_thread(partial.restart)
            raise unusable(name, f"{source} has the SHA-256 {found}, and should have {sha256}")
        path = self.folder.file(found)
        await in_thread(partial.finish, path)
        status = await in_thread(path.stat)
        await in_thread(self.folder.make_room)
        self._seen[path] = (_stamp(status), found)
        extra = {"action": "lora_fetched", "lora": name, "bytes": status.st_size, "sha256": found}
        log.info("Fetched the LoRA %s", name, extra=extra)
        return path

    def _digest(self, path: Path) -> str:
        """The SHA-256 of a file, read anew when it looks changed."""
        stamp = _stamp(path.stat())
        seen = self._seen.get(path)
        if seen is None or seen[0] != stamp:
            seen = self._seen[path] = (stamp, sha256_of(path))
        return seen[1]

    def _make_room(self, wanted: int) -> None:
        self.folder.make_room(wanted)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        return self._session


def check_file(name: str, path: Path, base_model: str) -> LoraHeader:
    """Check a file's header for a LoRA of this name; raises ``InputError``, or ``InfrastructureError``."""
    try:
        return read_header(path, base_model=base_model)
    except BadFile as error:
        raise unusable(name, str(error)) from None
    except OSError as error:
        raise failed(name, f"{path}: {error.strerror or error}") from error


def _give_back(loan: Loan | None) -> None:
    if loan is not None:
        loan.give_back()


def _close(partial: Partial | None) -> None:
    if partial is not None:
        partial.close()


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino
