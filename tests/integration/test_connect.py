"""Connecting, and in words why that fails: each says where, never the password, and what to do."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from pydantic import SecretStr

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.address import LISTEN_URL, parse_address
from tenkaigen_worker.database.connect import connect, open_pool, resolve_dsn
from tenkaigen_worker.database.pooler import Pooler, find_pooler
from tenkaigen_worker.errors import DatabaseError
from tests.integration.gate import over_tcp

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


class Session:
    """As much of a connection as a look for poolers needs: what it was greeted with, and who answers it."""

    def __init__(self, greeted: int, *answers: int) -> None:
        self._greeted = greeted
        self._answers = cycle(answers)
        self.open = True

    def get_server_pid(self) -> int:
        return self._greeted

    async def fetchval(self, _: str) -> int:
        return next(self._answers)

    async def close(self) -> None:
        self.open = False


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([Session(1, 1)], Pooler.NONE),
        ([Session(77, 1), Session(78, 2)], Pooler.SESSION),
        ([Session(77, 1), Session(78, 1)], Pooler.TRANSACTION),
        ([Session(77, 1, 1, 2), Session(78, 3, 4)], Pooler.TRANSACTION),
        ([Session(77, 1)], Pooler.TRANSACTION),  # there is room for one only
    ],
)
async def test_a_pooler_is_found_out(sessions: list[Session], expected: Pooler) -> None:
    waiting = list(sessions)

    async def meet() -> Any:
        if not waiting:
            raise DatabaseError("no more")
        return waiting.pop(0)

    assert await find_pooler(meet) is expected
    assert not any(session.open for session in sessions)


async def test_the_server_ends_what_was_given_up_and_waits_for_no_lock_for_long(database: str) -> None:
    for given_up, statement, lock in ((30.0, "31s", "10s"), (2.5, "3500ms", "2500ms")):
        async with await open_pool(DatabaseSettings(command_timeout_seconds=given_up), database, "tests") as pool:
            assert await pool.fetchval("SHOW statement_timeout") == statement
            assert await pool.fetchval("SHOW lock_timeout") == lock


async def test_the_kernel_watches_tcp_connections(database: str) -> None:
    watched = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}
    async with (
        over_tcp(database) as gate,
        await open_pool(DatabaseSettings(), gate.dsn, "tests") as pool,
        pool.acquire() as connection,
    ):
        link = cast("Any", connection)._transport.get_extra_info("socket")
        assert link.family == socket.AF_INET
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert {name: link.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in watched} == watched


async def test_a_password_that_changed_is_read_again(server: str, tmp_path: Path) -> None:
    """A file of passwords is read whenever one connects, so a new password needs no restart."""
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    passwords.write_text("*:*:*:*:right\n")
    async with _strict_user(server) as name:
        dsn = f"{server.replace('postgres@', f'{name}@')}&passfile={passwords}"
        async with await open_pool(DatabaseSettings(pool_size=2), dsn, "tests") as pool:
            admin = await asyncpg.connect(server)
            await admin.execute(f"ALTER ROLE {name} PASSWORD 'newer'")
            await admin.close()
            async with pool.acquire():
                with pytest.raises(asyncpg.InvalidPasswordError):
                    await pool.fetchval("SELECT 1")
                passwords.write_text("*:*:*:*:newer\n")
                assert await pool.fetchval("SELECT 1") == 1


async def test_what_is_wrong_with_a_connection_names_its_setting(server: str) -> None:
    with pytest.raises(DatabaseError, match=r"correct the end of database\.listen_url$"):
        await connect(DatabaseSettings(), server.replace("/postgres?", "/nowhere?"), "tests", setting=LISTEN_URL)


async def test_what_is_wrong_with_listen_url_is_said_of_listen_url(tmp_path: Path) -> None:
    wrong = f"postgresql://me:{PASSWORD}/x@host/shop"
    settings = DatabaseSettings(url=SecretStr("postgresql://db/shop"), listen_url=SecretStr(wrong))

    with pytest.raises(DatabaseError, match=r"^database\.listen_url cannot be read") as refused:
        async with resolve_dsn(settings, tmp_path):
            pass
    assert PASSWORD not in str(refused.value)
    assert os.listdir(tmp_path) == []


def test_an_embedded_dsn_says_where_it_is(server: str) -> None:
    address = parse_address(server)

    assert (address.port, address.database, address.user, address.password) == ("5432", "postgres", "postgres", None)
    assert address.host.startswith("/")
