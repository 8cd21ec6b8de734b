"""Database URLs: what they say, and that a malformed one is never quoted."""

from __future__ import annotations

import pytest

from tenkaigen_worker.database.address import parse_address
from tenkaigen_worker.errors import DatabaseError


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("postgresql://me:pw@db.example:5433/shop", "host db.example, port 5433, database shop, user me"),
        ("postgres://me@db.example/shop", "host db.example, port 5432, database shop, user me"),
        ("postgresql://", "host (default), port 5432, database (default), user (default)"),
        ("postgresql://m%40e:p%2Fw@[::1]:5433/sh%20op", "host [::1], port 5433, database sh op, user m@e"),
        ("postgresql://me@[::1]/shop", "host [::1], port 5432, database shop, user me"),
        ("postgresql://me@a:1,b:2/shop", "host a,b, port 1,2, database shop, user me"),
        ("postgresql:///shop?host=/run/pg&port=5434&user=me", "host /run/pg, port 5434, database shop, user me"),
        ("postgresql://me@h?dbname=shop", "host h, port 5432, database shop, user me"),
    ],
)
def test_a_url_in_words(dsn: str, said: str) -> None:
    assert str(parse_address(dsn)) == said


@pytest.mark.parametrize(
    ("dsn", "url", "password"),
    [
        ("postgresql://me:p%40ss@h:5433/shop?sslmode=require", "postgresql://me@h:5433/shop?sslmode=require", "p@ss"),
        ("postgresql://me@h/shop?password=pw&sslmode=require", "postgresql://me@h/shop?sslmode=require", "pw"),
        ("postgresql://me@h/shop", "postgresql://me@h/shop", None),
        ("postgresql://postgres@/postgres?host=/a%20b", "postgresql://postgres@/postgres?host=/a%20b", None),
    ],
)
def test_the_password_is_apart(dsn: str, url: str, password: str | None) -> None:
    address = parse_address(dsn)

    assert (address.url, address.password) == (url, password)
    assert password is None or password not in f"{address} {address!r}"


@pytest.mark.parametrize(
    "dsn",
    [
        "mysql://me:k4ngaroo@h/shop",
        "k4ngaroo",
        "postgresql://me:k4ngaroo@h:port/shop",
        "postgresql://me:k4ngaroo@h:99999/shop",
        "postgresql://me:k4ng@roo@h/shop",
        "postgresql://me:k4ng/aroo@h/shop",
        "postgresql://me:4/k4ngaroo@h/shop",
        "postgresql://me:k4ng#aroo@h/shop",
        "postgresql://me:4#k4ngaroo@h/shop",
        "postgresql://me:k4ng?aroo@h/shop",
        "postgresql://me:4?k4ngaroo@h/shop",
        "postgresql://me:k4ng[aroo@h/shop",
    ],
)
def test_a_malformed_url_is_refused_without_quoting_it(dsn: str) -> None:
    with pytest.raises(DatabaseError, match=r"database\.url cannot be read.* write @ as %40") as refused:
        parse_address(dsn)

    assert all(part not in str(refused.value) for part in ("k4ng", "aroo", "roo@"))
