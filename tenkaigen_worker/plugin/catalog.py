"""Values that people write as YAML files, one in each: read with every problem on its line, and again when changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from tenkaigen_worker.names import suggest
from tenkaigen_worker.plugin.problems import BrokenPlugin, Problem
from tenkaigen_worker.yaml_lines import Document, Key, NotReadable, read_document


class Named(Protocol):
    """What every such value has."""

    @property
    def name(self) -> str: ...

    @property
    def replaces(self) -> bool: ...

    @property
    def origin(self) -> str: ...


T = TypeVar("T", bound=Named)
M = TypeVar("M", bound="File")


class File(BaseModel):
    """What a file may say, key by key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def read_file(file: Path, model: type[M], make: Callable[[M], T], *, needs: str) -> T:
    """Read one file, as ``model`` says, and make a value of it.

    ``needs`` says what the least is that such a file has. Raises :class:`BrokenPlugin` with all that is wrong.
    """
    try:
        document = read_document(file)
    except NotReadable as error:
        raise BrokenPlugin([Problem(str(file), error.line or None, str(error))]) from None
    if document.problems:
        raise BrokenPlugin([Problem(str(file), wrong.line, str(wrong)) for wrong in document.problems])
    try:
        return make(model.model_validate(document.values))
    except ValidationError as error:
        found = [_problem(file, document, model, wrong, needs) for wrong in error.errors(include_url=False)]
        raise BrokenPlugin(found) from None
    except ValueError as error:  # every key is right, but not beside the others
        raise BrokenPlugin([Problem(str(file), None, str(error))]) from None


def problem_at(key: Key, text: str) -> PydanticCustomError:
    """Make what a validator of the whole model raises when one key does not fit the others."""
    return PydanticCustomError("do_not_fit", "{text}", {"text": text, "key": key})


def _problem(file: Path, document: Document, model: type[File], wrong: ErrorDetails, needs: str) -> Problem:
    key: Key = tuple(str(part) for part in wrong["loc"]) or wrong.get("ctx", {}).get("key", ())
    line = next((document.lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in document.lines), None)
    text = _explain(key, wrong["type"], wrong["input"], wrong["msg"], model, needs)
    return Problem(str(file), line, text)


_WANTED = {
    "string_type": "text: put it in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "tuple_type": "a list, such as [a, b]",
    "dict_type": "keys with values, such as `key: value`",
}


def _explain(key: Key, kind: str, value: object, text: str, model: type[File], needs: str) -> str:
    name = ".".join(key)
    if kind == "extra_forbidden":
        keys = list(model.model_fields)
        near = suggest(key[-1], keys)
        return f"unknown key {name!r}{';' if near else '.'}{near} The keys are: {', '.join(keys)}"
    if kind == "missing":
        return f"{name} is missing: {needs}"
    if kind == "bool_type":
        return f"{name} must be true or false, not {value!r}"
    if kind in _WANTED:
        return f"{name} must be {_WANTED[kind]}"
    return f"{name}: {text.removeprefix('Value error, ')}"


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    """What is known of one file: how it looked on disk when it was read, and what came of it."""

    stamp: tuple[int, int, int] | None
    item: T | None
    problems: tuple[Problem, ...]


FindFiles = Callable[[], Mapping[str, os.stat_result | None]]
"""Answers how each file looks on disk."""


class Catalog(Generic[T]):
    """What stands in all the files that ``find_files`` lists; a file's last good version stays in force."""

    def __init__(self, find_files: FindFiles, read: Callable[[Path], T]) -> None:
        self._find_files = find_files
        self._read = read
        self._entries: dict[str, _Entry[T]] = {}
        self.refresh()

    @property
    def items(self) -> list[T]:
        return [entry.item for entry in self._entries.values() if entry.item]

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(problem for entry in self._entries.values() for problem in entry.problems)

    def refresh(self) -> bool:
        """Read what is new or changed; say whether there was anything."""
        before = self._entries
        self._entries = {
            file: self._look(file, _stamp(status), before.get(file)) for file, status in self._find_files().items()
        }
        return list(map(id, before.values())) != list(map(id, self._entries.values()))

    def _look(self, file: str, stamp: tuple[int, int, int] | None, known: _Entry[T] | None) -> _Entry[T]:
        if known and known.stamp == stamp:
            return known
        try:
            return _Entry(stamp, self._read(Path(file)), ())
        except BrokenPlugin as broken:
            return _Entry(stamp, known.item if known else None, broken.problems)


def _stamp(status: os.stat_result | None) -> tuple[int, int, int] | None:
    return status and (status.st_mtime_ns, status.st_size, status.st_ino)
