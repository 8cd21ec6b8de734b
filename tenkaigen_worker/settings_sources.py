"""Where settings come from: the file, the environment, the defaults; and what is wrong with them, in words."""

from __future__ import annotations

import copy
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from tenkaigen_worker.errors import ConfigError
from tenkaigen_worker.names import nearest
from tenkaigen_worker.redact import mask_urls
from tenkaigen_worker.yaml_lines import Document, Key, NotReadable, Problem, parse_value, read_document

PREFIX = "TENKAIGEN_"
SEPARATOR = "__"

DISAGREE = "settings_disagree"
"""The type of the errors that a model raises about two of its keys, which stand in the error's context."""

# What pydantic says of a wrong type, in the words of a person who edits a file.
_WANTED = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "path_type": "a path",
    "string_type": "text; put it in quotes",
    "string_too_short": "at least one character",
    "tuple_type": "a list, such as [a, b]",
}


def variable(key: Key) -> str:
    """Name the environment variable of a setting: ``TENKAIGEN_DATABASE__URL``."""
    return PREFIX + SEPARATOR.join(key).upper()


def flatten(settings: BaseModel, at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield every setting with its value, in the order of the file; secrets stay wrapped."""
    for name in type(settings).model_fields:
        value, key = getattr(settings, name), (*at, name)
        if isinstance(value, BaseModel):
            yield from flatten(value, key)
        elif isinstance(value, dict):
            for entry, item in value.items():
                yield from flatten(item, (*key, entry))
        else:
            yield key, value


@dataclass(frozen=True, slots=True)
class Sources:
    """The values of file and environment laid over each other, where each came from, and what was wrong so far."""

    model: type[BaseModel]
    values: dict[str, Any]
    file: Path | None
    lines: Mapping[Key, int]
    variables: Mapping[Key, str]
    problems: tuple[Problem, ...]

    def given(self, key: Key) -> bool:
        """Tell whether a setting was given by name, in the file or by a variable."""
        return key in self.lines or key in self.variables

    def origin(self, key: Key) -> str | None:
        """Name the variable, or else file and line, that gave a setting; ``None`` when it was left out."""
        name = next((self.variables[part] for part in _prefixes(key) if part in self.variables), None)
        if name is None and key in self.lines:
            return f"{self.file}:{self.lines[key]}"
        return name

    def report(self, error: ValidationError | None) -> list[str]:
        """One line per problem, the file's from top to bottom first; secrets and unknown values are never quoted."""
        found = [self._problem(details) for details in error.errors(include_url=False)] if error else []
        ordered = sorted((*self.problems, *found), key=lambda problem: (problem.line == 0, problem.line))
        return [f"{self.file}:{problem.line}: {problem}" if problem.line else str(problem) for problem in ordered]

    def _problem(self, details: ErrorDetails) -> Problem:
        key: Key = tuple(str(part) for part in details["loc"] if part != "[key]")
        if details["type"] == DISAGREE:
            keys = [(*key, *name.split(".")) for name in details["ctx"]["keys"]]
            return self._located(next(filter(self.given, keys), key), keys[0], details["msg"])
        return self._located(key, key, self._words(key, details))

    def _located(self, key: Key, subject: Key, words: str) -> Problem:
        """Point at the source of ``key``; name ``subject`` unless the source does so already."""
        for part in _prefixes(key):
            if part in self.variables:
                name = self.variables[part]
                return Problem(0, () if name == variable(subject) else subject, words, variable=name)
        line = next((self.lines[part] for part in _prefixes(key) if part in self.lines), 0)
        return Problem(line, subject, words)

    def _words(self, key: Key, details: ErrorDetails) -> str:
        kind = details["type"]
        if kind == "extra_forbidden":
            return f"unknown key; {_advice(key, self.model)}"
        if kind == "missing":
            return "is missing"
        if kind in {"model_type", "dict_type", "too_short"}:
            return "should be a section with keys of its own"
        message = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
        wanted = f"should be {_WANTED[kind]}" if kind in _WANTED else message
        return wanted if _is_secret(key, self.model) else f"got {_shown(details['input'])}, {wanted}"


def gather(
    model: type[BaseModel], file: Path | None, environ: Mapping[str, str], aliases: Mapping[str, Key]
) -> Sources:
    """Read the file, if there is one, and lay the environment over it.

    ``aliases`` are further names of variables, for texts; our own names win over them. What spoils single values is
    collected in ``problems``. Raises ``ConfigError`` when the file cannot be read at all.
    """
    try:
        document = read_document(file) if file else Document({}, {}, ())
    except NotReadable as error:
        raise ConfigError(f"{file}:{error.line}: {error}" if error.line else f"{file}: {error}") from None
    values = copy.deepcopy(dict(document.values))
    problems = [*document.problems, *_secrets_in_file(model, document)]
    _fill_empty_sections(model, values)

    given, wrong = _environment(model, environ)
    variables = {key: variable(key) for key in given}
    for name, key in aliases.items():
        if key not in given and environ.get(name, "").strip():
            given[key], variables[key] = environ[name], name
    for key, value in given.items():
        _put(values, key, value)
    return Sources(
        model=model,
        values=values,
        file=file,
        lines=document.lines,
        variables=variables,
        problems=(*problems, *wrong),
    )


def _environment(model: type[BaseModel], environ: Mapping[str, str]) -> tuple[dict[Key, Any], list[Problem]]:
    """Read our variables: text as it is, everything else as a YAML value."""
    kinds = dict(_leaves(model))
    names = {variable(key): key for key in kinds}
    given: dict[Key, Any] = {}
    problems: list[Problem] = []
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX):
            continue
        if name not in names:
            problems.append(Problem(0, (), _unknown_variable(name, names), variable=name))
            continue
        key = names[name]
        kind, optional = _plain(kinds[key])
        if not text.strip() and not optional:
            problems.append(Problem(0, (), "is empty; give it a value or unset it", variable=name))
        elif not text.strip():
            given[key] = None
        elif _is_text(kind):
            given[key] = text
        else:
            try:
                given[key], found = parse_value(text)
            except NotReadable as error:
                problems.append(Problem(0, (), str(error), variable=name))
            else:
                problems += [Problem(0, problem.key, problem.text, variable=name) for problem in found]
    return given, problems


