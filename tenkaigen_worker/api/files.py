"""Finished pictures under ``/files``: those of local storage, and the way to those that lie elsewhere."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path, PurePosixPath

from aiohttp import web

from tenkaigen_worker.access import Scope
from tenkaigen_worker.api.callers import ANYBODY, CALLERS
from tenkaigen_worker.api.errors import Problem
from tenkaigen_worker.api.parts import PARTS, Files
from tenkaigen_worker.errors import StorageError
from tenkaigen_worker.storage.keys import is_upload, owner_folder

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".json": "application/json"}


async def get_file(request: web.Request) -> web.StreamResponse:
    """``GET /files/{key}``: the file, for ever, or the way to where it is now. Uploads are not given out.

    Whoever knows the key of a public file may have it: keys cannot be guessed. Of a private bucket everybody sees what
    the jobs that they may look at have made, and nobody hears what else is there.
    """
    key = request.match_info["key"]
    files = request.app[PARTS].files
    caller = await request.app[CALLERS].identify(request, Scope.READ) if files.private else ANYBODY
    own = caller.asker.sees_all or key.startswith(owner_folder(caller.asker.user_id))
    if own and not is_upload(key):
        if path := await files.find(key):
            return _on_this_machine(path, key)
        if link := await _elsewhere(files, key):
            # For this once: the link may be good for minutes only.
            return web.Response(status=HTTPStatus.FOUND, headers={"Location": link, "Cache-Control": "no-store"})
    raise Problem(HTTPStatus.NOT_FOUND, "file_not_found", f"there is no file {key[:200]!r}")


def _on_this_machine(path: Path, key: str) -> web.FileResponse:
    headers = {
        "Content-Type": _TYPES.get(PurePosixPath(key).suffix, "application/octet-stream"),
        "Cache-Control": "public, max-age=31536000, immutable",
    }
    return web.FileResponse(path, headers=headers)


async def _elsewhere(files: Files, key: str) -> str | None:
    """The link to a file in another place; a name that no file can have has none."""
    try:
        return await files.link(key)
    except StorageError as error:
        if error.permanent:
            return None
        raise
