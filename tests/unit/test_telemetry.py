"""Log lines and numbers: what a person, a log collector and Prometheus get to see."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from tenkaigen_worker.config import LogSettings
from tenkaigen_worker.errors import Code
from tenkaigen_worker.jobs import QueueDepth, Status
from tenkaigen_worker.telemetry import Metrics, configure_logging

log = logging.getLogger("tenkaigen.test")
JOB = UUID("00000000-0000-0000-0000-000000000007")


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("tenkaigen")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def logging_to(stream: io.StringIO, format: Literal["auto", "text", "json"], **settings: Any) -> io.StringIO:
    configure_logging(LogSettings(format=format, **settings), stream)
    return stream


class TestJson:
    """One object per line, whatever is in it."""

    def one(self, stream: io.StringIO) -> dict[str, Any]:
        (line,) = stream.getvalue().splitlines()
        data: dict[str, Any] = json.loads(line)
        return data

    def test_fields(self) -> None:
        stream = logging_to(io.StringIO(), "json")

        log.info("Job %s is claimed", 7, extra={"action": "job_claimed", "job_id": JOB, "attempt": 2})

        line = self.one(stream)
        moment = datetime.fromisoformat(line.pop("ts"))
        assert moment.utcoffset() == timedelta(0)
        assert line == {
            "level": "INFO",
            "logger": "tenkaigen.test",
            "message": "Job 7 is claimed",
            "action": "job_claimed",
            "job_id": str(JOB),
            "attempt": 2,
        }

    def test_time_is_rfc_3339_in_utc(self) -> None:
        stream = logging_to(io.StringIO(), "json")
        record = log.makeRecord(log.name, logging.INFO, "file.py", 1, "words", (), None)
        record.created = 1_700_000_000.25

        log.handle(record)

        assert self.one(stream)["ts"] == "2023-11-14T22:13:20.250Z"

    def test_exception(self) -> None:
        stream = logging_to(io.StringIO(), "json")

        try:
            raise ValueError("no such style")
        except ValueError:
            log.exception("It broke", extra={"action": "broke"})

        line = self.one(stream)
        assert line["level"] == "ERROR"
        assert line["exception"].startswith("Traceback (most recent call last):")
        assert line["exception"].endswith("ValueError: no such style")

    def test_an_extra_cannot_take_the_place_of_a_field(self) -> None:
        stream = logging_to(io.StringIO(), "json")

        log.info("words", extra={"action": "x", "level": "mine", "ts": 3})

        assert self.one(stream)["level"] == "INFO"
        assert self.one(stream)["ts"] != 3

    def test_any_text_stays_on_one_line_of_ascii(self) -> None:
        stream = logging_to(io.StringIO(), "json")

        log.info("侍\n\u2028\x1b[31m\udcff", extra={"action": "x"})

        assert stream.getvalue().isascii()
        assert self.one(stream)["message"] == "侍\n\u2028\x1b[31m\udcff"

    def test_values_that_json_does_not_know(self, capsys: pytest.CaptureFixture[str]) -> None:
        stream = logging_to(io.StringIO(), "json")

        log.info("words", extra={"action": "x", "held": {JOB: 1}})

        assert self.one(stream)["held"] == str({JOB: 1})
        assert capsys.readouterr().err == ""  # where logging complains of a formatter that raised


class TestText:
    """Lines that a person reads on a terminal."""

    def test_extras_as_key_and_value(self) -> None:
        stream = logging_to(io.StringIO(), "text")

        log.warning("Job %s waits", 7, extra={"action": "job_waits", "job_id": JOB, "cause": 'a "big" LoRA'})

        line = stream.getvalue()
        datetime.fromisoformat(line[:19])
        assert line[19:] == (
            f' WARNING tenkaigen.test: Job 7 waits action=job_waits job_id={JOB} cause="a \\"big\\" LoRA"\n'
        )

    def test_exception_is_indented(self) -> None:
        stream = logging_to(io.StringIO(), "text")

        try:
            raise ValueError("no such style")
        except ValueError:
            log.exception("It broke", extra={"action": "broke"})

        first, second, *_, last = stream.getvalue().splitlines()
        assert first.endswith("It broke action=broke")
        assert second == "    Traceback (most recent call last):"
        assert last == "    ValueError: no such style"

    def test_a_prompt_can_forge_no_line_and_move_no_cursor(self) -> None:
        stream = logging_to(io.StringIO(), "text")

        log.info("Prompt: %s", "a\n2026-01-01 00:00:00 ERROR fake\x1b[2J", extra={"action": "x", "style": "b\nc"})

        first, second = stream.getvalue().splitlines()
        assert second.startswith("    2026-01-01")
        assert "\x1b" not in first + second
        assert r"\x1b[2J" in second
        assert r'style="b\nc"' in second


class TestSetup:
    """Which loggers speak, how, and where to."""

    def test_auto_is_text_on_a_terminal_and_json_elsewhere(self) -> None:
        terminal = logging_to(Terminal(), "auto")
        log.info("words", extra={"action": "x"})
        elsewhere = logging_to(io.StringIO(), "auto")
        log.info("words", extra={"action": "x"})

        assert terminal.getvalue().endswith("tenkaigen.test: words action=x\n")
        assert json.loads(elsewhere.getvalue())["message"] == "words"

    def test_setting_up_twice_writes_every_line_once(self) -> None:
        first, second = io.StringIO(), io.StringIO()
        logging_to(first, "json")
        logging_to(second, "json")

        log.info("words", extra={"action": "x"})

        assert first.getvalue() == ""
        assert len(second.getvalue().splitlines()) == 1

    def test_other_handlers_stay(self) -> None:
        other = logging.NullHandler()
        logging.getLogger().addHandler(other)

        logging_to(io.StringIO(), "json")

        assert other in logging.getLogger().handlers

    def test_level_is_ours_and_libraries_warn(self) -> None:
        stream = logging_to(io.StringIO(), "text", level="DEBUG")

        log.debug("ours", extra={"action": "x"})
        logging.getLogger("some.library").info("chatter")
        logging.getLogger("some.library").warning("trouble")

        assert [line.split(": ")[1] for line in stream.getvalue().splitlines()] == ["ours action=x", "trouble"]

    def test_stderr_is_the_default(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logging(LogSettings(format="text"))

        log.info("words", extra={"action": "x"})

        captured = capsys.readouterr()
        assert captured.out == ""
        assert "words" in captured.err


class TestMetrics:
    """What a scrape of ``/metrics`` reads."""

    def samples(self, metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(metrics.render().decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def test_outcomes_and_pictures(self) -> None:
        metrics = Metrics()
        metrics.job_finished(Status.COMPLETED, None, {}, pictures=4)
        metrics.job_finished(Status.FAILED, Code.TOO_LARGE, {}, pictures=0)
        metrics.job_finished(Status.FAILED, Code.TOO_LARGE, {}, pictures=0)

        samples = self.samples(metrics)
        name = "tenkaigen_jobs_finished_total"
        assert samples[name, frozenset({("status", "completed"), ("error_code", "")})] == 1
        assert samples[name, frozenset({("status", "failed"), ("error_code", "too_large")})] == 2
        assert samples["tenkaigen_pictures_total", frozenset()] == 4

    def test_stages_in_seconds_and_only_the_four(self) -> None:
        metrics = Metrics()
        timings = {"prepare": 10, "wait": 20, "generate": 5_000, "denoise": 4_000, "publish": 250}
        metrics.job_finished(Status.COMPLETED, None, timings, pictures=1)

        samples = self.samples(metrics)
        sums = {
            dict(labels)["stage"]: value
            for (name, labels), value in samples.items()
            if name.endswith("_sum") and labels
        }
        assert sums == {"prepare": 0.01, "wait": 0.02, "generate": 5, "publish": 0.25}

    def test_gauges(self) -> None:
        metrics = Metrics()
        metrics.queue_depth(QueueDepth(queued=12, processing=3, oldest_seconds=7.5))
        metrics.jobs_held(2)
        metrics.engine_up(True)
        metrics.engine_gap(0.004)

        samples = {name: value for (name, labels), value in self.samples(metrics).items() if not labels}
        assert samples["tenkaigen_queue_queued_jobs"] == 12
        assert samples["tenkaigen_queue_processing_jobs"] == 3
        assert samples["tenkaigen_queue_oldest_seconds"] == 7.5
        assert samples["tenkaigen_jobs_held"] == 2
        assert samples["tenkaigen_engine_up"] == 1
        assert samples["tenkaigen_engine_gap_seconds_sum"] == 0.004

    def test_every_name_is_ours_and_the_global_registry_is_left_alone(self) -> None:
        first, second = Metrics(), Metrics()
        first.jobs_held(5)

        assert all(name.startswith("tenkaigen_") for name, _ in self.samples(first))
        assert self.samples(second)["tenkaigen_jobs_held", frozenset()] == 0
        assert not [family.name for family in REGISTRY.collect() if family.name.startswith("tenkaigen")]

    def test_content_type_is_for_a_header(self) -> None:
        assert Metrics.content_type.startswith("text/plain; version=")
