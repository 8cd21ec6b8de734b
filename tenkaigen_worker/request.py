"""The rules for what a user may ask for: the same for HTTP requests and for rows that came by plain SQL."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

from tenkaigen_worker import request_rules as rules
from tenkaigen_worker.errors import Code, FieldProblem, InputError
from tenkaigen_worker.names import fold
from tenkaigen_worker.offers import Announcement, Limits, Offer
from tenkaigen_worker.plugin.types import AUTO, LoraUse
from tenkaigen_worker.recipe import EDIT_PIXELS, MAX_PIXELS, MAX_SIDE, MIN_SIDE, SEEDS, SIDE_STEP
from tenkaigen_worker.references.given import read_reference, read_strength
from tenkaigen_worker.request_rules import MAX_TEXT

# What the table has columns for and this version cannot do: refused, so that nobody believes that it was done.
NOT_YET = ("webhook_url",)

# What else HTTP calls a field.
ALIASES = {"variables": "template_variables"}


@dataclass(frozen=True, slots=True)
class Names:
    """The names a request may use: those that there are where it will be made. ``loras`` has aliases, too."""

    styles: Collection[str]
    modes: Collection[str]
    loras: Collection[str] = ()
    templates: Collection[str] = ()

    @classmethod
    def of(cls, offer: Offer | Announcement) -> Names:
        """What one worker has, or all of them together."""
        return cls(offer.styles, offer.modes, every_spelling(offer.loras), offer.templates)


def every_spelling(loras: Mapping[str, Sequence[str]]) -> list[str]:
    """All that a LoRA may be called: the names and their aliases."""
    return [name for known, aliases in loras.items() for name in (known, *aliases)]


def _side(value: object) -> int:
    side = rules.whole(MIN_SIDE, MAX_SIDE)(value)
    if side % SIDE_STEP:
        below = side // SIDE_STEP * SIDE_STEP
        raise ValueError(f"must be a multiple of {SIDE_STEP}, such as {below} or {below + SIDE_STEP}, not {side}")
    return side


def _height(value: object, info: ValidationInfo) -> int:
    height = _side(value)
    width = info.data.get("width")
    if width and width * height > MAX_PIXELS:
        raise ValueError(
            f"{width} x {height} is {width * height} pixels, and a picture may have at most {MAX_PIXELS}, "
            f"such as 2048 x 2048: with width {width} it may be {MAX_PIXELS // width // SIDE_STEP * SIDE_STEP}"
        )
    return height


def _names(info: ValidationInfo) -> Names:
    return cast("Names", info.context)


def _style(value: object, info: ValidationInfo) -> str:
    if isinstance(value, str) and fold(value) == AUTO:
        return AUTO
    return rules.name("style", value, _names(info).styles)


def _mode(value: object, info: ValidationInfo) -> str:
    return rules.name("mode", value, _names(info).modes)


def _template(value: object, info: ValidationInfo) -> str:
    return rules.name("template", value, _names(info).templates)


def _franchise(value: object, info: ValidationInfo) -> str:
    return rules.name("LoRA", value, _names(info).loras)


def _loras(value: object, info: ValidationInfo) -> tuple[LoraUse, ...]:
    return rules.lora_uses(value, _names(info).loras)


def _variables(value: object, info: ValidationInfo) -> dict[str, str]:
    if "template" in info.data and info.data["template"] is None:
        raise ValueError("needs a template to fill in: name one in template")
    return rules.variables(value)


def _reference(value: object) -> str:
    return str(read_reference(rules.text(MAX_TEXT)(value)))


def _more_references(value: object, info: ValidationInfo) -> tuple[str, ...]:
    _needs_reference(info)
    listed = [value] if isinstance(value, str) and not value.lstrip().startswith("[") else rules.from_column(value, "[")
    if not isinstance(listed, list | tuple):
        raise ValueError(f'must be a list, such as ["upload:ID", "job:ID/0"], not {rules.shown(value)}')
    if len(listed) > rules.MAX_MORE_REFERENCES:
        most = rules.MAX_MORE_REFERENCES
        raise ValueError(f"may have at most {most} pictures beside the one in reference; this has {len(listed)}")
    return tuple(map(_reference, listed))


def _mask(value: object, info: ValidationInfo) -> str:
    _needs_reference(info)
    return _reference(value)


def _strength(value: object, info: ValidationInfo) -> float:
    _needs_reference(info)
    return read_strength(value)


def _needs_reference(info: ValidationInfo) -> None:
    if "reference" in info.data and info.data["reference"] is None:
        raise ValueError("needs a picture to start from: name one in reference")


def _metadata(value: object) -> dict[str, Any]:
    return rules.json_object(value, '{"order": 17}')


def _expiry(value: object, info: ValidationInfo) -> datetime:
    expires_at = rules.moment(value)
    run_at = info.data.get("run_at")
    if run_at and expires_at <= run_at:
        raise ValueError(f"must be after run_at, which is {run_at.isoformat()}")
    return expires_at


class Request(BaseModel):
    """What a user asked for, checked. ``None`` means: not asked for. Sizes in pixels.

    ``prompt`` is empty where a template says everything.
    """

    model_config = ConfigDict(frozen=True)

    prompt: Annotated[str, BeforeValidator(rules.text(MAX_TEXT))] = ""
    negative_prompt: Annotated[str, BeforeValidator(rules.text(MAX_TEXT))] | None = None
    template: Annotated[str, BeforeValidator(_template)] | None = None
    template_variables: Annotated[dict[str, str], BeforeValidator(_variables)] | None = None
    style: Annotated[str, BeforeValidator(_style)] | None = None
    mode: Annotated[str, BeforeValidator(_mode)] | None = None
    loras: Annotated[tuple[LoraUse, ...], BeforeValidator(_loras)] | None = None
    franchise: Annotated[str, BeforeValidator(_franchise)] | None = None
    reference: Annotated[str, BeforeValidator(_reference)] | None = None
    more_references: Annotated[tuple[str, ...], BeforeValidator(_more_references)] | None = None
    mask: Annotated[str, BeforeValidator(_mask)] | None = None
    strength: Annotated[float, BeforeValidator(_strength)] | None = None
    width: Annotated[int, BeforeValidator(_side)] | None = None
    height: Annotated[int, BeforeValidator(_height)] | None = None
    seed: Annotated[int, BeforeValidator(rules.whole(0, SEEDS - 1))] | None = None
    steps: Annotated[int, BeforeValidator(rules.whole(1, 100))] | None = None
    guidance_scale: Annotated[float, BeforeValidator(rules.number(1, 20))] | None = None
    count: Annotated[int, BeforeValidator(rules.whole(1, 8))] = 1
    metadata: Annotated[dict[str, Any], BeforeValidator(_metadata)] | None = None
    run_at: Annotated[datetime, BeforeValidator(rules.moment)] | None = None
    expires_at: Annotated[datetime, BeforeValidator(_expiry)] | None = None

    def columns(self) -> dict[str, Any]:
        """What to insert into ``generation_jobs``, by column; the table's defaults stand for the rest."""
        return self.model_dump(exclude_none=True)


