"""Waiting for work that may have to be given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Await ``work``; once ``stop`` is set, cancel it wherever it is and answer ``None``."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    either: set[asyncio.Future[Any]] = {task, stopped}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        task.cancel()
        await asyncio.wait({task})

    if not stop.is_set():
        return task.result()
    if not task.cancelled():
        task.exception()  # it ended by itself at the same moment, and how does not matter any more
    return None


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``work`` in a thread. It cannot be stopped, so a cancel takes effect only once it has returned."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
