"""The frozen values that plugins are given and give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


class Refused(Exception):
    """Raise this from ``transform_prompt`` to refuse a request; its text is shown to the user."""


@dataclass(frozen=True, slots=True)
class Style:
    """A named look.

    ``prompt`` is a template in which ``{prompt}`` stands for the user's words; ``negative_prompt`` is joined to the
    user's own. ``replaces`` allows this style to take the place of another of the same name.
    """

    name: str
    description: str = ""
    prompt: str = "{prompt}"
    negative_prompt: str = ""
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """The words that go to the model, after the style's template was filled in."""

    text: str
    negative: str
    style: str


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """What ``process_image`` may know about the picture it is given."""

    index: int
    seed: int
    style: str
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """What ``job_finished`` is told: the outcome of one job, after it is in the database."""

    id: str
    user_id: str | None
    status: str
    style: str | None
    urls: tuple[str, ...] = ()
    error_code: str | None = None
    processing_time_ms: int | None = None
