"""Ending on purpose: Ctrl-C, SIGTERM, or the death of whoever started us."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable


def on_stop(stop: Callable[[], object], *, stdin_too: bool = False) -> None:
    """Call ``stop`` at every SIGINT and SIGTERM; a second call of this function replaces it.

    With ``stdin_too`` also once standard input ends: a supervisor that was killed cannot say goodbye, but its pipe
    closes.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    if not stdin_too:
        return

    stdin = sys.stdin.fileno()

    def read() -> None:
        if not os.read(stdin, 1024):
            loop.remove_reader(stdin)
            stop()

    loop.add_reader(stdin, read)


def cancel_on_stop(*, stdin_too: bool = False) -> None:
    """Cancel the running task when told to stop, so that every ``async with`` of it closes what it opened."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - only ever called inside a task
    on_stop(task.cancel, stdin_too=stdin_too)
