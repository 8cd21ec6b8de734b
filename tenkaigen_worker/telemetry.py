"""What the outside sees of a running process: log lines on stderr, and numbers for Prometheus."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tenkaigen_worker.config import LogSettings
from tenkaigen_worker.errors import Code
from tenkaigen_worker.jobs import QueueDepth, Status

# Whatever else a record has came from the call's `extra`.
_STANDARD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

# Prompts reach the log, and a terminal obeys control characters.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BARE: Final = re.compile(r"[^\s\"'=]+")


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send log lines to ``stream``, by default stderr; calling it again replaces what it set up before.

    Our own loggers follow ``settings.level``; those of libraries speak from WARNING on.
    """
    stream = stream or sys.stderr
    as_json = settings.format == "json" or (settings.format == "auto" and not stream.isatty())
    handler = _Handler(stream)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())

    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("tenkaigen").setLevel(settings.level)


class _Handler(logging.StreamHandler[TextIO]):
    """The handler of :func:`configure_logging`, which knows it again by its class."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``ts`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, and every extra."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line; ASCII only, so that no terminal or collector can break it."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        line |= {key: value for key, value in _extras(record).items() if key not in line}
        try:
            return json.dumps(line, default=str)
        except (TypeError, ValueError):  # a mapping with odd keys, or inside itself: a log call never fails
            return json.dumps({key: str(value) for key, value in line.items()})


class TextFormatter(logging.Formatter):
    """A line for people: local time, level, logger, words, and the extras as ``key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line; further lines of a message and an exception's traceback are indented."""
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(sep=" ", timespec="seconds")[:19]
        words = [record.getMessage(), *(f"{key}={_bare(value)}" for key, value in _extras(record).items())]
        parts = [f"{time} {record.levelname:<7} {record.name}: {' '.join(words)}"]
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        text = "\n".join(parts).replace("\n", "\n    ")
        return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _bare(value: object) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


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
