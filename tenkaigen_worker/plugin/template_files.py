"""Templates: prompts with variables, as YAML files, and filling them in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from tenkaigen_worker.errors import FieldProblem, InputError
from tenkaigen_worker.names import suggest
from tenkaigen_worker.plugin.catalog import File, problem_at, read_file
from tenkaigen_worker.plugin.types import (
    OWN_PROMPT,
    PLACEHOLDER,
    VARIABLE,
    Template,
    check_characters,
    check_name,
    check_placeholders,
    check_variables,
    unused_variables,
)

MAX_VALUE = 1000  # characters


def _name(name: str) -> str:
    return check_name(name, "template")


def _words(text: str, info: ValidationInfo) -> str:
    return check_placeholders(text, info.data["variables"]) if "variables" in info.data else text


class TemplateFile(File):
    """What a template file may say; see :class:`~tenkaigen_worker.plugin.Template`."""

    name: Annotated[str, AfterValidator(_name)]
    description: str = ""
    variables: Annotated[dict[str, str | None], AfterValidator(check_variables)] = Field(default_factory=dict)
    prompt: Annotated[str, AfterValidator(_words)]
    negative_prompt: Annotated[str, AfterValidator(_words)] = ""
    style: str | None = None
    replaces: bool = False

    @model_validator(mode="after")
    def _every_variable_is_used(self) -> Self:
        for name in unused_variables(self.variables, self.prompt, self.negative_prompt):
            raise problem_at(("variables", name), f"is used nowhere: write {{{name}}} in the prompt, or leave it out")
        return self


def read_template(file: Path) -> Template:
    """Read one template file; raises :class:`~tenkaigen_worker.plugin.problems.BrokenPlugin`."""
    needs = f"a template needs a name and a prompt, as in 'prompt: \"A sticker of {PLACEHOLDER}\"'"
    return read_file(file, TemplateFile, lambda said: Template(**dict(said), origin=str(file)), needs=needs)


@dataclass(frozen=True, slots=True)
class Expanded:
    """A template filled in: the words of a job's request, before its style."""

    prompt: str
    negative_prompt: str


def expand(template: Template, variables: Mapping[str, object], *, prompt: str = "") -> Expanded:
    """Fill in a template. Values are put in once: braces in them, and in ``prompt``, are letters like any other.

    ``prompt`` is the job's own; a template without ``{prompt}`` has no use for it. A value that is ``None`` or blank
    counts as not given. Raises :class:`~tenkaigen_worker.errors.InputError` with all that is wrong, about the field
    ``template_variables`` or ``prompt``.
    """
    known = dict(template.variables)
    values: dict[str, str] = {name: default for name, default in known.items() if default is not None}
    problems: list[str] = []
    for name, value in variables.items():
        if name not in known:
            problems.append(_unknown(template, name))
        elif isinstance(value, bool) or not isinstance(value, str | int | float | None):
            problems.append(f"{name} must be text, not {_shown(repr(value))}")
        elif value is not None and str(value).strip():
            values[name] = text = str(value)
            problems += _wrong_value(name, text)
    problems += [
        f"{name} is missing: the template {template.name!r} has no default for it"
        for name in known
        if name not in values and not any(problem.startswith(f"{name} ") for problem in problems)
    ]

    found = [FieldProblem("template_variables", problem) for problem in problems]
    if PLACEHOLDER in template.prompt + template.negative_prompt and not prompt.strip():
        found.append(FieldProblem("prompt", f"must not be empty: the template {template.name!r} has a place for it"))
    if found:
        raise InputError.of(found)
    values[OWN_PROMPT] = prompt
    return Expanded(_fill(template.prompt, values), _fill(template.negative_prompt, values))


def _fill(text: str, values: Mapping[str, str]) -> str:
    return re.sub(rf"\{{({VARIABLE.pattern})\}}", lambda found: values[found[1]], text)


def _wrong_value(name: str, text: str) -> list[str]:
    if len(text) > MAX_VALUE:
        return [f"{name} may have at most {MAX_VALUE} characters; this has {len(text)}"]
    try:
        check_characters(text)
    except ValueError as error:
        return [f"{name} {error}"]
    return []


def _unknown(template: Template, name: str) -> str:
    if name == OWN_PROMPT:
        return f"{name} is the job's own prompt: say it there"
    known = list(template.variables)
    near = suggest(name, known)
    there = f"they are: {', '.join(known)}" if known else "it has none"
    start = f"the template {template.name!r} has no variable {_shown(name)!r}"
    return f"{start}{';' if near else ''}{near or f'; {there}'}"


def _shown(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
