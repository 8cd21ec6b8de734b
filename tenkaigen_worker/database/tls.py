"""TLS on the way to the database: what a URL asks for, what is refused, and what a connection really has."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from tenkaigen_worker.database.address import Address
from tenkaigen_worker.errors import DatabaseError
from tenkaigen_worker.hosts import is_loopback

SYSTEM = "system"  # as sslrootcert: the authorities that this machine trusts

# What asyncpg and libpq do without sslmode, and the modes that may end in plaintext; see libpq's table of them.
_DEFAULT_MODE = "prefer"
_MAY_BE_PLAINTEXT = frozenset({"disable", "allow", "prefer"})
_STRICT = "verify-full"

HOW = f"sslmode={_STRICT}&sslrootcert=FILE, or sslrootcert={SYSTEM} where a public authority signed"


def check_way(address: Address, *, allow_plaintext: bool) -> str | None:
    """Refuse a way that may lead over a network in plaintext; answer what is doubtful about one that may not, if any.

    Raises :class:`~tenkaigen_worker.errors.DatabaseError`, also for a combination that makes no sense.
    """
    setting, mode = f"database.{address.setting}", mode_of(address)
    if _root_of(address) == SYSTEM and mode != _STRICT:
        raise DatabaseError(
            f"sslrootcert={SYSTEM} in {setting} needs sslmode={_STRICT} ({address}): any site has a certificate of a "
            "public authority, so that only the name tells who it is"
        )
    if is_local(address):
        return None
    if mode in _MAY_BE_PLAINTEXT and not allow_plaintext:
        why = f"sslmode={mode} allows that" if _given_mode(address) else "without sslmode TLS is only tried"
        raise DatabaseError(
            f"the way to the database may be plaintext ({address}): {why}. Add {HOW}, to {setting}; "
            "or, on a network that you trust, set database.allow_plaintext: true"
        )
    if mode == "require" and _root_of(address) is None:
        return f"sslmode=require in {setting} encrypts, but anybody may pretend to be the server: use {HOW}"
    return None


def tls_options(address: Address) -> dict[str, Any]:
    """What asyncpg has to be told beyond the URL, because it does not know ``sslrootcert=system``."""
    if _root_of(address) != SYSTEM:
        return {}
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["postgresql"])
    query = _query(address)
    if "sslcert" in query:
        context.load_cert_chain(query["sslcert"], query.get("sslkey"), query.get("sslpassword", ""))
    return {"ssl": context}


def is_local(address: Address) -> bool:
    """Whether every host that the URL names is this machine: loopback or a Unix socket.

    A host that only a service file names could be anywhere. Private networks are networks, too.
    """
    hosts = address.host or os.environ.get("PGHOST", "")
    if not hosts:
        return not ("service" in _query(address) or "PGSERVICE" in os.environ)
    return all(_is_this_machine(host.strip("[]")) for host in hosts.split(","))


def mode_of(address: Address) -> str:
    """The ``sslmode`` that holds; asyncpg takes it from the environment, too."""
    return _given_mode(address) or _DEFAULT_MODE


def negotiated(connection: Any) -> str | None:
    """The TLS version that our own socket really has, or ``None`` for plaintext."""
    secured = connection._transport.get_extra_info("ssl_object")
    return secured.version() if secured else None


def why_not_trusted(fault: ssl.SSLCertVerificationError, where: Address) -> str:
    """What is wrong with the server's certificate, and what to do."""
    setting = f"database.{where.setting}"
    if fault.verify_message.startswith(("Hostname mismatch", "IP address mismatch")):
        return f"the server's certificate is for another host name ({where}): write the one it has into {setting}"
    if "expired" in fault.verify_message:
        return f"the server's certificate has expired ({where}): renew it at the server"
    return (
        f"the server's certificate is not to be trusted ({where}): {fault.verify_message}; does sslrootcert in "
        f"{setting} name the file of the authority that signed it?"
    )


async def server_side(connection: Any) -> str | None:
    """The TLS version that the server sees on its side, which is a pooler's where one is in between."""
    row: asyncpg.Record | None = await connection.fetchrow(
        "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl"
    )
    return row["version"] if row else None


def _is_this_machine(host: str) -> bool:
    return host.startswith("/") or is_loopback(host)


def _given_mode(address: Address) -> str | None:
    return _query(address).get("sslmode") or os.environ.get("PGSSLMODE")


def _root_of(address: Address) -> str | None:
    return _query(address).get("sslrootcert") or os.environ.get("PGSSLROOTCERT")


def _query(address: Address) -> Mapping[str, str]:
    return dict(parse_qsl(urlsplit(address.url).query))
