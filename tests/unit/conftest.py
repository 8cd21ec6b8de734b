"""Fixtures for tests of one module."""

from __future__ import annotations

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
