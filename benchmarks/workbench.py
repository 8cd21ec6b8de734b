"""What the benchmarks run on: a PostgreSQL in a folder of its own, and real ``tenkaigen`` processes.

Whatever ends a benchmark, Ctrl-C included, ends the processes and removes the folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import asyncpg
import click

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.cluster import Cluster
from tenkaigen_worker.database.connect import connect
from tenkaigen_worker.database.embedded import embedded_binaries
from tenkaigen_worker.database.migrate import migrate
from tenkaigen_worker.errors import TenkaigenError

THREADS = 1
END_SECONDS = 20.0
LAST_LINES = 15

SETTINGS: Mapping[str, str] = {
    "TENKAIGEN_ENGINE__BACKEND": "tiny",
    "TENKAIGEN_ENGINE__THREADS": str(THREADS),
    # The bare loop remembers no prompts: what the worker costs must not hide behind what the engine saves.
    "TENKAIGEN_ENGINE__PROMPT_CACHE_BYTES": "0",
    "TENKAIGEN_LOG__FORMAT": "json",
    "TENKAIGEN_WORKER__HEALTH_PORT": "0",
    "TENKAIGEN_API__PORT": "0",
    "TENKAIGEN_STORAGE__LOCAL__PUBLIC_URL": "http://127.0.0.1/files",
}


class Program:
    """A running process whose output is lines, some of them JSON objects."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._ignoring: Thread | None = None

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects as they come, until the process ends; raises when it ended badly."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last.append(line)
            if line.startswith("{"):
                yield json.loads(line)
        if status := self._process.wait():
            raise TenkaigenError(f"{self._name()} ended with status {status}:\n{''.join(self._last)}")

    def until(self, action: str) -> dict[str, Any]:
        """Wait until the log says ``action``; answers that line."""
        for line in self.lines():
            if line.get("action") == action:
                return line
        raise TenkaigenError(f"{self._name()} ended before it said {action}:\n{''.join(self._last)}")

    def ignore_the_rest(self) -> None:
        """Read on beside us, and forget: a process whose output nobody reads stands still once the pipe is full."""
        assert self._process.stdout is not None
        self._ignoring = Thread(target=deque, args=(self._process.stdout, 0))
        self._ignoring.start()

    def end(self) -> None:
        """End it in order, or else by force."""
        if self._process.poll() is None:
            self._process.terminate()
        if self._ignoring:
            self._ignoring.join(END_SECONDS)
        try:
            self._process.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _name(self) -> str:
        return " ".join(map(str, self._process.args)) if isinstance(self._process.args, list) else "the process"


@dataclass(frozen=True, slots=True)
class Workbench:
    """A migrated database, a folder for everything else, and the environment for processes that use both."""

    folder: Path
    dsn: str
    environ: Mapping[str, str]

    async def connect(self) -> asyncpg.Connection:
        """Open a connection on which jsonb arrives as Python values."""
        return await connect(DatabaseSettings(), self.dsn, "tenkaigen benchmark")

    @contextmanager
    def running(self, *command: str | Path) -> Iterator[Program]:
        """Run Python with ``command`` while the block runs; it also ends when this process is killed."""
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A Ctrl-C is for us alone: we end the others in order.
            start_new_session=True,
        )
        program = Program(process)
        try:
            yield program
        finally:
            program.end()

    @contextmanager
    def tenkaigen(self, *arguments: str) -> Iterator[Program]:
        """Run one of the commands that serve: ``worker`` or ``api``."""
        with self.running("-m", "tenkaigen_worker", *arguments, "--until-stdin-closes") as program:
            yield program


@contextmanager
def workbench() -> Iterator[Workbench]:
    """Set everything up, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="tenkaigen-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL does not run as root, and has to reach its files in here
        cluster = Cluster(embedded_binaries(), folder / "postgres")
        try:
            dsn = cluster.ensure_running()
            ours = {key: value for key, value in os.environ.items() if not key.startswith("TENKAIGEN_")}
            environ = {**ours, **SETTINGS, "TENKAIGEN_DATABASE__URL": dsn, "TENKAIGEN_STATE_DIR": str(folder)}
            bench = Workbench(folder, dsn, environ)
            asyncio.run(_migrate(bench))
            yield bench
        finally:
            cluster.stop()


async def _migrate(bench: Workbench) -> None:
    connection = await bench.connect()
    try:
        await migrate(connection)
    finally:
        await connection.close()


def run(command: Callable[[], None]) -> None:
    """Call a benchmark's command so that every end unwinds, and none is a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        command()
    except TenkaigenError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
