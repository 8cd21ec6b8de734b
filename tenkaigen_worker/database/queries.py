"""Reads the queries that stand in ``.sql`` files, each under a line ``-- name: ...``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

_HEADER = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_queries(file: str) -> Mapping[str, str]:
    """All queries of a file beside this module, by name and without the comments above them.

    Raises ``ValueError`` when a name stands twice.
    """
    _, *parts = _HEADER.split((Path(__file__).parent / file).read_text(encoding="utf-8"))
    names, texts = parts[::2], parts[1::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{file}: a query name stands twice")

    return MappingProxyType({name: _without_comments(text) for name, text in zip(names, texts, strict=True)})


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--")).strip().rstrip(";")
