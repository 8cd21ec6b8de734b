"""Fetching model files into the hub's cache: gone on with where they were cut, and checked before they get their names.

The hub's client names and links the files, and its locks are taken here, too, so that it and this program wait for each
other. What it lacks is done here: it begins a file anew when it was cut, and compares no checksum.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, filter_repo_objects  # type: ignore[attr-defined]

from tenkaigen_worker.engine.hub import hub_errors, is_network_error
from tenkaigen_worker.engine.needs import INDEX, Source, engine_error, read_index

log = logging.getLogger("tenkaigen.engine")

AT_ONCE = 4  # one connection rarely fills a data centre's line
_CHUNK_BYTES = 1024**2
_TRIES = 3

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

Phase = Literal["fetching", "waiting", "checking", "here"]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository at one commit; ``digest`` is its SHA-256, or in git itself its SHA-1 there."""

    source: Source
    commit: str
    name: str
    bytes: int
    digest: str

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache."""
        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.source.place, repo_type="model")

    @property
    def blob(self) -> Path:
        """Where the client keeps its content."""
        return self.folder / "blobs" / self.digest

    @property
    def partial(self) -> Path:
        """Where it grows until it is complete and right."""
        return self.blob.with_name(f"{self.digest}.incomplete")

    @property
    def lock(self) -> Path:
        """The client's lock of it."""
        return Path(constants.HF_HUB_CACHE) / ".locks" / self.folder.name / f"{self.digest}.lock"

    @property
    def bytes_here(self) -> int:
        """How much of it is here."""
        for path in (self.blob, self.folder / "snapshots" / self.commit / self.name):
            if size_of(path) == self.bytes:
                return self.bytes
        return min(size_of(self.partial) or 0, self.bytes)


Report = Callable[[RemoteFile, Phase, int], None]
"""Called with a file, what goes on with it, and how many of its bytes are here, or checked."""


class Stopped(BaseException):
    """It was asked to stop, and did; as no ``Exception``, so that nobody on the way takes it for a failure."""


def survey(source: Source) -> list[RemoteFile]:
    """Ask the hub what a source's files are. Raises ``EngineError``, ``CannotFetch`` when now is not the time."""
    with hub_errors(source, download=True):
        components: list[str] = []
        revision = source.revision
        if source.file is None:
            index = Path(hf_hub_download(source.place, INDEX, revision=revision))
            components, revision = read_index(index, source), index.parent.name
        info = HfApi().model_info(
            source.place, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        files = [
            RemoteFile(
                source, info.sha or "", one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else one.blob_id or ""
            )
            for one in info.siblings or []
        ]
        patterns = source.patterns(components)
        wanted = list(filter_repo_objects(files, allow_patterns=patterns, key=lambda file: file.name))
        if not wanted:
            raise EntryNotFoundError(source.name)
        for file in wanted:
            # Both become paths here, and what a hub says is a stranger's word.
            if not _DIGEST.fullmatch(file.digest) or ".." in file.name.split("/"):
                raise engine_error(f"{source.setting}: the hub lists {file.name!r} of {source.name} without a checksum")
        return wanted


def check_room(files: Iterable[RemoteFile]) -> int:
    """Answer how many bytes are not here yet. Raises ``EngineError`` when the cache's disk has no room for them."""
    missing = sum(file.bytes - file.bytes_here for file in {file.blob: file for file in files}.values())
    cache = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if missing > free:
        raise engine_error(
            f"the disk is too full: {_gigabytes(missing)} are still to be downloaded to {cache}, and "
            f"{_gigabytes(free)} are free; make room there, or set HF_HOME to a folder on a larger disk"
        )
    return missing


def fetch(files: Iterable[RemoteFile], report: Report, stop: threading.Event) -> None:
    """Fetch what is not here yet, several files at once.

    Raises ``EngineError``, and ``Stopped`` once ``stop`` is set; what has arrived stays, and is gone on with next time.
    ``report`` is called by one thread at a time.
    """
    speaking = threading.Lock()

    def watched(file: RemoteFile, phase: Phase, done: int) -> None:
        if stop.is_set():
            raise Stopped
        with speaking:
            report(file, phase, done)

    missing = {file.blob: file for file in files if file.bytes_here < file.bytes or file.partial.exists()}
    with ThreadPoolExecutor(AT_ONCE, "fetch") as threads:
        running = [threads.submit(_fetch, file, watched) for file in missing.values()]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(file: RemoteFile, report: Report) -> None:
    with hub_errors(file.source, download=True), _alone_with(file, report):
        if size_of(file.blob) == file.bytes:
            file.partial.unlink(missing_ok=True)
            report(file, "here", file.bytes)
            return
        file.blob.unlink(missing_ok=True)  # of another size: damaged
        file.blob.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            _transfer(file, report)
            found = digest_of(file.partial, file.digest, lambda _: report(file, "checking", file.bytes))
            if found == file.digest:
                os.replace(file.partial, file.blob)
                report(file, "here", file.bytes)
                return
            file.partial.unlink()
    raise engine_error(
        f"{file.source.setting}: {file.source.place}: {file.name} arrived damaged twice and was removed: its "
        f"{'SHA-256' if len(file.digest) == 64 else 'SHA-1'} is {found}, and should be {file.digest}; try again, and "
        f"look at what stands between this machine and {constants.ENDPOINT}"
    )


@contextmanager
def _alone_with(file: RemoteFile, report: Report) -> Iterator[None]:
    """Hold the client's lock of a file; the kernel forgets holders that were killed."""
    file.lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(file.lock, timeout=1))
                break
            except Timeout:
                report(file, "waiting", file.bytes_here)
        yield


def _transfer(file: RemoteFile, report: Report) -> None:
    """Fetch what is missing of a file; given up after several tries in a row that brought nothing."""
    if (size_of(file.partial) or 0) > file.bytes:
        file.partial.unlink()
    url = hf_hub_url(file.source.place, file.name, revision=file.commit)
    barren = 0
    while True:
        before = size_of(file.partial) or 0
        try:
            with file.partial.open("ab") as stream:
                # Always by the hub's own address: the signed ones that it redirects to are good for an hour.
                http_get(
                    url,
                    stream,
                    resume_size=before,
                    headers=build_hf_headers(),
                    expected_size=file.bytes,
                    displayed_filename=file.name,
                    tqdm_class=_reporting(file, report),
                )
            return
        except Exception as error:
            passes = is_network_error(error) or (
                isinstance(error, HfHubHTTPError) and error.response.status_code >= 500
            )
            barren = 0 if (size_of(file.partial) or 0) > before else barren + 1
            if not passes or barren == _TRIES:
                raise
            log.info("The download of %s was cut: %s", file.name, error, extra={"action": "model_download_cut"})
            time.sleep(1)


def _reporting(file: RemoteFile, report: Report) -> Any:
    """Make what the client takes for a progress bar."""

    class Bar:
        def __init__(self, *, initial: int = 0, **others: object) -> None:
            self.done = initial
            report(file, "fetching", initial)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *raised: object) -> None:
            pass

        def update(self, count: int) -> None:
            self.done += count
            report(file, "fetching", self.done)

    return Bar


def digest_of(path: Path, like: str, report: Callable[[int], None]) -> str:
    """Hash a file as the hub did: 64 digits are a SHA-256, 40 are git's SHA-1 of a blob.

    ``report`` is called with the bytes of each piece that has been read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            report(len(chunk))
    return digest.hexdigest()


def size_of(path: Path) -> int | None:
    """Return a file's size in bytes; ``None`` where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
