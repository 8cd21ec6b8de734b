"""The storage that the settings name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tenkaigen_worker.config import Settings
from tenkaigen_worker.errors import ConfigError
from tenkaigen_worker.storage.base import Storage
from tenkaigen_worker.storage.local import LocalStorage

if TYPE_CHECKING:
    from tenkaigen_worker.storage.supabase import SupabaseStorage


@asynccontextmanager
async def open_storage(settings: Settings) -> AsyncIterator[Storage]:
    """Give the storage named by ``storage.kind`` while the block runs; nothing is written or connected yet.

    Raises :class:`~tenkaigen_worker.errors.ConfigError` when the key to it is missing.
    """
    storage = _make(settings)
    try:
        yield storage
    finally:
        await storage.close()


def _make(settings: Settings) -> Storage:
    if settings.storage.kind == "supabase":
        return _supabase(settings)
    local = settings.storage.local
    return LocalStorage(local.path or settings.state_dir / "files", local.public_url or _api_url(settings))


def _supabase(settings: Settings) -> SupabaseStorage:
    from tenkaigen_worker.storage.supabase import SupabaseStorage  # its library is not loaded where it is not used

    supabase = settings.storage.supabase
    if supabase.url is None or supabase.secret_key is None:  # settings without a URL do not get here
        raise ConfigError(
            "storage.kind: supabase needs the project's secret key: set TENKAIGEN_STORAGE__SUPABASE__SECRET_KEY, or "
            "SUPABASE_SECRET_KEY"
        )
    return SupabaseStorage(
        supabase,
        url=supabase.url,
        secret_key=supabase.secret_key.get_secret_value(),
        files_url=supabase.files_url or _api_url(settings),
    )


def _api_url(settings: Settings) -> str:
    """Where a browser on this machine finds the API's files."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api.host, settings.api.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.api.port}/files"
