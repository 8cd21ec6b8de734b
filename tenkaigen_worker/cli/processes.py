"""Commands of this program as processes that are watched, started again when they die, and ended with us."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import monotonic

from tenkaigen_worker.cli.ready import VARIABLE, ReadyListener, listening
from tenkaigen_worker.errors import TenkaigenError

log = logging.getLogger("tenkaigen.stack")

# A process that keeps dying is started again after 1, 2, 4, ... seconds, at most this many.
LONGEST_PAUSE = 30.0
# How long a process may take to end after a second request, in seconds.
HURRY_SECONDS = 10.0
# How much of a log file is quoted when a process dies at its start, in bytes.
LAST_WORDS = 2000


class Supervised:
    """One ``tenkaigen`` command as a process. Its output goes to ``log_file``, or where ours goes.

    It lives in a session of its own, so that a Ctrl-C reaches only the supervisor, and ends when its standard input
    closes, so that nothing is left behind by a supervisor that was killed.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environ: Mapping[str, str],
        grace_seconds: float,
        log_file: Path | None,
    ) -> None:
        self.name = name
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._arguments = arguments
        self._environ = environ
        self._grace_seconds = grace_seconds
        self._log_file = log_file

    async def keep_running(self) -> None:
        """Run the process, again and again, until this is cancelled; then end it.

        :attr:`ready` gets the status that it reports when it is ready. Raises
        :class:`~tenkaigen_worker.errors.TenkaigenError` when it dies before.
        """
        with listening() as listener:
            hearing = asyncio.create_task(self._hear(listener), name=f"{self.name} ready")
            try:
                await self._run_again_and_again({**self._environ, VARIABLE: listener.address})
            finally:
                hearing.cancel()

    async def _hear(self, listener: ReadyListener) -> None:
        while True:
            status = await listener.status()
            if not self.ready.done():
                self.ready.set_result(status)

    async def _run_again_and_again(self, environ: Mapping[str, str]) -> None:
        pause = 1.0
        while True:
            started = monotonic()
            process = await self._spawn(environ)
            try:
                status = await process.wait()
            finally:
                await self._end(process)
            if not self.ready.done():
                words = self._last_words()
                raise TenkaigenError(f"The {self.name} ended at its start with exit status {status}.{words}")

            # Only what dies again at once has to wait longer and longer.
            pause = min(2 * pause, LONGEST_PAUSE) if monotonic() - started < LONGEST_PAUSE else 1.0
            log.warning(
                "The %s ended with exit status %d; it is started again in %g s",
                self.name,
                status,
                pause,
                extra={"action": "process_died"},
            )
            await asyncio.sleep(pause)

    async def _spawn(self, environ: Mapping[str, str]) -> asyncio.subprocess.Process:
        with self._log_file.open("ab") if self._log_file else nullcontext() as output:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tenkaigen_worker", *self._arguments),
                env=environ,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        process.terminate()
        try:
            await self._wait_or_kill(process, self._grace_seconds)
        except asyncio.CancelledError:
            # We are told to hurry: say so, and leave the process the time to put down what it holds.
            process.terminate()
            await self._wait_or_kill(process, HURRY_SECONDS)
            raise

    async def _wait_or_kill(self, process: asyncio.subprocess.Process, seconds: float) -> None:
        try:
            await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            log.warning(
                "The %s did not end within %g s and is killed",
                self.name,
                seconds,
                extra={"action": "process_killed"},
            )
            process.kill()
            await process.wait()

    def _last_words(self) -> str:
        if self._log_file is None:
            return ""
        return f" Its last words:\n{self._log_file.read_bytes()[-LAST_WORDS:].decode(errors='replace')}"
