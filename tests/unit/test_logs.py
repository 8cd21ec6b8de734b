"""Log lines: what a person and a log collector get to see."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import pytest

from tenkaigen_worker.config import LogSettings
from tenkaigen_worker.logs import configure_logging

log = logging.getLogger("tenkaigen.test")
JOB = UUID("00000000-0000-0000-0000-000000000007")


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


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
        # What pytest keeps of the lines must be text that can be sent to another process.
        del logging.getLogger().handlers[:-1]

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
