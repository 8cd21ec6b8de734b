"""The built-in plugin that reads styles from YAML files, again whenever they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from tenkaigen_worker.names import suggest
from tenkaigen_worker.plugin.hookspecs import hookimpl
from tenkaigen_worker.plugin.problems import BrokenPlugin, Problem
from tenkaigen_worker.plugin.types import PLACEHOLDER, Style, check_characters, check_name, check_template, check_words
from tenkaigen_worker.yaml_lines import NotReadable, read_document


class StyleFile(BaseModel):
    """What a style file may say; see :class:`~tenkaigen_worker.plugin.Style`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, AfterValidator(check_name)]
    description: Annotated[str, AfterValidator(check_characters)] = ""
    prompt: Annotated[str, AfterValidator(check_template)] = PLACEHOLDER
    negative_prompt: Annotated[str, AfterValidator(check_words)] = ""
    replaces: bool = False


def read_style(file: Path) -> Style:
    """Read one style file; raises :class:`BrokenPlugin` with all that is wrong with it."""
    try:
        document = read_document(file)
    except NotReadable as error:
        raise BrokenPlugin([Problem(str(file), error.line or None, str(error))]) from None
    if document.problems:
        raise BrokenPlugin([Problem(str(file), wrong.line, str(wrong)) for wrong in document.problems])
    try:
        return Style(**StyleFile.model_validate(document.values).model_dump(), origin=str(file))
    except ValidationError as error:
        problems = []
        for wrong in error.errors(include_url=False):
            key = str(wrong["loc"][0])
            text = _explain(key, wrong["type"], wrong["input"], wrong["msg"])
            problems.append(Problem(str(file), document.lines.get((key,)), text))
        raise BrokenPlugin(problems) from None


def _explain(key: str, kind: str, value: object, text: str) -> str:
    if kind == "extra_forbidden":
        keys = list(StyleFile.model_fields)
        near = suggest(key, keys)
        return f"unknown key {key!r}{';' if near else '.'}{near} The keys are: {', '.join(keys)}"
    if kind == "missing":
        return f"{key} is missing: a style needs at least a name, as in 'name: Anime'"
    if kind == "string_type":
        return f"{key} must be text: put it in quotes"
    if kind == "bool_type":
        return f"{key} must be true or false, not {value!r}"
    return f"{key}: {text.removeprefix('Value error, ')}"


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is known of one file: how it looked on disk when it was read, and what came of it."""

    stamp: tuple[int, int, int] | None
    style: Style | None
    problems: tuple[Problem, ...]


class Catalog:
    """The styles of all YAML files that ``find_files`` lists; a file's last good version stays in force."""

    def __init__(self, find_files: Callable[[], Sequence[Path]]) -> None:
        self._find_files = find_files
        self._entries: dict[Path, _Entry] = {}
        self.refresh()

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(problem for entry in self._entries.values() for problem in entry.problems)

    @hookimpl
    def register_styles(self) -> list[Style]:
        """Offer the styles that are in the files now."""
        return [entry.style for entry in self._entries.values() if entry.style]

    def refresh(self) -> bool:
        """Read what is new or changed; say whether there was anything. Costs one ``stat`` a file."""
        before = self._entries
        self._entries = {file: self._look(file, before.get(file)) for file in self._find_files()}
        return self._entries != before

    def _look(self, file: Path, known: _Entry | None) -> _Entry:
        stamp = _stamp(file)
        if known and known.stamp == stamp:
            return known
        try:
            return _Entry(stamp, read_style(file), ())
        except BrokenPlugin as broken:
            return _Entry(stamp, known.style if known else None, broken.problems)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