def read_request(fields: Mapping[str, Any], names: Names) -> Request:
    """Check a JSON body or the columns of a row. Null and blank count as not given; unknown fields are ignored.

    Raises :class:`~tenkaigen_worker.errors.InputError` that names every wrong field and what would be right.
    """
    given = {name: value for name, value in fields.items() if not _is_blank(value)}
    for other in ALIASES.keys() & given.keys():
        given.setdefault(ALIASES[other], given.pop(other))
    not_yet = [FieldProblem(name, "this version cannot do that yet: leave it out") for name in NOT_YET if name in given]
    wrong: list[FieldProblem] = []
    if "prompt" not in given and "template" not in given:
        wrong.append(FieldProblem("prompt", "must not be empty: say in words what to draw"))
    try:
        request = Request.model_validate(given, context=names)
    except ValidationError as error:
        wrong += [_problem(str(e["loc"][0]), e["msg"]) for e in error.errors(include_url=False)]
    if wrong:
        raise InputError.of([*wrong, *not_yet])
    if not_yet:
        raise InputError("; ".join(map(str, not_yet)), code=Code.UNSUPPORTED, problems=not_yet)
    return request


def check_size(width: int | None, height: int | None, limits: Limits, *, where: str, references: int = 0) -> None:
    """Raise :class:`~tenkaigen_worker.errors.InputError` when a picture of both sides, in pixels, is beyond the limits.

    Sides that are not known yet pass. ``where`` says in words whose limits they are. An edit is drawn beside its
    ``references``, so that their pixels count as well.
    """
    if width is None or height is None or limits.max_pixels is None:
        return
    pixels, left = width * height + references * EDIT_PIXELS, limits.max_pixels - references * EDIT_PIXELS
    if limits.allow(pixels):
        return
    with_them = f" with its {references} reference{'s' * (references > 1)}" if references else ""
    text = f"{width} x {height}{with_them} is {pixels} pixels, and {where} at most {limits.max_pixels}"
    if left < MIN_SIDE * MIN_SIDE:
        problem = FieldProblem("reference", f"{text}: give fewer of them, or use a worker with more memory")
    else:
        side, fitting = math.isqrt(left) // SIDE_STEP * SIDE_STEP, left // width // SIDE_STEP * SIDE_STEP
        instead = f": with width {width} it may be {fitting}" if fitting >= MIN_SIDE else ""
        problem = FieldProblem("height", f"{text}, such as {side} x {side}{instead}")
    raise InputError(str(problem), code=Code.TOO_LARGE, problems=[problem])


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {}, ())


def _problem(field: str, text: str) -> FieldProblem:
    return FieldProblem(field, text.removeprefix("Value error, "))


def request_hash(request: Request) -> str:
    """Hash what was asked for (SHA-256, hex): equal for requests that mean the same, however they were spelled."""
    asked = request.model_dump(mode="json", exclude_none=True)
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
