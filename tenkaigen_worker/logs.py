"""What a running process says: log lines on stderr, as text for people or as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from tenkaigen_worker.config import LogSettings

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
