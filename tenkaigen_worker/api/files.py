"""Finished pictures of the local storage, under ``/files``."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import PurePosixPath

from aiohttp import web

from tenkaigen_worker.api.errors import Problem
from tenkaigen_worker.api.parts import PARTS
from tenkaigen_worker.references.uploads import is_upload

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".json": "application/json"}


async def get_file(request: web.Request) -> web.StreamResponse:
    """``GET /files/{key}``: the file, for ever; a key is never written twice. Uploads are not given out."""
    key = request.match_info["key"]
    path = None if is_upload(key) else await request.app[PARTS].files.find(key)
    if path is None:
        raise Problem(HTTPStatus.NOT_FOUND, "file_not_found", f"there is no file {key[:200]!r}")
    headers = {
        "Content-Type": _TYPES.get(PurePosixPath(key).suffix, "application/octet-stream"),
        "Cache-Control": "public, max-age=31536000, immutable",
    }
    return web.FileResponse(path, headers=headers)
