"""The routes over jobs and styles. Each one reads the request, asks one question, and answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from uuid import UUID

from aiohttp import web

from tenkaigen_worker import __version__
from tenkaigen_worker.api.body import read_idempotency_key, read_job_id, read_object
from tenkaigen_worker.api.callers import CALLER
from tenkaigen_worker.api.errors import RETRY_AFTER_SECONDS, Problem
from tenkaigen_worker.api.parts import ASKS_NOBODY, PARTS
from tenkaigen_worker.api.views import status_body
from tenkaigen_worker.errors import ConflictError, DatabaseError
from tenkaigen_worker.jobs import Asker, JobView, Status
from tenkaigen_worker.request import request_hash

log = logging.getLogger("tenkaigen.api")

_NEVER_KEPT = {"Cache-Control": "no-store"}


async def post_generate(request: web.Request) -> web.Response:
    """``POST /api/generate``: queue a job. Fields that nobody knows are ignored."""
    parts = request.app[PARTS]
    key = read_idempotency_key(request)
    fields = await read_object(request)
    asked = await parts.offers.read_request(fields)
    try:
        job = await parts.submissions.submit(
            asked.columns(), asker=_asker(request), idempotency_key=key, request_hash=request_hash(asked)
        )
    except ConflictError as error:  # 422 is what the header's draft standard asks for
        code = "idempotency_key_reused"
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, code, str(error), errors=error.problems) from None
    return _queued(request, job)


async def get_status(request: web.Request) -> web.Response:
    """``GET /api/generate/status/{jobId}``: how far the job is."""
    job_id = read_job_id(request)
    parts = request.app[PARTS]
    job = _found(job_id, await parts.submissions.get(job_id, _asker(request)))
    line = await parts.submissions.line(job_id, _asker(request)) if job.status is Status.QUEUED else None
    seconds = (await parts.offers.now()).seconds_until_done(line) if line else None
    return web.json_response(status_body(job, line, seconds), headers=_NEVER_KEPT)


async def post_cancel(request: web.Request) -> web.Response:
    """``POST /api/generate/{jobId}/cancel``: ask for it; a job that is already over stays as it is."""
    job_id = read_job_id(request)
    job = _found(job_id, await request.app[PARTS].submissions.cancel(job_id, _asker(request)))
    return web.json_response(status_body(job), status=HTTPStatus.ACCEPTED, headers=_NEVER_KEPT)


async def post_retry(request: web.Request) -> web.Response:
    """``POST /api/generate/{jobId}/retry``: the same request again, as a new job."""
    job_id = read_job_id(request)
    return _queued(request, _found(job_id, await request.app[PARTS].submissions.retry(job_id, _asker(request))))


async def get_styles(request: web.Request) -> web.Response:
    """``GET /api/styles``: what ``style`` may be, and which plugin files are broken."""
    parts = request.app[PARTS]
    styles = _described(await parts.offers.styles())
    # They name folders of this machine, which are nothing for strangers.
    problems = list(map(str, parts.plugins.problems)) if request.app[ASKS_NOBODY] else []
    return web.json_response({"styles": styles, "problems": problems}, headers=_NEVER_KEPT)


async def get_offer(request: web.Request) -> web.Response:
    """``GET /api/offer``: all that a request may name."""
    offers = request.app[PARTS].offers
    offer = await offers.now()
    body = {
        "styles": _described(await offers.styles()),
        "modes": list(offer.modes),
        "loras": [{"name": name, "aliases": list(aliases)} for name, aliases in offer.loras.items()],
        "templates": _described(offer.templates),
        "limits": asdict(offer.limits),
    }
    return web.json_response(body, headers=_NEVER_KEPT)


async def get_healthz(_request: web.Request) -> web.Response:
    """``GET /healthz``: this process is alive."""
    return web.json_response({"status": "ok"}, headers=_NEVER_KEPT)


async def get_readyz(request: web.Request) -> web.Response:
    """``GET /readyz``: requests can be served; otherwise 503 with the reason."""
    try:
        await request.app[PARTS].check()
    except DatabaseError as error:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        log.warning("Not ready: %s", error, extra={"action": "api_not_ready"})
        why = str(error) if request.app[ASKS_NOBODY] else "the database cannot be used right now; the log says why"
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", why, headers=headers) from None
    return web.json_response({"status": "ready"}, headers=_NEVER_KEPT)


async def get_index(request: web.Request) -> web.Response:
    """``GET /``: what there is."""
    routes = sorted(
        f"{route.method} {route.resource.canonical}"
        for route in request.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    )
    return web.json_response({"name": "tenkaigen", "version": __version__, "routes": routes})


def _asker(request: web.Request) -> Asker:
    return request[CALLER].asker


def _described(descriptions: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "description": description} for name, description in descriptions.items()]


def _found(job_id: UUID, job: JobView | None) -> JobView:
    if job is None:
        raise Problem(HTTPStatus.NOT_FOUND, "job_not_found", f"there is no job {job_id}")
    return job


def _queued(request: web.Request, job: JobView) -> web.Response:
    body = {"jobId": str(job.id), "status": status_body(job)["status"]}
    if job.retry_of:
        body["retry_of"] = str(job.retry_of)
    location = request.app.router["status"].url_for(job_id=str(job.id))
    headers = {**_NEVER_KEPT, "Location": str(location)}
    return web.json_response(body, status=HTTPStatus.ACCEPTED, headers=headers)
