"""Calling one hook of one plugin: with a time limit, and so that nothing it does reaches the rest of the program."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pluggy import HookImpl

from tenkaigen_worker.plugin.problems import describe_error
from tenkaigen_worker.plugin.types import Refused


class HookFailed(Exception):
    """A plugin's hook raised, took too long, or answered nonsense; the text says which."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a call ended. Kept as a value: a future cannot hold ``StopIteration``, a task not ``SystemExit``."""

    value: Any = None
    error: BaseException | None = None


class Caller:
    """Calls hooks: plain functions in a thread each, ``async`` ones on the event loop."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._overdue: set[HookImpl] = set()

    async def call(self, implementation: HookImpl, **arguments: Any) -> Any:
        """Answer what the hook answered; raises ``Refused`` as the hook did, :class:`HookFailed` for all else.

        A thread cannot be stopped: a hook whose last call has not come back is not called again until it has.
        """
        if implementation in self._overdue:
            raise HookFailed(f"a call that took more than {self._timeout:g} s has still not come back")

        values = [arguments[name] for name in implementation.argnames]
        function = implementation.function
        if inspect.iscoroutinefunction(function):
            work: asyncio.Future[_Outcome] = asyncio.ensure_future(_on_loop(function, values))
        else:
            work = _in_thread(function, values)
        try:
            done, _ = await asyncio.wait({work}, timeout=self._timeout)
        finally:
            if isinstance(work, asyncio.Task):
                work.cancel()

        if not done:
            self._overdue.add(implementation)
            work.add_done_callback(lambda _: self._overdue.discard(implementation))
            raise HookFailed(f"it took more than {self._timeout:g} s")
        return _open(work.result())


def _open(outcome: _Outcome) -> Any:
    if outcome.error is None:
        return outcome.value
    if isinstance(outcome.error, Refused):
        raise outcome.error
    raise HookFailed(describe_error(outcome.error)) from outcome.error


async def _on_loop(function: Callable[..., Awaitable[Any]], values: Sequence[Any]) -> _Outcome:
    try:
        return _Outcome(value=await function(*values))
    except BaseException as error:
        return _Outcome(error=error)


def _in_thread(function: Callable[..., Any], values: Sequence[Any]) -> asyncio.Future[_Outcome]:
    """Run in a daemon thread of its own: a hook that hangs blocks no pool, and not the program's end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Outcome] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(outcome: _Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    def work() -> None:
        try:
            outcome = _Outcome(value=context.run(function, *values))
        except BaseException as error:
            outcome = _Outcome(error=error)
        with suppress(RuntimeError):  # the event loop has ended meanwhile
            loop.call_soon_threadsafe(deliver, outcome)

    threading.Thread(target=work, name=f"hook-{function.__name__}", daemon=True).start()
    return future
