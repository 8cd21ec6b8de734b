"""The queries in .sql files: they load, and each says what serves it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tenkaigen_worker.database import queries
from tenkaigen_worker.database.queries import load_queries

FILES = sorted(path.name for path in Path(queries.__file__).parent.glob("*.sql"))


@pytest.mark.parametrize("file", FILES)
def test_every_query_has_a_comment_about_its_index(file: str) -> None:
    text = (Path(queries.__file__).parent / file).read_text(encoding="utf-8")

    for part in re.split(r"^-- name: ", text, flags=re.MULTILINE)[1:]:
        name, comment = part.splitlines()[:2]
        assert comment.startswith("-- "), f"{file}: {name} has no comment"


@pytest.mark.parametrize("file", FILES)
def test_queries_carry_no_comment_and_no_semicolon(file: str) -> None:
    for query in load_queries(file).values():
        assert query
        assert "--" not in query
        assert ";" not in query


def test_a_name_that_stands_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(queries, "__file__", str(tmp_path / "queries.py"))
    (tmp_path / "twice.sql").write_text("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n")

    with pytest.raises(ValueError, match=r"twice\.sql: a query name stands twice"):
        load_queries("twice.sql")
