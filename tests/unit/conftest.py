"""Fixtures for tests of one module."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenkaigen_worker.plugin import manager


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for drop-ins, with nothing shipped beside it."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(manager, "shipped", lambda folder: empty)
    folder = tmp_path / "drop-ins"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands that run in this process set levels, and other tests read the log."""
    root, ours = logging.getLogger(), logging.getLogger("tenkaigen")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
