"""YAML files that hold one value each, read again when they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from tenkaigen_worker.names import suggest
from tenkaigen_worker.plugin.problems import BrokenPlugin, Problem
from tenkaigen_worker.yaml_lines import NotReadable, read_document

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_WANTED = {
    "string_type": "must be text: put it in quotes",
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "tuple_type": "must be a list, such as [one, two]",
}


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    """What is known of one file: how it looked on disk when it was read, and what came of it."""

    stamp: tuple[int, int, int] | None
    value: T | None
    problems: tuple[Problem, ...]


class WatchedFiles(Generic[T]):
    """The values of all files that ``find_files`` lists; a file's last good version stays in force.

    ``read`` answers a file's value, or raises :class:`~tenkaigen_worker.plugin.problems.BrokenPlugin`.
    """

    def __init__(self, find_files: Callable[[], Sequence[Path]], read: Callable[[Path], T]) -> None:
        self._find_files = find_files
        self._read = read
        self._entries: dict[Path, _Entry[T]] = {}
        self.refresh()

    @property
    def values(self) -> list[T]:
        """What is in the files now."""
        return [entry.value for entry in self._entries.values() if entry.value is not None]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the files now."""
        return tuple(problem for entry in self._entries.values() for problem in entry.problems)

    def refresh(self) -> bool:
        """Read what is new or changed; say whether there was anything. Costs one ``stat`` a file."""
        before = self._entries
        self._entries = {file: self._look(file, before.get(file)) for file in self._find_files()}
        return self._entries != before

    def _look(self, file: Path, known: _Entry[T] | None) -> _Entry[T]:
        stamp = _stamp(file)
        if known and known.stamp == stamp:
            return known
        try:
            return _Entry(stamp, self._read(file), ())
        except BrokenPlugin as broken:
            return _Entry(stamp, known.value if known else None, broken.problems)


def read_yaml(file: Path, model: type[M], needs: str) -> M:
    """Read one file as ``model``; raises :class:`BrokenPlugin` with all that is wrong with it, and on which line.

    ``needs`` says what the file must have at least.
    """
    try:
        document = read_document(file)
    except NotReadable as error:
        raise BrokenPlugin([Problem(str(file), error.line or None, str(error))]) from None
    if document.problems:
        raise BrokenPlugin([Problem(str(file), wrong.line, str(wrong)) for wrong in document.problems])
    try:
        return model.model_validate(document.values)
    except ValidationError as error:
        problems = []
        for wrong in error.errors(include_url=False):
            at = tuple(map(str, wrong["loc"]))
            line = document.lines.get(at) or document.lines.get(at[:1])
            text = _explain(at[0], wrong["type"], wrong["msg"], list(model.model_fields), needs)
            problems.append(Problem(str(file), line, text))
        raise BrokenPlugin(problems) from None


def _explain(key: str, kind: str, text: str, keys: list[str], needs: str) -> str:
    if kind == "extra_forbidden":
        near = suggest(key, keys)
        return f"unknown key {key!r}{';' if near else '.'}{near} The keys are: {', '.join(keys)}"
    if kind == "missing":
        return f"{key} is missing: {needs}"
    if kind in _WANTED:
        return f"{key} {_WANTED[kind]}"
    return f"{key}: {text.removeprefix('Value error, ')}"


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
