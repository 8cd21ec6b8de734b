"""The files of ``tenkaigen loras``: fetched with a progress bar, checked, and looked at again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tenkaigen_worker.config import Settings
from tenkaigen_worker.errors import InputError, JobError, PluginError
from tenkaigen_worker.loras.cache import LoraCache, check_file, sha256_of
from tenkaigen_worker.loras.folder import Folder
from tenkaigen_worker.loras.header import BadFile, LoraHeader, read_header, read_structure
from tenkaigen_worker.plugin import Lora
from tenkaigen_worker.plugin.lora_source import HubFile, LocalFile, Source, parse_source
from tenkaigen_worker.plugin.loras import Loras


def file_of(lora: Lora, folder: Folder) -> Path | None:
    """Where a LoRA's file is on this machine, if it is there."""
    source = parse_source(lora.source)
    file = source.path if isinstance(source, LocalFile) else folder.file(lora.sha256)
    return file if file.is_file() else None


async def fetch(settings: Settings, lora: Lora, source: Source) -> tuple[Lora, str]:
    """Make the file present and check it; answer the LoRA with its SHA-256, and what was found in words.

    Raises :class:`~tenkaigen_worker.errors.PluginError` with the reason when it cannot be used.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(lora.name, total=None)
        cache = LoraCache.of(
            settings.loras,
            settings.state_dir,
            progress=lambda _, done, total: bar.update(task, completed=done, total=total),
        )
        try:
            lora, header = await _checked(cache, lora, source)
        except JobError as error:
            raise PluginError(str(error)) from error
        finally:
            await cache.close()
    ranks = sorted(set(header.ranks.values()))
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    return lora, f"{lora.name}: {decimal(header.bytes)}, layers: {len(header.ranks)}, {rank}, {header.dtype}"


async def _checked(cache: LoraCache, lora: Lora, source: Source) -> tuple[Lora, LoraHeader]:
    """Fetch and check a file; one that is no LoRA for its model does not stay in the cache."""
    if isinstance(source, LocalFile):
        header = check_file(lora.name, source.path, lora.base_model)
        try:
            return replace(lora, sha256=sha256_of(source.path)), header
        except OSError as error:
            raise PluginError(f"{source.path}: {error.strerror or error}") from None
    fetched = await cache.fetch(lora.name, source)
    try:
        header = check_file(lora.name, fetched.path, lora.base_model)
    except InputError:
        cache.folder.remove(fetched.path)
        raise
    if isinstance(source, HubFile) and fetched.commit:
        lora = replace(lora, source=str(replace(source, revision=fetched.commit)))  # a branch moves, a commit does not
    return replace(lora, sha256=fetched.sha256), header


def verified(known: Loras, folder: Folder) -> Iterator[tuple[str, str | None]]:
    """Yield what each file is called, and what is wrong with it."""
    seen = set()
    for lora in known:
        if file := file_of(lora, folder):
            seen.add(file)
            yield lora.name, _problem_of(file, lora.sha256, lora.base_model)
        elif Path(lora.source).is_absolute():
            yield lora.name, f"there is no file {lora.source}"
    for kept in folder.entries():
        if kept.sha256 and kept.path not in seen:
            yield f"{kept.path.name} (no LoRA needs it)", _problem_of(kept.path, kept.sha256, None)


def _problem_of(file: Path, sha256: str, base_model: str | None) -> str | None:
    try:
        status = file.stat()
        if base_model is None:
            read_structure(file)
        else:
            read_header(file, base_model=base_model)
        found = sha256_of(file)
        with suppress(OSError):  # a file that may only be read
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # to be looked at is not to be used
    except BadFile as error:
        return f"{file}: {error}"
    except OSError as error:
        return f"{file}: {error.strerror or error}"
    return None if found == sha256 else f"{file} has the SHA-256 {found}, and should have {sha256}"
