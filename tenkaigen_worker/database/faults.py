"""Turns what asyncpg and the network raise into :class:`DatabaseError`, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from tenkaigen_worker.errors import DatabaseError

# InternalClientError is no PostgresError; OSError covers refused, reset and unresolved, TimeoutError command_timeout.
FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


@contextmanager
def database_faults(doing: str) -> Iterator[None]:
    """Raise :class:`DatabaseError` for anything the database or the way to it did wrong while ``doing`` something."""
    try:
        yield
    except FAULTS as fault:
        raise DatabaseError(f"{doing}: {explain(fault)}") from fault


def explain(fault: BaseException) -> str:
    """What a fault says, in one line; some have no text of their own.

    Of the server's errors only the message: their details quote rows, and rows hold prompts.
    """
    if isinstance(fault, asyncpg.PostgresError):
        return str(fault.args[0])
    if isinstance(fault, TimeoutError) and not str(fault):
        return "the database did not answer in time"
    return " ".join(str(fault).split()) or type(fault).__name__