def _unknown_variable(name: str, names: Iterable[str]) -> str:
    rest = {known.removeprefix(PREFIX): known for known in names}
    inside = [known for known in names if known.startswith(name + SEPARATOR)]
    if inside:
        return f"is a section; set its keys one by one, such as {inside[0]}"
    near = nearest(name.removeprefix(PREFIX), rest, cutoff=0.5)
    advice = f"did you mean {rest[near]}?" if near else "`tenkaigen config` lists what can be set"
    return f"unknown variable; {advice}"


def _secrets_in_file(model: type[BaseModel], document: Document) -> Iterator[Problem]:
    for key, kind in _leaves(model):
        value = _get(document.values, key)
        if _plain(kind)[0] is not SecretStr or not isinstance(value, str):
            continue
        if value != "embedded" and ("://" not in value or mask_urls(value) != value):
            yield Problem(document.lines[key], key, f"a secret has no place in a file; set {variable(key)} instead")


def _leaves(model: type[BaseModel], at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield every setting that can be given by itself, with its annotation; a mapping of sections is one setting."""
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            yield (*at, name), field.annotation
        else:
            yield from _leaves(section, (*at, name))


def _prefixes(key: Key) -> list[Key]:
    """The key itself, then what it is part of, from the inside out."""
    return [key[:length] for length in range(len(key), 0, -1)]


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _model_at(model: type[BaseModel], key: Key) -> type[BaseModel] | None:
    """Find the section that a key names: ``("generation", "modes", "quality")``."""
    current: Any = model
    for part in key:
        current = _plain(current)[0]
        section = _section(current)
        if section is not None:
            if part not in section.model_fields:
                return None
            current = section.model_fields[part].annotation
        elif get_origin(current) is dict:
            current = _plain(get_args(current)[1])[0]
        else:
            return None
    return _section(_plain(current)[0])


def _plain(annotation: Any) -> tuple[Any, bool]:
    """Take ``Annotated`` and ``| None`` off an annotation; the second value says whether ``None`` is allowed."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        members = get_args(annotation)
        rest = [member for member in members if member is not types.NoneType]
        return (_plain(rest[0])[0] if len(rest) == 1 else annotation), len(rest) < len(members)
    return annotation, False


def _is_text(kind: Any) -> bool:
    return get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, str | Path | SecretStr))


def _is_secret(key: Key, model: type[BaseModel]) -> bool:
    section = _model_at(model, key[:-1])
    field = section.model_fields.get(key[-1]) if section else None
    return field is not None and _plain(field.annotation)[0] is SecretStr


def _advice(key: Key, model: type[BaseModel]) -> str:
    """Name the nearest right key: a neighbour, or the same word in another section, or all that there are."""
    section = _model_at(model, key[:-1])
    known = list(section.model_fields) if section else []
    near = nearest(key[-1], known)
    if near:
        return f"did you mean {'.'.join((*key[:-1], near))}?"
    elsewhere = [".".join(leaf) for leaf, _ in _leaves(model) if leaf[-1] == key[-1]]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return f"known here: {', '.join(known)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    try:
        text = mask_urls(json.dumps(value, default=str, ensure_ascii=False))
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return "a huge number"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else text[:57] + "..."


def _fill_empty_sections(model: type[BaseModel], values: dict[str, Any]) -> None:
    """Take ``engine:`` with nothing below it as a section whose keys are all left out."""
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is None or name not in values:
            continue
        if values[name] is None:
            values[name] = {}
        if isinstance(values[name], dict):
            _fill_empty_sections(section, values[name])


def _get(values: Any, key: Key) -> Any:
    for part in key:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _put(values: dict[str, Any], key: Key, value: Any) -> None:
    """Set a value deep inside; a section that is no mapping is left, for the model to refuse."""
    for part in key[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            return
    values[key[-1]] = value
