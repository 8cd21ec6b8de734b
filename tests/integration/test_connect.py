"""Connecting, and in words why that fails: each says where, never the password, and what to do."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from pydantic import SecretStr

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database import pooler
from tenkaigen_worker.database.address import parse_address
from tenkaigen_worker.database.connect import connect, keep_alive, open_pool, resolve_dsn
from tenkaigen_worker.database.pooler import behind_transaction_pooler
from tenkaigen_worker.errors import DatabaseError

PASSWORD = "k4ngaroo"


async def refusal(dsn: str, **settings: Any) -> str:
    """What both ways to connect say; neither may say the password."""
    for way in (connect, open_pool):
        with pytest.raises(DatabaseError) as refused:
            await way(DatabaseSettings(**settings), dsn, "tests")
        assert PASSWORD not in str(refused.value)
        assert refused.value.__suppress_context__
    return str(refused.value)


async def test_a_connection_that_cannot_be_prepared_is_closed(
    database: str, pool: asyncpg.Pool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[asyncpg.Connection[Any]] = []

    async def refuse(connection: asyncpg.Connection[Any], *_: object, **__: object) -> None:
        made.append(connection)
        raise asyncpg.InterfaceError("the server went away")

    monkeypatch.setattr(asyncpg.Connection, "set_type_codec", refuse)

    with pytest.raises(DatabaseError):
        await connect(DatabaseSettings(), database, "tests")
    assert [connection.is_closed() for connection in made] == [True]


async def test_jsonb_is_python(pool: asyncpg.Pool[Any]) -> None:
    value = {"ünï": [1, 2.5, None, True]}

    assert await pool.fetchval("SELECT $1::jsonb", value) == value


async def test_the_program_is_named_and_statements_have_a_limit(database: str) -> None:
    async with await open_pool(DatabaseSettings(command_timeout_seconds=0.05), database, "tenkaigen tests") as pool:
        assert await pool.fetchval("SHOW application_name") == "tenkaigen tests"
        with pytest.raises(TimeoutError):
            await pool.execute("SELECT pg_sleep(60)")


async def test_an_unknown_database(server: str) -> None:
    said = await refusal(server.replace("/postgres?", "/nowhere?"))

    assert said.startswith("there is no such database (host /")
    assert "database nowhere, user postgres): create it" in said


async def test_a_wrong_password(server: str) -> None:
    async with _strict_user(server) as name:
        said = await refusal(server.replace("postgres@", f"{name}:{PASSWORD}@"))

    assert said.startswith("the database refused the password (host /")
    assert f"user {name}): check database.url" in said


async def test_an_unknown_user(server: str) -> None:
    said = await refusal(server.replace("postgres@", f"nobody_known:{PASSWORD}@"))

    assert 'role "nobody_known" does not exist' in said


@asynccontextmanager
async def _strict_user(server: str) -> AsyncIterator[str]:
    """A user who has to give a password, which is not ours."""
    name = "strict_user"
    admin = await asyncpg.connect(server)
    await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'right'")
    with _rule(await admin.fetchval("SHOW hba_file"), f"local all {name} scram-sha-256"):
        await admin.execute("SELECT pg_reload_conf()")
        yield name
    await admin.execute("SELECT pg_reload_conf()")
    await admin.execute(f"DROP ROLE {name}")
    await admin.close()


@contextmanager
def _rule(file: str, line: str) -> Iterator[None]:
    """Put a line before the server's rules about who may come in."""
    before = Path(file).read_text()
    Path(file).write_text(f"{line}\n{before}")
    yield
    Path(file).write_text(before)


