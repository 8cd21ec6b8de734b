"""Ending on purpose: Ctrl-C, SIGTERM, or the death of whoever started us."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable


def on_stop_signals(stop: Callable[[], object]) -> None:
    """Call ``stop`` at every SIGINT and SIGTERM of the running event loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def cancel_on_stop_signals() -> None:
    """Cancel the running task at SIGINT and SIGTERM, so that every ``async with`` of it closes what it opened."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - only ever called inside a task
    on_stop_signals(task.cancel)


def on_stdin_closed(stop: Callable[[], None]) -> None:
    """Call ``stop`` once standard input ends: a supervisor that was killed cannot say goodbye, but its pipe closes."""
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.fileno()

    def read() -> None:
        if not os.read(stdin, 1024):
            loop.remove_reader(stdin)
            stop()

    loop.add_reader(stdin, read)
