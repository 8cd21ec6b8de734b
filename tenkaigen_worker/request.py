"""The rules for what a user may ask for: the same for HTTP requests and for rows that came by plain SQL."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

from tenkaigen_worker.errors import Code, FieldProblem, InputError
from tenkaigen_worker.names import find, unknown
from tenkaigen_worker.plugin.types import check_characters
from tenkaigen_worker.recipe import MAX_PIXELS, MAX_SIDE, MIN_SIDE, SEEDS, SIDE_STEP

MAX_TEXT = 4000  # characters
MAX_METADATA = 16_384  # bytes as JSON

# What the table has columns for and this version cannot do: refused, so that nobody pays for a picture without it.
NOT_YET = (
    "loras",
    "franchise",
    "template",
    "template_variables",
    "variables",
    "reference",
    "mask",
    "strength",
    "webhook_url",
)


@dataclass(frozen=True, slots=True)
class _Known:
    """The names a request may use."""

    styles: Collection[str]
    modes: Collection[str]


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _whole(low: int, high: int) -> Callable[[object], int]:
    """Make a rule for whole numbers. Pages send them as text, too; JSON's ``true`` is not 1."""

    def check(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {_show(value)}")
        return value

    return check


def _number(low: float, high: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?", value.strip()):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}, not {_show(value)}")
        return float(value)

    return check


def _text(limit: int) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {_show(value)}")
        check_characters(value)
        if len(value) > limit:
            raise ValueError(f"may have at most {limit} characters; this has {len(value)}")
        return value

    return check


def _side(value: object) -> int:
    side = _whole(MIN_SIDE, MAX_SIDE)(value)
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


def _style(value: object, info: ValidationInfo) -> str:
    return _name("style", value, cast("_Known", info.context).styles)


def _mode(value: object, info: ValidationInfo) -> str:
    return _name("mode", value, cast("_Known", info.context).modes)


def _name(kind: str, value: object, names: Collection[str]) -> str:
    name = find(_text(MAX_TEXT)(value), names)
    if name is None:
        raise ValueError(unknown(kind, str(value), names))
    return name


def _metadata(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f'must be an object, such as {{"order": 17}}, not {_show(value)}')
    try:
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("must be plain JSON, without NaN or Infinity, and not nested hundreds deep") from None
    # json.dumps escapes NUL; a backslash before the escape would make it six harmless characters.
    if re.search(r"(?<!\\)(\\\\)*\\u0000", text):
        check_characters("\0")
    check_characters(text)
    size = len(text.encode())
    if size > MAX_METADATA:
        raise ValueError(f"may have at most {MAX_METADATA} bytes as JSON; this has {size}")
    return dict(value)


def _moment(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(moment, datetime) or moment.utcoffset() is None:
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        example = "2026-11-30T18:00:00Z"
        raise ValueError(f"must be a date and time with its zone, such as {example}, not {_show(value)}") from None


def _expiry(value: object, info: ValidationInfo) -> datetime:
    expires_at = _moment(value)
    run_at = info.data.get("run_at")
    if run_at and expires_at <= run_at:
        raise ValueError(f"must be after run_at, which is {run_at.isoformat()}")
    return expires_at


class Request(BaseModel):
    """What a user asked for, checked. ``None`` means: not asked for. Sizes in pixels."""

    model_config = ConfigDict(frozen=True)

    prompt: Annotated[str, BeforeValidator(_text(MAX_TEXT))]
    negative_prompt: Annotated[str, BeforeValidator(_text(MAX_TEXT))] | None = None
    style: Annotated[str, BeforeValidator(_style)] | None = None
    mode: Annotated[str, BeforeValidator(_mode)] | None = None
    width: Annotated[int, BeforeValidator(_side)] | None = None
    height: Annotated[int, BeforeValidator(_height)] | None = None
    seed: Annotated[int, BeforeValidator(_whole(0, SEEDS - 1))] | None = None
    steps: Annotated[int, BeforeValidator(_whole(1, 100))] | None = None
    guidance_scale: Annotated[float, BeforeValidator(_number(1, 20))] | None = None
    count: Annotated[int, BeforeValidator(_whole(1, 8))] = 1
    metadata: Annotated[dict[str, Any], BeforeValidator(_metadata)] | None = None
    run_at: Annotated[datetime, BeforeValidator(_moment)] | None = None
    expires_at: Annotated[datetime, BeforeValidator(_expiry)] | None = None

    def columns(self) -> dict[str, Any]:
        """What to insert into ``generation_jobs``, by column; the table's defaults stand for the rest."""
        return self.model_dump(exclude_none=True)


def read_request(fields: Mapping[str, Any], *, styles: Collection[str], modes: Collection[str]) -> Request:
    """Check a JSON body or the columns of a row. Null and blank count as not given; unknown fields are ignored.

    Raises :class:`~tenkaigen_worker.errors.InputError` that names every wrong field and what would be right.
    """
    given = {name: value for name, value in fields.items() if not _is_blank(value)}
    not_yet = [FieldProblem(name, "this version cannot do that yet: leave it out") for name in NOT_YET if name in given]
    wrong: list[FieldProblem] = []
    try:
        request = Request.model_validate(given, context=_Known(styles, modes))
    except ValidationError as error:
        wrong = [_problem(str(e["loc"][0]), e["type"], e["msg"]) for e in error.errors(include_url=False)]
    if wrong:
        raise InputError.of([*wrong, *not_yet])
    if not_yet:
        raise InputError("; ".join(map(str, not_yet)), code=Code.UNSUPPORTED, problems=not_yet)
    return request


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def _problem(field: str, kind: str, text: str) -> FieldProblem:
    if kind == "missing":
        return FieldProblem(field, "must not be empty: say in words what to draw")
    return FieldProblem(field, text.removeprefix("Value error, "))


def request_hash(request: Request) -> str:
    """Hash what was asked for (SHA-256, hex): equal for requests that mean the same, however they were spelled."""
    asked = request.model_dump(mode="json", exclude_none=True)
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