async def test_nobody_listens(free_port: int) -> None:
    said = await refusal(f"postgresql://me:{PASSWORD}@127.0.0.1:{free_port}/shop")

    assert said.startswith(
        f"the database cannot be reached (host 127.0.0.1, port {free_port}, database shop, user me): "
    )
    assert said.endswith("; is it running?")


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@asynccontextmanager
async def _fake_server(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[str]:
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(cast("asyncio.Task[None]", asyncio.current_task()))
        await answer(reader, writer)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"postgresql://me:{PASSWORD}@127.0.0.1:{server.sockets[0].getsockname()[1]}/shop"
    await asyncio.gather(*serving)


async def test_a_server_that_does_not_answer() -> None:
    async def silence(*_: object) -> None: ...

    async with _fake_server(silence) as dsn:
        said = await refusal(dsn, connect_timeout_seconds=0.05)

    assert said.startswith("no answer within 0.05 s (host 127.0.0.1")


async def test_a_server_without_tls() -> None:
    async def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"N")

    async with _fake_server(no_tls) as dsn:
        said = await refusal(f"{dsn}?sslmode=require")

    assert said.startswith("the server speaks no TLS (host 127.0.0.1")


async def test_a_server_with_broken_tls() -> None:
    async def broken_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request")

    async with _fake_server(broken_tls) as dsn:
        said = await refusal(f"{dsn}?sslmode=require")

    assert said.startswith("TLS failed (host 127.0.0.1")


async def test_a_missing_certificate() -> None:
    said = await refusal(f"postgresql://me:{PASSWORD}@127.0.0.1/shop?sslmode=verify-full&sslrootcert=/no/such.crt")

    assert said.startswith("TLS cannot be set up (host 127.0.0.1")
    assert said.endswith("a file that sslrootcert, sslcert or sslkey names does not exist")


async def test_a_name_that_no_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)

    said = await refusal(f"postgresql://me:{PASSWORD}@db.invalid/shop")

    assert said.startswith("there is no host of that name (host db.invalid, port 5432")


async def test_a_malformed_url_is_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = DatabaseSettings(url=SecretStr(f"postgresql://me:{PASSWORD}/x@host/shop"))

    with pytest.raises(DatabaseError, match=r"database\.url cannot be read") as refused:
        async with resolve_dsn(settings, tmp_path):
            pass
    assert PASSWORD not in str(refused.value)
    assert os.listdir(tmp_path) == []


async def test_a_configured_url_is_taken_as_it_is(tmp_path: Path) -> None:
    url = "postgresql://me:secret@db.example:5433/shop?sslmode=require"

    async with resolve_dsn(DatabaseSettings(url=SecretStr(url)), tmp_path) as dsn:
        assert dsn == url


async def test_prepared_statements_stay_away_from_transaction_poolers(
    pool: asyncpg.Pool[Any], monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    asked: dict[str, Any] = {}

    async def note(dsn: str, **options: Any) -> Any:
        asked.update(options)
        raise OSError("enough")

    monkeypatch.setattr(asyncpg, "connect", note)

    for port, size in (("6543", 0), ("6432", 0), ("5432", None)):
        asked.clear()
        with pytest.raises(DatabaseError):
            await connect(DatabaseSettings(), f"postgresql://me@pooler.example:{port}/shop", "tests")
        assert asked.get("statement_cache_size") == size


async def test_a_pooler_that_lends_connections_is_found_out(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not await behind_transaction_pooler(DatabaseSettings(), database)

    lent = await connect(DatabaseSettings(), database, "tests")

    async def lend(*_: object) -> asyncpg.Connection[Any]:
        return lent

    monkeypatch.setattr(pooler, "connect", lend)
    assert await behind_transaction_pooler(DatabaseSettings(), database)


def test_the_kernel_watches_tcp_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as link:
        keep_alive(_Connection(link))
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


class _Connection:
    """As much of asyncpg's connection as is needed to find its socket."""

    def __init__(self, link: socket.socket) -> None:
        self._transport = self
        self._link = link

    def get_extra_info(self, name: str) -> socket.socket:
        assert name == "socket"
        return self._link


def test_an_embedded_dsn_says_where_it_is(server: str) -> None:
    address = parse_address(server)

    assert (address.port, address.database, address.user, address.password) == ("5432", "postgres", "postgres", None)
    assert address.host.startswith("/")
