"""Every error leaves as a problem document (RFC 9457), made in one place."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from time import perf_counter
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Handler

from tenkaigen_worker.errors import ConflictError, DatabaseError, FieldProblem, InputError, LimitError, StorageError

log = logging.getLogger("tenkaigen.api")

REQUEST_ID = web.RequestKey("request_id", str)
RETRY_AFTER_SECONDS = 5
_OUTSIDE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Problem(Exception):
    """A request that cannot be answered as asked. All of its text is shown to the caller."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})

    @classmethod
    def of_field(cls, status: HTTPStatus, code: str, field: str, message: str) -> Problem:
        """One wrong field, named."""
        problem = FieldProblem(field, message)
        return cls(status, code, str(problem), errors=[problem])

    def response(self) -> web.Response:
        """The problem document; ``error`` repeats ``detail`` for callers that look for plain text there."""
        body = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "code": self.code,
            "errors": [{"field": error.field, "message": error.message} for error in self.errors],
            "error": self.detail,
        }
        return web.json_response(
            body, status=self.status, headers=self.headers, content_type="application/problem+json"
        )


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost: name the request, turn whatever goes wrong into a problem, and log what came of it."""
    request[REQUEST_ID] = _request_id(request)
    started = perf_counter()
    try:
        response = await handler(request)
    except Problem as problem:
        response = problem.response()
    except Exception as error:
        response = _problem(request, error).response()

    routine = response.status < HTTPStatus.BAD_REQUEST and request.method in ("GET", "HEAD")
    log.log(
        logging.DEBUG if routine else logging.INFO,
        "%s %s: %d",
        request.method,
        request.path,
        response.status,
        extra={
            "action": "request_answered",
            "request_id": request[REQUEST_ID],
            "duration_ms": round((perf_counter() - started) * 1000, 1),
        },
    )
    return response


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal on every response: its request's id, nothing about our versions, and no error that a cache keeps."""
    response.headers["Server"] = "tenkaigen"
    response.headers["X-Request-Id"] = request.get(REQUEST_ID) or _request_id(request)
    response.headers["X-Content-Type-Options"] = "nosniff"
    if response.status >= HTTPStatus.BAD_REQUEST:
        response.headers["Cache-Control"] = "no-store"


def _request_id(request: web.Request) -> str:
    outside = request.headers.get("X-Request-Id", "")
    return outside if _OUTSIDE_ID.fullmatch(outside) else uuid4().hex


def _problem(request: web.Request, error: Exception) -> Problem:
    match error:
        case ConflictError():
            return Problem(HTTPStatus.CONFLICT, "conflict", str(error), errors=error.problems)
        case InputError():
            return Problem(HTTPStatus.BAD_REQUEST, error.code, str(error), errors=error.problems)
        case LimitError(retry_after_seconds=seconds):
            headers = {} if seconds is None else {"Retry-After": str(seconds)}
            return Problem(HTTPStatus.TOO_MANY_REQUESTS, "limit_reached", str(error), headers=headers)
        case DatabaseError() | StorageError():
            return _unavailable(request, error)
        case web.HTTPException():
            return _of_aiohttp(request, error)
        case _:
            log.error(
                "%s %s failed",
                request.method,
                request.path,
                exc_info=error,
                extra={"action": "request_failed", "request_id": request[REQUEST_ID]},
            )
            detail = f"something went wrong on our side; the log has the cause under request id {request[REQUEST_ID]}"
            return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail)


def _unavailable(request: web.Request, error: DatabaseError | StorageError) -> Problem:
    """Say what is away, but not where it is: addresses and paths are for the log."""
    what = "database" if isinstance(error, DatabaseError) else "storage"
    log.error(
        "%s %s: %s",
        request.method,
        request.path,
        error,
        extra={"action": f"{what}_unavailable", "request_id": request[REQUEST_ID]},
    )
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{what}_unavailable",
        f"the {what} cannot be reached right now; try again in {RETRY_AFTER_SECONDS} seconds",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> Problem:
    match error:
        case web.HTTPNotFound():
            detail = f"there is nothing at {request.path}; GET / lists what there is"
            return Problem(HTTPStatus.NOT_FOUND, "not_found", detail)
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            detail = f"{request.path} does not take {request.method}, but {allowed}"
            return Problem(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", detail, headers={"Allow": allowed})
        case web.HTTPRequestEntityTooLarge():
            detail = f"the body is larger than {request.client_max_size} bytes (api.max_body_bytes)"
            return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", detail)
        case _:
            status = HTTPStatus(error.status)
            return Problem(status, status.name.lower(), error.reason)
