"""What a running worker counts: numbers for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tenkaigen_worker.errors import Code
from tenkaigen_worker.jobs import QueueDepth, Status


class Metrics:
    """The numbers of one worker, in a registry of its own."""

    content_type: Final = CONTENT_TYPE_LATEST

    _STAGES: Final = ("prepare", "wait", "generate", "publish")

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._finished = Counter(
            "tenkaigen_jobs_finished",
            "Jobs this worker brought to an outcome, by status and error code.",
            ["status", "error_code"],
            registry=registry,
        )
        self._pictures = Counter("tenkaigen_pictures", "Pictures made and stored.", registry=registry)
        self._stages = Histogram(
            "tenkaigen_stage_seconds",
            "How long completed jobs took in each stage.",
            ["stage"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 5, 10, 20, 30, 60, 120, 300, 900),
            registry=registry,
        )
        self._gap = Histogram(
            "tenkaigen_engine_gap_seconds",
            "How long the engine stood idle between two jobs while the second was already claimed.",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60),
            registry=registry,
        )
        self._held = Gauge("tenkaigen_jobs_held", "Jobs this worker holds a lease for.", registry=registry)
        self._engine_up = Gauge("tenkaigen_engine_up", "1 while the engine has its model loaded.", registry=registry)
        self._queued = Gauge("tenkaigen_queue_queued_jobs", "Queued jobs in the whole table.", registry=registry)
        self._processing = Gauge(
            "tenkaigen_queue_processing_jobs", "Jobs in the whole table that workers hold.", registry=registry
        )
        self._oldest = Gauge(
            "tenkaigen_queue_oldest_seconds",
            "How long the oldest queued job that is due has waited.",
            registry=registry,
        )
        # A series that is there from the start lets `rate()` see the first event, too.
        self._finished.labels(Status.COMPLETED, "")
        for stage in self._STAGES:
            self._stages.labels(stage)

    def job_finished(self, status: Status, code: Code | None, timings_ms: Mapping[str, int], *, pictures: int) -> None:
        """Count an outcome. Of ``timings_ms`` the stages are kept: prepare, wait, generate, publish."""
        self._finished.labels(status, code or "").inc()
        self._pictures.inc(pictures)
        for stage in self._STAGES:
            if stage in timings_ms:
                self._stages.labels(stage).observe(timings_ms[stage] / 1000)

    def engine_gap(self, seconds: float) -> None:
        """Record how long the engine stood idle between two jobs."""
        self._gap.observe(seconds)

    def jobs_held(self, count: int) -> None:
        """Say how many leases the worker holds now."""
        self._held.set(count)

    def engine_up(self, up: bool) -> None:
        """Say whether the engine has its model loaded."""
        self._engine_up.set(up)

    def queue_depth(self, depth: QueueDepth) -> None:
        """Say how full the queue is."""
        self._queued.set(depth.queued)
        self._processing.set(depth.processing)
        self._oldest.set(depth.oldest_seconds)

    def render(self) -> bytes:
        """All numbers in Prometheus' text format, which :attr:`content_type` names."""
        return generate_latest(self._registry)
