"""The storage that the settings name."""

from __future__ import annotations

from tenkaigen_worker.config import Settings
from tenkaigen_worker.storage.local import LocalStorage


def make_storage(settings: Settings) -> LocalStorage:
    """Build the storage named by ``storage.kind``; nothing is written or connected yet."""
    local = settings.storage.local
    return LocalStorage(local.path or settings.state_dir / "files", local.public_url or _api_url(settings))


def _api_url(settings: Settings) -> str:
    """Where a browser on this machine finds the API's files."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api.host, settings.api.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.api.port}/files"
