"""The work of ``tenkaigen models``: fetching with a progress bar, and reading every file."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.hub import CannotFetch, keep_quiet
from tenkaigen_worker.engine.inventory import Inventory, look, problem_of
from tenkaigen_worker.engine.needs import Source
from tenkaigen_worker.engine.pull import Phase, RemoteFile, check_room, fetch, survey
from tenkaigen_worker.engine.weights import find_here, find_in_cache


def pull(sources: Sequence[Source], stop: threading.Event) -> list[Inventory]:
    """Make everything present, and say what is here then. Raises ``EngineError``, or ``Stopped`` once told to stop."""
    keep_quiet()
    files: list[RemoteFile] = []
    away: list[Source] = []
    for source in sources:
        if not source.on_hub:
            find_here(source)
            continue
        try:
            files += survey(source)
        except CannotFetch as error:
            if not look(source).complete:
                raise
            click.echo(f"{source.name} is here, and stays as it is: {error}", err=True)
            away.append(source)
    check_room(files)
    with Bars(files) as bars:
        fetch(files, bars.report, stop)
    for source in sources:
        if source.on_hub and source not in away:
            find_in_cache(source, download=True)
    return [look(source) for source in sources]


class Bars:
    """A bar for all bytes, and one for each file that is being fetched."""

    def __init__(self, files: Sequence[RemoteFile]) -> None:
        self._progress = _bar()
        self._here = {file.blob: file.bytes_here for file in files}
        total = sum({file.blob: file.bytes for file in files}.values())
        self._all = self._progress.add_task("all files", total=total, completed=sum(self._here.values()))
        self._tasks: dict[Path, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._progress.stop()

    def report(self, file: RemoteFile, phase: Phase, done: int) -> None:
        """Show how far a file is."""
        task = self._tasks.get(file.blob)
        if task is None:
            task = self._tasks[file.blob] = self._progress.add_task(file.name, total=file.bytes, completed=done)
        words = {"fetching": file.name, "waiting": f"{file.name} (another process fetches it)"}
        text = words.get(phase, f"{file.name} (checking)")
        self._progress.update(task, completed=done, description=text, visible=phase == "checking" or done < file.bytes)
        if phase != "checking":
            self._here[file.blob] = done
            self._progress.update(self._all, completed=sum(self._here.values()))
        if phase == "here":
            self._progress.console.print(f"fetched {file.name} ({decimal(file.bytes)})", soft_wrap=True)


def _bar() -> Progress:
    """Make a progress bar, which shows nothing where nobody looks."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


def verified(found: Sequence[Inventory]) -> Iterator[tuple[Inventory, str, Path, str | None]]:
    """Read every file; yield its name, where it is, and what is wrong with it."""
    with _bar() as bar:
        task = bar.add_task("checking", total=sum(one.bytes for one in found))
        for one in found:
            for name, path in one.files.items():
                bar.update(task, description=name)
                yield one, name, path, problem_of(path, lambda count: bar.advance(task, count))


def to_pin(pulled: Sequence[Inventory], engine: EngineSettings) -> str:
    """Write the YAML that pins what was pulled to its commits; nothing where all is pinned."""
    section: dict[str, Any] = {}
    for one in pulled:
        if one.pinned:
            continue
        if one.source.is_pipeline:
            section[one.source.revision_setting.removeprefix("engine.")] = one.commit
        else:
            name = one.source.setting.rpartition(".")[2]
            given = engine.checkpoints[name].model_dump(exclude_none=True)
            section.setdefault("checkpoints", {})[name] = {**given, "revision": one.commit}
    return str(yaml.safe_dump({"engine": section}, sort_keys=False)) if section else ""
