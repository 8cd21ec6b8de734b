"""TLS to a real server with certificates made for the test: who is let through, and what is said of the others.

The server is the system's PostgreSQL: the embedded one is built without TLS.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tenkaigen_worker.cli.doctor import _tls
from tenkaigen_worker.config import DatabaseSettings, Settings
from tenkaigen_worker.database.cluster import Account, Cluster
from tenkaigen_worker.database.connect import connect, open_pool
from tenkaigen_worker.database.tls import negotiated, server_side
from tenkaigen_worker.errors import DatabaseError
from tests.certificates import Authority
from tests.conftest import oldest_binaries
from tests.integration.gate import over_tcp


class TlsCluster(Cluster):
    """A server that also listens on TCP, with TLS."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(oldest_binaries(), folder / "postgres")
        self._more = f" -c listen_addresses=127.0.0.1 -c port={port} -c ssl=on -c ssl_cert_file=own.crt"
        self._more += " -c ssl_key_file=own.key -c fsync=off"

    def give(self, certificate: Path, key: Path) -> None:
        """Put the server's certificate into its folder of files."""
        owner = self.data.stat()
        for source, name in ((certificate, "own.crt"), (key, "own.key")):
            target = self.data / name
            shutil.copy(source, target)
            os.chown(target, owner.st_uid, owner.st_gid)

    def _start(self, account: Account | None) -> None:
        authority = Authority(self.folder, "ours")
        self.give(*authority.issue("localhost"))
        super()._start(account)

    def _run(self, account: Account | None, program: str, *arguments: str) -> None:
        if program == "pg_ctl":
            *before, options = arguments
            arguments = (*before, options + self._more)
        super()._run(account, program, *arguments)


@dataclass(frozen=True, slots=True)
class Server:
    """A server with a certificate for localhost; ``root`` is the file of the authority that signed it."""

    port: int
    root: Path

    def dsn(self, query: str, host: str = "localhost") -> str:
        return f"postgresql://postgres@{host}:{self.port}/postgres?{query}"


@pytest.fixture(scope="module")
def tls_server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="tenkaigen-test-"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    cluster = TlsCluster(folder, port)
    try:
        cluster.ensure_running()
        yield Server(port, cluster.folder / "ours.crt")
    finally:
        cluster.stop()
        shutil.rmtree(folder)


async def refusal(dsn: str) -> str:
    """What both ways to connect say."""
    said = set()
    for way in (connect, open_pool):
        with pytest.raises(DatabaseError) as refused:
            await way(DatabaseSettings(), dsn, "tests")
        said.add(str(refused.value))
    (words,) = said
    return words


async def version(dsn: str) -> str | None:
    """The version that both ends say the connection has."""
    async with await open_pool(DatabaseSettings(), dsn, "tests") as pool, pool.acquire() as connection:
        ours = negotiated(connection)
        assert ours == await server_side(connection)
        return ours


async def test_the_right_authority_and_name_connect(tls_server: Server) -> None:
    assert await version(tls_server.dsn(f"sslmode=verify-full&sslrootcert={tls_server.root}")) == "TLSv1.3"


async def test_the_authorities_of_the_machine_are_named_system(
    tls_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = tls_server.dsn("sslmode=verify-full&sslrootcert=system")
    assert (await refusal(dsn)).startswith("the server's certificate is not to be trusted (host localhost, port ")

    monkeypatch.setenv("SSL_CERT_FILE", str(tls_server.root))

    assert await version(dsn) == "TLSv1.3"
    assert (await refusal(dsn.replace("localhost", "127.0.0.1"))).startswith("the server's certificate is for another")


async def test_without_tls_there_is_none(tls_server: Server) -> None:
    assert await version(tls_server.dsn("sslmode=disable")) is None


async def test_another_authority(tls_server: Server, tmp_path: Path) -> None:
    root = Authority(tmp_path, "others").root

    said = await refusal(tls_server.dsn(f"sslmode=verify-full&sslrootcert={root}"))

    assert said.startswith("the server's certificate is not to be trusted (host localhost, port ")
    assert said.endswith("does sslrootcert in database.url name the file of the authority that signed it?")


async def test_another_host_name(tls_server: Server) -> None:
    query = f"sslmode=verify-full&sslrootcert={tls_server.root}"

    said = await refusal(tls_server.dsn(query, host="127.0.0.1"))

    assert said.startswith("the server's certificate is for another host name (host 127.0.0.1, port ")
    assert said.endswith("write the one it has into database.url")
    assert await version(tls_server.dsn(query.replace("full", "ca"), host="127.0.0.1")) == "TLSv1.3"


async def test_a_server_without_tls(server: str, tls_server: Server) -> None:
    async with over_tcp(server) as gate:
        said = await refusal(f"{gate.dsn}?sslmode=verify-full&sslrootcert={tls_server.root}")

    assert said.startswith("the server speaks no TLS (host 127.0.0.1, port ")
    assert said.endswith("but sslmode in database.url asks for it")


async def test_a_file_that_is_no_certificate(tls_server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root.crt"
    root.write_text("no certificate")

    said = await refusal(tls_server.dsn(f"sslmode=verify-full&sslrootcert={root}"))

    assert said.startswith("TLS failed (host localhost")
    assert said.endswith("check sslmode and sslrootcert in database.url")


@pytest.mark.parametrize(
    ("query", "found"),
    [("sslmode=require", "TLSv1.3, sslmode=require"), ("sslmode=disable", "plaintext, to this machine")],
)
async def test_doctor_says_what_a_connection_has(tls_server: Server, query: str, found: str) -> None:
    dsn = tls_server.dsn(query)
    async with await open_pool(DatabaseSettings(), dsn, "tests") as pool:
        finding = await _tls(Settings(), dsn, pool)

    assert (finding.found, finding.remedy) == (found, "")
