"""Turns what asyncpg and the network raise into :class:`DatabaseError`, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from tenkaigen_worker.errors import DatabaseError

# InternalClientError is no PostgresError; OSError covers refused, reset and unresolved, TimeoutError command_timeout.
FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

# SQLSTATE classes: data that does not fit, a broken constraint, a wrong statement; and RAISE EXCEPTION.
_PERMANENT = ("22", "23", "42", "P0001")

# How poolers say that they have as many clients as they take; none uses the SQLSTATE for that. Supabase's in session
# mode, as it is now and as it was, and in transaction mode; PgBouncer's.
_FULL = (
    "max clients reached",
    "MaxClientsInSessionMode",
    "max client connections reached",
    "no more connections allowed",
)


@contextmanager
def database_faults(doing: str) -> Iterator[None]:
    """Raise :class:`DatabaseError` for anything the database or the way to it did wrong while ``doing`` something.

    It is permanent when the statement or its values were refused, not when the database was away or busy.
    """
    try:
        yield
    except FAULTS as fault:
        raise DatabaseError(f"{doing}: {explain(fault)}", permanent=_is_permanent(fault)) from fault


def is_full(fault: BaseException) -> bool:
    """Whether the server, or a pooler before it, refuses us because it has as many clients as it takes."""
    if isinstance(fault, asyncpg.TooManyConnectionsError):
        return True
    return isinstance(fault, asyncpg.PostgresError) and any(words in str(fault.args[0]) for words in _FULL)


def _is_permanent(fault: BaseException) -> bool:
    if isinstance(fault, asyncpg.PostgresError):
        return (fault.sqlstate or "").startswith(_PERMANENT)
    # What asyncpg itself refuses to send is an error of its interface and a ValueError.
    return isinstance(fault, asyncpg.InterfaceError) and isinstance(fault, ValueError)


def explain(fault: BaseException) -> str:
    """What a fault says, in one line; some have no text of their own.

    Of the server's errors only the message: their details quote rows, and rows hold prompts.
    """
    if isinstance(fault, asyncpg.PostgresError):
        return str(fault.args[0])
    if isinstance(fault, TimeoutError) and not str(fault):
        return "the database did not answer in time"
    return " ".join(str(fault).split()) or type(fault).__name__
