"""A command of the program as a real process, followed by its log lines."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import psutil

# A story that hangs must end some time; nothing is measured with this.
PATIENCE_SECONDS = 120.0


class Program:
    """A running ``tenkaigen`` command. Its log lines are JSON; :meth:`until` waits for one with a given action."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self.process.pid

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            text = line.decode()
            self.raw.append(text)
            async with self._news:
                if text.startswith("{"):
                    self.lines.append(json.loads(text))
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    async def until(self, action: str, *, times: int = 1) -> dict[str, Any]:
        """Wait until the log has said ``action`` so many times; answers the last of these lines."""

        def said() -> list[dict[str, Any]]:
            return [line for line in self.lines if line.get("action") == action]

        async with asyncio.timeout(PATIENCE_SECONDS), self._news:
            await self._news.wait_for(lambda: len(said()) >= times or self._reading.done())
        assert len(said()) >= times, f"the process never said {action!r}:\n{''.join(self.raw)}"
        return said()[times - 1]

    async def until_line(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Wait until it has printed a line that matches; answers the match."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.raw if (match := pattern.match(line))), None)

        async with asyncio.timeout(PATIENCE_SECONDS), self._news:
            await self._news.wait_for(lambda: found() or self._reading.done())
        match = found()
        assert match, f"the process never printed {pattern.pattern!r}:\n{''.join(self.raw)}"
        return match

    def children(self) -> list[psutil.Process]:
        """The engine processes it has."""
        return psutil.Process(self.pid).children(recursive=True)

    def kill(self) -> None:
        """End it as the kernel does when memory runs out: without a word."""
        self.process.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end and answer its exit status."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.process.wait()

    async def close(self) -> None:
        """End it whatever it is doing."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), 20)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        await self._reading


Start = Callable[..., Awaitable[Program]]
