"""The routes over jobs and styles. Each one reads the request, asks one question, and answers."""

from __future__ import annotations

import asyncio
from datetime import datetime
from http import HTTPStatus
from typing import Any
from uuid import UUID

from aiohttp import web

from tenkaigen_worker import __version__
from tenkaigen_worker.api.body import read_idempotency_key, read_job_id, read_object
from tenkaigen_worker.api.errors import RETRY_AFTER_SECONDS, Problem
from tenkaigen_worker.api.parts import PARTS
from tenkaigen_worker.jobs import JobView, Output, Status

_NEVER_KEPT = {"Cache-Control": "no-store"}


async def post_generate(request: web.Request) -> web.Response:
    """``POST /api/generate``: queue a job. Fields that nobody knows are ignored."""
    parts = request.app[PARTS]
    key = read_idempotency_key(request)
    fields = await read_object(request)
    accepted = await asyncio.to_thread(parts.accept, fields)
    job = await parts.submissions.submit(
        accepted.columns, user_id=None, idempotency_key=key, request_hash=accepted.request_hash
    )
    return _queued(request, job)


async def get_status(request: web.Request) -> web.Response:
    """``GET /api/generate/status/{jobId}``: how far the job is."""
    job_id = read_job_id(request)
    job = _found(job_id, await request.app[PARTS].submissions.get(job_id))
    return web.json_response(status_body(job), headers=_NEVER_KEPT)


async def post_cancel(request: web.Request) -> web.Response:
    """``POST /api/generate/{jobId}/cancel``: ask for it; a job that is already over stays as it is."""
    job_id = read_job_id(request)
    job = _found(job_id, await request.app[PARTS].submissions.cancel(job_id))
    return web.json_response(status_body(job), status=HTTPStatus.ACCEPTED, headers=_NEVER_KEPT)


async def post_retry(request: web.Request) -> web.Response:
    """``POST /api/generate/{jobId}/retry``: the same request again, as a new job."""
    job_id = read_job_id(request)
    return _queued(request, _found(job_id, await request.app[PARTS].submissions.retry(job_id)))


async def get_styles(request: web.Request) -> web.Response:
    """``GET /api/styles``: what ``style`` may be, and which plugin files are broken."""
    found = await asyncio.to_thread(request.app[PARTS].styles)
    styles = [{"name": name, "description": description} for name, description in found.styles]
    return web.json_response({"styles": styles, "problems": list(found.problems)}, headers=_NEVER_KEPT)


async def get_healthz(_request: web.Request) -> web.Response:
    """``GET /healthz``: this process is alive."""
    return web.json_response({"status": "ok"}, headers=_NEVER_KEPT)


async def get_readyz(request: web.Request) -> web.Response:
    """``GET /readyz``: requests can be served; otherwise 503 with the reasons."""
    reasons = await request.app[PARTS].problems()
    if reasons:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", "; ".join(reasons), headers=headers)
    return web.json_response({"status": "ready"}, headers=_NEVER_KEPT)


async def get_index(request: web.Request) -> web.Response:
    """``GET /``: what there is."""
    routes = sorted(
        f"{route.method} {route.resource.canonical}"
        for route in request.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    )
    return web.json_response({"name": "tenkaigen", "version": __version__, "routes": routes})


def status_body(job: JobView) -> dict[str, Any]:
    """A job as pages poll for it: they know four statuses, so a canceled job reads as failed and says why."""
    canceled = job.status is Status.CANCELED
    return {
        "jobId": str(job.id),
        "status": Status.FAILED if canceled else job.status,
        "progress": job.progress,
        "stage": job.stage,
        "result_url": job.result_url,
        "outputs": [_output_body(output) for output in job.outputs],
        "error_code": "canceled" if canceled else job.error_code,
        "error_message": "this job was canceled" if canceled else job.error_message,
        "prompt": job.prompt,
        "style": job.style,
        "width": job.width,
        "height": job.height,
        "seed": job.seed,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "cancel_requested": job.cancel_requested,
        "retry_of": str(job.retry_of) if job.retry_of else None,
        "created_at": job.created_at.isoformat(),
        "started_at": _moment(job.started_at),
        "completed_at": _moment(job.completed_at),
        "processing_time_ms": job.processing_time_ms,
        "demo": job.demo,
    }


def _output_body(output: Output) -> dict[str, Any]:
    return {
        "index": output.index,
        "url": output.url,
        "width": output.width,
        "height": output.height,
        "bytes": output.bytes,
        "sha256": output.sha256,
        "seed": output.seed,
    }


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


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
