"""What is wrong with a plugin, and where."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tenkaigen_worker.errors import PluginError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: in which file, on which line where that is known, and what would be right."""

    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.message}"


class BrokenPlugin(PluginError):
    """A plugin or a style file cannot be used; ``problems`` says why."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def describe_error(error: BaseException) -> str:
    """Name an exception on one line: its type, and its text where it has one."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def problem_of(error: BaseException, file: Path, doing: str) -> Problem:
    """Make a problem of what a plugin's own code raised, at the last line of ``file`` that was running."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return Problem(str(file), error.lineno, f"this is not Python: {error.msg}")

    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(file)), None)
    return Problem(str(file), line, f"{doing}: {describe_error(error)}")
