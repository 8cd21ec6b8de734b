"""The engine's child as its parent holds it: spawn, talk, read its output, and see it to its end."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import logging
import os
import re
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterable

from tenkaigen_worker.engine.base import EngineInfo
from tenkaigen_worker.engine.messages import AsyncChannel, Message, ProtocolError

log = logging.getLogger("tenkaigen.engine")

CHILD_MODULE = "tenkaigen_worker.engine.child"
TAIL_LINES = 40
LONGEST_LINE = 4_000
# What the program's own code logs in the child, with the action that child.py puts before it.
OUR_LINE = re.compile(r"\[(\w+)\] (tenkaigen\..*)")


class ChildEnded(Exception):
    """The child closed its end of the socket: it is gone, or about to be."""


class ChildProcess:
    """A running child. Made by :meth:`spawn`; must be seen to its end by :meth:`bury`.

    ``info`` is what it has loaded, for as long as it is to be used; ``ended`` is true once it is gone.
    """

    def __init__(self, process: asyncio.subprocess.Process, channel: AsyncChannel) -> None:
        self._process = process
        self._channel = channel
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._garbage: ProtocolError | None = None
        self.ended = False
        self.info: EngineInfo | None = None
        self._pump = asyncio.create_task(self._read_messages(), name="engine messages")
        self._output = asyncio.create_task(self._read_output(), name="engine output")

    @classmethod
    async def spawn(cls) -> ChildProcess:
        """Start a child; raises ``OSError`` when the system cannot."""
        ours, theirs = socket.socketpair()
        process: asyncio.subprocess.Process | None = None
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-u",
                    "-m",
                    CHILD_MODULE,
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    env=child_environment(),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                )
            return cls(process, await AsyncChannel.open(ours))
        except BaseException:
            ours.close()
            if process is not None:
                process.kill()
                await process.communicate()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Message) -> None:
        """Send a message; to a child that is gone it is lost, and :meth:`receive` tells."""
        self._channel.send(message)

    async def receive(self, limit: float) -> Message:
        """Wait at most ``limit`` seconds for the next message.

        Raises ``TimeoutError``, or :class:`ChildEnded` when none will come any more. Safe to cancel: nothing is lost.
        """
        if self._inbox.empty():
            async with asyncio.timeout(limit):
                message = await self._inbox.get()
        else:
            message = self._inbox.get_nowait()
        if message is None:
            self._inbox.put_nowait(None)
            raise ChildEnded
        return message

    async def bury(self, patience: float) -> None:
        """Give the child ``patience`` seconds to end by itself, kill it if it does not, and clean up after it.

        May be called by several at once: all wait for the same end.
        """
        try:
            async with asyncio.timeout(patience):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            # Also when cancelled: no child is ever left over.
            self.kill()
        await self._process.wait()

        # Its own children may still hold the pipe; they are not waited for.
        await asyncio.wait((self._output,), timeout=1)
        self._output.cancel()
        self._channel.close()
        await asyncio.gather(self._pump, self._output, return_exceptions=True)

    def kill(self) -> None:
        """Kill the child at once if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def obituary(self) -> str:
        """Say how the child ended, and its last words. Only after :meth:`bury`."""
        if self._garbage is not None:
            return f"it broke the protocol: {self._garbage}"
        words = exit_words(self._process.returncode)
        cause = last_words(self._tail)
        return f"{words}: {cause}" if cause else words

    async def _read_messages(self) -> None:
        try:
            while (message := await self._channel.receive()) is not None:
                self._inbox.put_nowait(message)
        except ProtocolError as error:
            self._garbage = error
            self.kill()
        finally:
            self.ended = True
            self._inbox.put_nowait(None)

    async def _read_output(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - spawn() asked for the pipe
        decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
        rest = ""
        while chunk := await self._process.stdout.read(65_536):
            # Progress bars end their lines with a carriage return.
            *lines, rest = re.split(r"[\r\n]+", rest + decoder.decode(chunk))
            rest = rest[-LONGEST_LINE:]
            self._log(lines)
        self._log([rest])

    def _log(self, lines: Iterable[str]) -> None:
        for line in lines:
            if text := line.rstrip()[:LONGEST_LINE]:
                action, text = ours.groups() if (ours := OUR_LINE.fullmatch(text)) else ("engine_output", text)
                self._tail.append(text)
                log.info("Engine: %s", text, extra={"action": action, "pid": self.pid})


def child_environment() -> dict[str, str]:
    """The parent's environment without this program's settings: the child gets those it needs by message."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TENKAIGEN_")}


def exit_words(returncode: int | None) -> str:
    """Say in words how a process ended."""
    if returncode is None:
        return "did not end"
    if returncode == 0:
        return "was stopped"
    if returncode > 0:
        return f"ended with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = ", perhaps by the kernel for want of memory" if -returncode == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def last_words(tail: Iterable[str]) -> str:
    """The line that most likely says why a process died, out of the last lines of its output."""
    cause = ""
    for line in tail:
        # What follows is the interpreter's list of stacks, not the cause.
        if line.startswith(("Fatal Python error", "Current thread", "Thread 0x")):
            return cause or line
        cause = line
    return cause[:500]
