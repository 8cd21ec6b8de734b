"""Calling one hook of one plugin: with a time limit, and so that nothing it does reaches the rest of the program."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pluggy import HookImpl

from tenkaigen_worker.plugin.problems import describe_error
from tenkaigen_worker.plugin.types import Refused

# Calls of one hook that are past their time limit and still run; threads cannot be stopped.
MOST_OVERDUE = 4


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
        self._overdue: defaultdict[HookImpl, set[asyncio.Future[_Outcome]]] = defaultdict(set)

    async def call(self, implementation: HookImpl, **arguments: Any) -> Any:
        """Answer what the hook answered; raises ``Refused`` as the hook did, :class:`HookFailed` for all else.

        A call that hangs costs nobody but its own job: the next one has a thread of its own. Once
        :data:`MOST_OVERDUE` calls of a hook are overdue, the next one first waits, at most the time limit, for one of
        them to come back.
        """
        overdue = self._overdue[implementation]
        if len(overdue) >= MOST_OVERDUE:
            await asyncio.wait(overdue, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
        if len(overdue) >= MOST_OVERDUE:
            raise HookFailed(f"{len(overdue)} calls that took more than {self._timeout:g} s have still not come back")

        values = [arguments[name] for name in implementation.argnames]
        function = implementation.function
        if inspect.iscoroutinefunction(function):
            work: asyncio.Future[_Outcome] = asyncio.ensure_future(_on_loop(function, values))
        else:
            work = _in_thread(function, values)
        try:
            done, _ = await asyncio.wait({work}, timeout=self._timeout)
        finally:
            if not work.done():
                overdue.add(work)
                work.add_done_callback(overdue.discard)
                if isinstance(work, asyncio.Task):
                    work.cancel()

        if not done:
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
