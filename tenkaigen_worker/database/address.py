"""What a database URL says, without its password."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from tenkaigen_worker.errors import DatabaseError

_MALFORMED = (
    "database.{setting} cannot be read. It should look like postgresql://user:password@host:5432/database{embedded}; "
    "in the password write @ as %40, / as %2F, : as %3A, ? as %3F, # as %23 and % as %25"
)
URL = "url"
LISTEN_URL = "listen_url"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database is and who we are there; several hosts and ports are separated by commas.

    ``url`` is the DSN without its password, ``password`` that one; ``setting`` names the one it was read from.
    """

    host: str
    port: str
    database: str
    user: str
    url: str
    password: str | None
    setting: str = URL

    def __str__(self) -> str:
        named = {"host": self.host, "port": self.port, "database": self.database, "user": self.user}
        return ", ".join(f"{name} {value or '(default)'}" for name, value in named.items())

    def __repr__(self) -> str:
        return f"Address({self})"


def parse_address(dsn: str, setting: str = URL) -> Address:
    """Read a DSN, the value of ``database.<setting>``, as asyncpg does.

    Raises :class:`~tenkaigen_worker.errors.DatabaseError` when it is malformed, and quotes nothing of it then: while a
    password is not percent-encoded, any part of the URL may be a piece of it.
    """
    try:
        parts = urlsplit(dsn)
        query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError:
        raise DatabaseError(malformed(setting)) from None

    login, _, where = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    hosts, ports = _split_hosts(where)
    port = ",".join(ports) or query.get("port") or "5432"

    readable = parts.scheme in {"postgresql", "postgres"} and not parts.fragment
    ambiguous = "@" in login or "@" in parts.path or "/" in parts.path[1:]
    if not readable or ambiguous or not all(_is_port(number) for number in port.split(",")):
        raise DatabaseError(malformed(setting))

    secret = query.pop("password", None)
    netloc = f"{user}@{where}" if user else where
    return Address(
        host=unquote(",".join(hosts)) or query.get("host", ""),
        port=port,
        database=unquote(parts.path[1:]) or query.get("dbname") or query.get("database", ""),
        user=unquote(user) or query.get("user", ""),
        url=urlunsplit((parts.scheme, netloc, parts.path or "/", urlencode(query, quote_via=quote, safe="/"), "")),
        password=unquote(password) or secret,
        setting=setting,
    )


def malformed(setting: str) -> str:
    """What to say of a URL that cannot be read, and what would be right."""
    return _MALFORMED.format(setting=setting, embedded=", or be the word embedded" if setting == URL else "")


def _split_hosts(where: str) -> tuple[list[str], list[str]]:
    """Split ``a:1,[::1]:2,c`` into its hosts and the ports that are there."""
    hosts, ports = [], []
    for spec in filter(None, where.split(",")):
        host, colon, port = spec.rpartition(":")
        if colon and not spec.endswith("]"):
            hosts.append(host)
            ports.append(port)
        else:
            hosts.append(spec)
    return hosts, ports


def _is_port(number: str) -> bool:
    return number.isascii() and number.isdecimal() and 0 < int(number) < 65_536
