"""The frozen values that plugins are given and give back."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PLACEHOLDER = "{prompt}"


class Refused(Exception):
    """Raise this from ``transform_prompt`` or ``process_image`` to refuse a request; its text is shown to the user."""


@dataclass(frozen=True, slots=True)
class Style:
    """A named look.

    ``prompt`` is a template in which ``{prompt}`` stands for the user's words; ``negative_prompt`` is joined to the
    user's own. ``replaces`` allows this style to take the place of another of the same name. ``origin``, the file or
    package it came from, is filled in when it is loaded.

    Raises ``ValueError`` when one of them cannot be used.
    """

    name: str
    description: str = ""
    prompt: str = PLACEHOLDER
    negative_prompt: str = ""
    replaces: bool = False
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        check_template(self.prompt)
        check_words(self.negative_prompt)
        check_characters(self.description)


def check_name(name: str) -> str:
    """Refuse a style name that no one could type or show; raises ``ValueError``."""
    if not any(map(str.isalnum, name)):
        raise ValueError(f"a style's name needs a letter or a digit, and {name!r} has none")
    if len(name) > 64 or not name.isprintable():
        raise ValueError("a style's name is one line of at most 64 characters")
    return name


def check_template(template: str) -> str:
    """Refuse a template that would lose the user's words or leave braces in them; raises ``ValueError``."""
    if PLACEHOLDER not in template:
        raise ValueError(f"the template needs {PLACEHOLDER} where the user's words go, as in '{PLACEHOLDER}, ink'")
    check_words(template.replace(PLACEHOLDER, ""))
    return template


def check_words(words: str) -> str:
    """Refuse braces, which only ``{prompt}`` in a style's ``prompt`` may have; raises ``ValueError``."""
    check_characters(words)
    if found := re.search(r"\{[^{}]*\}?|\}", words):
        raise ValueError(
            f"{found[0]!r} means nothing here: {PLACEHOLDER}, in a style's prompt, is the only placeholder"
        )
    return words


def check_characters(text: str) -> str:
    """Refuse what PostgreSQL cannot keep as text; raises ``ValueError``."""
    if "\0" in text:
        raise ValueError("contains a NUL character (U+0000), which no text may have: remove it")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError("contains half of a surrogate pair (U+D800 to U+DFFF), which is no character: remove it")
    return text


@dataclass(frozen=True, slots=True)
class Prompt:
    """The words that go to the model, after the style's template was filled in.

    ``asked`` is what the user wrote, before the style: look there to judge a request, and change ``text``.

    Raises ``ValueError`` when they hold what cannot be kept with the job: NUL, or half of a surrogate pair.
    """

    text: str
    negative: str
    style: str
    asked: str

    def __post_init__(self) -> None:
        if not (isinstance(self.text, str) and isinstance(self.negative, str)):
            raise TypeError("Prompt.text and Prompt.negative must be text")
        for text in (self.text, self.negative, self.style):
            check_characters(text)


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """What ``process_image`` may know about the picture it is given."""

    index: int
    seed: int
    style: str


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
