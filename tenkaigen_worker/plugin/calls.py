"""Calling hooks: with a time limit each, and so that nothing they do reaches the rest of the program."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from time import monotonic
from typing import Any, Generic, TypeVar

from pluggy import HookImpl

from tenkaigen_worker.plugin.problems import describe_error
from tenkaigen_worker.plugin.types import Refused

T = TypeVar("T")

# Calls of one hook that are past their time limit and still run; threads cannot be stopped.
MOST_OVERDUE = 4


class HookFailed(Exception):
    """A plugin's hook raised, took too long, or answered nonsense; the text says which."""

    def __init__(self, implementation: HookImpl, why: str) -> None:
        super().__init__(why)
        self.implementation = implementation


class HookRefused(HookFailed):
    """A plugin's hook raised ``Refused``, which is the cause of this."""


class WrongAnswer(Exception):
    """What a hook answered is not what it may answer."""


@dataclass(frozen=True, slots=True)
class Chain(Generic[T]):
    """How a hook's implementations hand on a value.

    ``arguments`` names what they may ask for, ``accept`` makes the next value from an answer and the value before it,
    or raises :class:`WrongAnswer`.
    """

    arguments: Callable[[T], Mapping[str, Any]]
    accept: Callable[[Any, T], T]

    def values(self, implementation: HookImpl, value: T) -> list[Any]:
        """What one implementation is called with."""
        arguments = self.arguments(value)
        return [arguments[name] for name in implementation.argnames]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How calls ended. Kept as a value: a future cannot hold ``StopIteration``, a task not ``SystemExit``."""

    value: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class _Turn:
    """Whose turn it is, and since when (seconds); written by the thread that calls, read by the event loop."""

    now: tuple[HookImpl, float]
    given_up: bool = field(default=False, init=False)


class Caller:
    """Calls hooks: plain functions in a thread, ``async`` ones on the event loop."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._overdue: defaultdict[HookImpl, set[asyncio.Future[_Outcome]]] = defaultdict(set)

    async def call(self, implementations: Sequence[HookImpl], value: T, chain: Chain[T]) -> T:
        """Call one after the other, each with what came of the one before it; answers what came of the last.

        Raises :class:`HookRefused` or :class:`HookFailed`, and calls no more, when one of them ends badly. Plain
        functions that follow each other share a thread: going to another thread takes longer than most hooks do.
        A call that hangs costs nobody but its own job: the next job has a thread of its own. Once
        :data:`MOST_OVERDUE` calls of a hook are overdue, the next one first waits, at most the time limit, for one of
        them to come back.
        """
        for is_async, group in groupby(implementations, key=_is_async):
            members = list(group)
            for together in [[member] for member in members] if is_async else [members]:
                for implementation in together:
                    await self._wait_for_overdue(implementation)
                turn = _Turn((together[0], monotonic()))
                if is_async:
                    work: asyncio.Future[_Outcome] = asyncio.ensure_future(_on_loop(together[0], value, chain))
                else:
                    work = _in_thread(together, value, chain, turn)
                value = _open(await self._watch(work, turn), turn.now[0])
        return value

    async def _wait_for_overdue(self, implementation: HookImpl) -> None:
        overdue = self._overdue[implementation]
        if len(overdue) >= MOST_OVERDUE:
            await asyncio.wait(overdue, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
        if len(overdue) >= MOST_OVERDUE:
            text = f"{len(overdue)} calls that took more than {self._timeout:g} s have still not come back"
            raise HookFailed(implementation, text)

    async def _watch(self, work: asyncio.Future[_Outcome], turn: _Turn) -> _Outcome:
        """Wait for the work to end, as long as nobody's turn takes longer than the limit."""
        try:
            while not work.done():
                implementation, since = turn.now
                left = since + self._timeout - monotonic()
                if left <= 0:
                    raise HookFailed(implementation, f"it took more than {self._timeout:g} s")
                await asyncio.wait({work}, timeout=left)
        finally:
            if not work.done():
                turn.given_up = True
                overdue = self._overdue[turn.now[0]]
                overdue.add(work)
                work.add_done_callback(overdue.discard)
                if isinstance(work, asyncio.Task):
                    work.cancel()
        return work.result()


def _is_async(implementation: HookImpl) -> bool:
    return inspect.iscoroutinefunction(implementation.function)


def _open(outcome: _Outcome, implementation: HookImpl) -> Any:
    error = outcome.error
    if error is None:
        return outcome.value
    if isinstance(error, WrongAnswer):
        raise HookFailed(implementation, str(error))
    kind = HookRefused if isinstance(error, Refused) else HookFailed
    raise kind(implementation, describe_error(error)) from error


async def _on_loop(implementation: HookImpl, value: T, chain: Chain[T]) -> _Outcome:
    try:
        answer = await implementation.function(*chain.values(implementation, value))  # type: ignore[misc]
        return _Outcome(value=chain.accept(answer, value))
    except BaseException as error:
        return _Outcome(error=error)


def _in_thread(implementations: Sequence[HookImpl], value: T, chain: Chain[T], turn: _Turn) -> asyncio.Future[_Outcome]:
    """Run in a daemon thread of its own: a hook that hangs blocks no pool, and not the program's end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Outcome] = loop.create_future()
    context = contextvars.copy_context()

    def call_all(value: T) -> T:
        for implementation in implementations:
            if turn.given_up:
                break
            turn.now = (implementation, monotonic())
            answer = context.copy().run(implementation.function, *chain.values(implementation, value))
            value = chain.accept(answer, value)
        return value

    def deliver(outcome: _Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    def work() -> None:
        try:
            outcome = _Outcome(value=call_all(value))
        except BaseException as error:
            outcome = _Outcome(error=error)
        with suppress(RuntimeError):  # the event loop has ended meanwhile
            loop.call_soon_threadsafe(deliver, outcome)

    name = f"hook-{implementations[0].function.__name__}"
    threading.Thread(target=work, name=name, daemon=True).start()
    return future
