"""Which ways to a database are refused because they may be plaintext, and which are doubted."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from tenkaigen_worker.config import DatabaseSettings
from tenkaigen_worker.database.address import LISTEN_URL, parse_address
from tenkaigen_worker.database.connect import resolve_dsn
from tenkaigen_worker.database.tls import check_way, is_local
from tenkaigen_worker.errors import DatabaseError

REMOTE = "postgresql://me@db.example/shop"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGSERVICE", "PGSSLMODE", "PGSSLROOTCERT"):
        monkeypatch.delenv(name, raising=False)


def doubt(dsn: str, *, allow_plaintext: bool = False) -> str | None:
    return check_way(parse_address(dsn), allow_plaintext=allow_plaintext)


def refusal(dsn: str) -> str:
    with pytest.raises(DatabaseError) as refused:
        doubt(dsn)
    return str(refused.value)


@pytest.mark.parametrize(
    ("dsn", "local"),
    [
        ("postgresql://me@localhost/shop", True),
        ("postgresql://me@127.0.0.1:5433/shop", True),
        ("postgresql://me@127.8.9.1/shop", True),
        ("postgresql://me@[::1]:5433/shop", True),
        ("postgresql://me@%2Frun%2Fpg/shop", True),
        ("postgresql:///shop?host=/run/pg", True),
        ("postgresql:///shop", True),
        ("postgresql://me@localhost,127.0.0.1/shop", True),
        ("postgresql://me@localhost,db.example/shop", False),
        ("postgresql://me@db.example/shop", False),
        ("postgresql://me@10.0.0.7/shop", False),
        ("postgresql://me@192.168.1.7/shop", False),
        ("postgresql://me@[fd00::7]/shop", False),
        ("postgresql://me@localhost.example/shop", False),
        ("postgresql://me@0.0.0.0/shop", False),
        ("postgresql:///shop?host=db.example", False),
        ("postgresql:///shop?service=somewhere", False),
    ],
)
def test_only_this_machine_is_local(dsn: str, local: bool) -> None:
    assert is_local(parse_address(dsn)) is local


@pytest.mark.parametrize(("name", "value"), [("PGHOST", "db.example"), ("PGSERVICE", "somewhere")])
def test_the_environment_may_lead_elsewhere(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)

    assert not is_local(parse_address("postgresql:///shop"))
    assert is_local(parse_address("postgresql://localhost/shop"))


@pytest.mark.parametrize("mode", ["", "?sslmode=disable", "?sslmode=allow", "?sslmode=prefer"])
def test_what_may_be_plaintext_is_refused_unless_told(mode: str) -> None:
    said = refusal(REMOTE + mode)

    assert said.startswith("the way to the database may be plaintext (host db.example, port 5432, ")
    assert ("allows that" if mode else "without sslmode TLS is only tried") in said
    assert "sslmode=verify-full&sslrootcert=FILE" in said
    assert said.endswith("set database.allow_plaintext: true")
    assert doubt(REMOTE + mode, allow_plaintext=True) is None
    assert doubt("postgresql://me@localhost/shop" + mode) is None


def test_require_is_doubted_where_it_verifies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "anybody may pretend to be the server" in (doubt(f"{REMOTE}?sslmode=require") or "")
    assert doubt("postgresql://me@127.0.0.1/shop?sslmode=require") is None
    assert doubt(f"{REMOTE}?sslmode=require&sslrootcert=/ca.crt") is None

    monkeypatch.setenv("PGSSLROOTCERT", "/ca.crt")
    assert doubt(f"{REMOTE}?sslmode=require") is None


@pytest.mark.parametrize("query", ["sslmode=verify-full&sslrootcert=/ca.crt", "sslmode=verify-full&sslrootcert=system"])
def test_a_verified_way_is_not_doubted(query: str) -> None:
    assert doubt(f"{REMOTE}?{query}") is None


def test_the_mode_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert doubt(REMOTE) is None
    assert refusal(f"{REMOTE}?sslmode=prefer")


@pytest.mark.parametrize("mode", ["", "sslmode=require&", "sslmode=verify-ca&"])
@pytest.mark.parametrize("host", ["db.example", "localhost"])
def test_public_authorities_need_the_name_checked(host: str, mode: str) -> None:
    said = refusal(f"postgresql://{host}/shop?{mode}sslrootcert=system")

    assert said.startswith("sslrootcert=system in database.url needs sslmode=verify-full")


@pytest.mark.parametrize(
    ("url", "listen_url", "setting"),
    [(REMOTE, None, "database.url"), (f"{REMOTE}?sslmode=verify-full", REMOTE, "database.listen_url")],
)
async def test_both_urls_are_refused_before_anything_starts(
    url: str, listen_url: str | None, setting: str, tmp_path: Path
) -> None:
    settings = DatabaseSettings(url=SecretStr(url), listen_url=SecretStr(listen_url) if listen_url else None)

    with pytest.raises(DatabaseError, match=f"to {setting}; or, on a network that you trust"):
        async with resolve_dsn(settings, tmp_path):
            pass


async def test_a_doubtful_way_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{REMOTE}?sslmode=require"
    async with resolve_dsn(DatabaseSettings(url=SecretStr(url)), tmp_path) as dsn:
        assert dsn == url

    assert [record.action for record in caplog.records] == ["tls_unverified"]  # type: ignore[attr-defined]


def test_the_setting_is_named_in_a_doubt() -> None:
    address = parse_address(f"{REMOTE}?sslmode=require", LISTEN_URL)

    assert "sslmode=require in database.listen_url" in (check_way(address, allow_plaintext=False) or "")
