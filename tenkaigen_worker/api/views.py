"""A job as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tenkaigen_worker.jobs import JobView, Output, Status
from tenkaigen_worker.offers import Line


def status_body(job: JobView, line: Line | None = None, seconds: int | None = None) -> dict[str, Any]:
    """A job as pages poll for it: they know four statuses, so a canceled job reads as failed and says why.

    ``line`` is what is before a job that waits, ``seconds`` when it will probably be done.
    """
    waits = {"queue_position": line.position if line else None, "estimated_seconds": seconds}
    body = job_body(job) | waits
    if job.status is not Status.CANCELED:
        return body
    return {**body, "status": Status.FAILED, "error_code": "canceled", "error_message": "this job was canceled"}


def job_body(job: JobView) -> dict[str, Any]:
    """A job as it is. Times are ISO 8601, ``progress`` from 0 to 1, sizes in pixels and bytes."""
    return {
        "jobId": str(job.id),
        "status": job.status,
        "progress": job.progress,
        "stage": job.stage,
        "result_url": job.result_url,
        "outputs": [_output_body(output) for output in job.outputs],
        "error_code": job.error_code,
        "error_message": job.error_message,
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
        "thumbnail_url": output.thumbnail_url,
        "width": output.width,
        "height": output.height,
        "bytes": output.bytes,
        "sha256": output.sha256,
        "seed": output.seed,
    }


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
