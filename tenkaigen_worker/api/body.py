"""Reading what a caller sent: a JSON object, an id, an idempotency key."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any, NoReturn
from uuid import UUID

from aiohttp import web

from tenkaigen_worker.api.errors import Problem

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_KEY = re.compile(r'"(?P<quoted>[!#-\[\]-~]{1,200})"|(?P<bare>[!#-\[\]-~]{1,200})')


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object in the body.

    The content type must be ``application/json``: a page from elsewhere cannot send that without asking first.
    """
    if request.content_type != "application/json":
        sent = request.headers.get("Content-Type", "nothing")
        detail = f"the body must be sent as Content-Type: application/json, not {sent[:100]}"
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)

    raw = await request.read()
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _malformed(str(error)) from None
    if not isinstance(value, dict):
        raise _malformed('it must be an object such as {"prompt": "A dragon", "style": "Anime"}')
    return value


def read_job_id(request: web.Request) -> UUID:
    """The job's id in the path."""
    text = request.match_info["job_id"]
    job_id = read_uuid(text)
    if job_id is None:
        message = f"{text[:100]!r} is not a job's id; one looks like 3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11"
        raise Problem.of_field(HTTPStatus.BAD_REQUEST, "invalid_job_id", "jobId", message)
    return job_id


def read_uuid(text: str) -> UUID | None:
    """The UUID that ``text`` is, in the one form with hyphens; Python's own reading takes several."""
    return UUID(text) if _UUID.fullmatch(text) else None


def read_idempotency_key(request: web.Request) -> str | None:
    """The ``Idempotency-Key`` header, with or without the quotes that its draft standard asks for.

    See draft-ietf-httpapi-idempotency-key-header.
    """
    sent = request.headers.getall("Idempotency-Key", [])
    if not sent:
        return None
    match = _KEY.fullmatch(sent[0].strip())
    if len(sent) > 1 or match is None:
        message = "send one key of 1 to 200 visible ASCII characters without quotes or backslashes, such as a UUID"
        raise Problem.of_field(HTTPStatus.BAD_REQUEST, "invalid_idempotency_key", "Idempotency-Key", message)
    return match["quoted"] or match["bare"]


def _malformed(why: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, "malformed_json", f"the body is not the JSON that is expected: {why}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
