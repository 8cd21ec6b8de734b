"""Uploading a picture that a job can then start from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from tenkaigen_worker.api.callers import CALLER
from tenkaigen_worker.api.errors import Problem
from tenkaigen_worker.api.parts import PARTS
from tenkaigen_worker.errors import PictureError

# What boundaries and headers may take beside the file, in bytes.
_ENVELOPE = 16 * 1024
_EXAMPLE = "such as `curl -F file=@picture.png` sends"


async def post_upload(request: web.Request) -> web.Response:
    """``POST /api/uploads``: keep one picture, and answer what a job calls it."""
    uploads = request.app[PARTS].uploads
    if request.content_type != "multipart/form-data":
        sent = request.headers.get("Content-Type", "nothing")
        detail = f"the body must be sent as Content-Type: multipart/form-data, {_EXAMPLE}, not {sent[:100]}"
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
    if (request.content_length or 0) > uploads.max_bytes + _ENVELOPE:
        raise _too_large(uploads.max_bytes)

    data = await _read_file(request, uploads.max_bytes)
    try:
        kept = await uploads.keep(data, owner=request[CALLER].asker.user_id)
    except PictureError as error:
        raise Problem.of_field(HTTPStatus.BAD_REQUEST, "invalid_picture", "file", str(error)) from None
    body = {"reference": str(kept.upload), "width": kept.width, "height": kept.height}
    return web.json_response(body, status=HTTPStatus.CREATED, headers={"Cache-Control": "no-store"})


async def _read_file(request: web.Request, limit: int) -> bytes:
    """The one file of a form. The rest of the form is never held in memory, whatever its length."""
    async with _well_formed():
        form = await request.multipart()
        part = await form.next()
    if part is None:
        raise _malformed("there is no file in it")
    if not isinstance(part, BodyPartReader) or part.filename is None:
        raise _malformed("the first field in it is not a file")

    data = bytearray()
    async with _well_formed():
        while not part.at_eof():
            data += await part.read_chunk()
            if len(data) > limit:
                raise _too_large(limit)
        more = await form.next()
    if more is not None:
        raise _malformed("there is more than one field in it, or its end is missing")
    return bytes(data)


@asynccontextmanager
async def _well_formed() -> AsyncIterator[None]:
    """Turn everything that reading a form raises into a problem; a caller who hung up does not see it."""
    try:
        yield
    except (ValueError, RuntimeError, HttpProcessingError, web.RequestPayloadError, ConnectionError) as error:
        raise _malformed(f"it is cut short or damaged ({str(error)[:200]})") from None


def _malformed(why: str) -> Problem:
    detail = f"the body is not the form that is expected, one file and nothing else, {_EXAMPLE}: {why}"
    return Problem(HTTPStatus.BAD_REQUEST, "malformed_upload", detail)


def _too_large(limit: int) -> Problem:
    detail = f"the picture is larger than {limit} bytes (references.max_bytes)"
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "upload_too_large", detail)
