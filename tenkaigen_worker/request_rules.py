"""The rules for single values of a request. Each answers it, or raises ``ValueError`` with what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from tenkaigen_worker.names import find, unknown
from tenkaigen_worker.plugin.types import LoraUse, check_characters

MAX_TEXT = 4000  # characters
MAX_JSON = 16_384  # bytes
MAX_LORAS = 16  # as many as loras.max_per_job may say
MAX_MORE_REFERENCES = 2  # with the first one, as many as the model for edits was trained on


def shown(value: object) -> str:
    """A value as an error quotes it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def whole(low: int, high: int) -> Callable[[object], int]:
    """Make a rule for whole numbers. Pages send them as text, too; JSON's ``true`` is not 1."""

    def check(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {shown(value)}")
        return value

    return check


def number(low: float, high: float) -> Callable[[object], float]:
    """Make a rule for numbers."""

    def check(value: object) -> float:
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?", value.strip()):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}, not {shown(value)}")
        return float(value)

    return check


def text(limit: int) -> Callable[[object], str]:
    """Make a rule for text of at most so many characters."""

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {shown(value)}")
        check_characters(value)
        if len(value) > limit:
            raise ValueError(f"may have at most {limit} characters; this has {len(value)}")
        return value

    return check


def name(kind: str, value: object, names: Collection[str]) -> str:
    """Find the one of ``names`` that is meant, in its own spelling; ``kind`` is the word for one."""
    found = find(text(MAX_TEXT)(value), names)
    if found is None:
        raise ValueError(unknown(kind, str(value), names) if names else f"there is no {kind} {shown(value)}, nor any")
    return found


def json_object(value: object, example: str) -> dict[str, Any]:
    """Check an object that the database must be able to keep."""
    if not isinstance(value, Mapping):
        raise ValueError(f"must be an object, such as {example}, not {shown(value)}")
    try:
        written = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("must be plain JSON, without NaN or Infinity, and not nested hundreds deep") from None
    # json.dumps escapes NUL; a backslash before the escape would make it six harmless characters.
    if re.search(r"(?<!\\)(\\\\)*\\u0000", written):
        check_characters("\0")
    check_characters(written)
    size = len(written.encode())
    if size > MAX_JSON:
        raise ValueError(f"may have at most {MAX_JSON} bytes as JSON; this has {size}")
    return dict(value)


def from_column(value: object, opening: str) -> object:
    """Read a value that the claim hands over as the JSON text of its column; anything else stays as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(opening):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"must be plain JSON, and not nested hundreds deep; not {shown(value)}") from None


def variables(value: object) -> dict[str, str]:
    """Check a template's variables; numbers count as text."""
    given = json_object(from_column(value, "{"), '{"animal": "fox"}')
    for key, word in given.items():
        if isinstance(word, bool) or not isinstance(word, str | int | float | None):
            raise ValueError(f"{shown(key)} must be text, not {shown(word)}")
    return {key: str(word) for key, word in given.items() if word is not None}


def lora_uses(value: object, names: Collection[str]) -> tuple[LoraUse, ...]:
    """Check LoRAs: a name, or a list of names and of objects with a name and a weight."""
    listed = from_column(value, "[")
    if isinstance(listed, str):
        listed = [listed]
    if not isinstance(listed, list | tuple):
        raise ValueError(f'must be a list, such as ["Ink", {{"name": "Sumi", "weight": 0.5}}], not {shown(value)}')
    if len(listed) > MAX_LORAS:
        raise ValueError(f"may have at most {MAX_LORAS} entries; this has {len(listed)}")
    uses = tuple(_lora_use(asked, names) for asked in listed)
    twice = next((use.name for place, use in enumerate(uses) if use.name in {one.name for one in uses[:place]}), None)
    if twice:
        raise ValueError(f"{twice} is in it twice")
    return uses


def _lora_use(asked: object, names: Collection[str]) -> LoraUse:
    if isinstance(asked, LoraUse):
        asked = {"name": asked.name, "weight": asked.weight}
    if not isinstance(asked, Mapping):
        asked = {"name": asked}
    if not asked.keys() <= {"name", "weight"} or "name" not in asked:
        raise ValueError(
            f'must be names, or objects such as {{"name": "Ink", "weight": 0.8}}, not {shown(dict(asked))}'
        )
    weight = asked.get("weight")
    return LoraUse(name("LoRA", asked["name"], names), None if weight is None else number(-4, 4)(weight))


def moment(value: object) -> datetime:
    """Check a date and time with its zone; answers it in UTC."""
    try:
        read = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(read, datetime) or read.utcoffset() is None:
            raise ValueError
        return read.astimezone(UTC)
    except (ValueError, OverflowError):
        example = "2026-11-30T18:00:00Z"
        raise ValueError(f"must be a date and time with its zone, such as {example}, not {shown(value)}") from None
