"""The frozen values that plugins are given and give back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tenkaigen_worker.names import fold, suggest
from tenkaigen_worker.plugin.bounds import check_area, check_guidance_scale, check_side, check_steps
from tenkaigen_worker.plugin.lora_source import parse_source

OWN_PROMPT = "prompt"
PLACEHOLDER = f"{{{OWN_PROMPT}}}"
MAX_LORA_WEIGHT = 4.0

# A job's ``style`` may say this; it then gets the style that its prompt names.
AUTO = "auto"

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_BRACES = re.compile(r"\{[^{}]*\}?|\}")


class Refused(Exception):
    """Raise this from ``transform_prompt`` or ``process_image`` to refuse a request; its text is shown to the user."""


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA that is asked for, by its name or an alias; ``weight`` is the LoRA's own unless given.

    Raises ``ValueError`` when one of them cannot be used.
    """

    name: str
    weight: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "LoRA")
        if self.weight is not None:
            check_weight(self.weight)


@dataclass(frozen=True, slots=True)
class Style:
    """A named look.

    ``prompt`` is a template in which ``{prompt}`` stands for the user's words; ``negative_prompt`` is joined to the
    user's own. ``mode``, ``steps``, ``guidance_scale``, ``width`` and ``height`` (pixels) are what a job of this style
    gets that does not ask for something else, and ``loras`` are applied to every one. ``replaces`` allows this style to
    take the place of another of the same name. ``origin``, the file or package it came from, is filled in when it is
    loaded.

    Raises ``ValueError`` when one of them cannot be used.
    """

    name: str
    description: str = ""
    prompt: str = PLACEHOLDER
    negative_prompt: str = ""
    mode: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    loras: tuple[LoraUse, ...] = ()
    replaces: bool = False
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_style_name(self.name)
        check_template(self.prompt)
        check_words(self.negative_prompt)
        check_characters(self.description)
        if self.steps is not None:
            check_steps(self.steps)
        if self.guidance_scale is not None:
            check_guidance_scale(self.guidance_scale)
        for side in (self.width, self.height):
            if side is not None:
                check_side(side)
        if self.width and self.height:
            check_area(self.width, self.height)


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA that jobs may use.

    ``source`` is ``hub:OWNER/REPO/FILE.safetensors@REVISION``, an ``https://`` URL, or a path on this machine; a
    relative one starts at the plugin's folder. ``sha256`` (hex) is what the file must have. ``weight``, from -4 to 4,
    is how strongly it is applied where nobody says. ``aliases`` are further names, such as the franchise's; with
    ``match_prompt`` they and the name also count where a prompt has them as whole words. ``trigger_words`` are put
    before the prompt. ``base_model`` is the model it was trained for. ``commercial_use`` is what its ``licence``
    allows; ``None`` is unknown. ``replaces`` and ``origin`` as in :class:`Style`.

    Raises ``ValueError`` when one of them cannot be used.
    """

    name: str
    source: str
    sha256: str
    description: str = ""
    aliases: tuple[str, ...] = ()
    match_prompt: bool = False
    trigger_words: tuple[str, ...] = ()
    weight: float = 1.0
    base_model: str = "Qwen/Qwen-Image"
    licence: str = ""
    commercial_use: bool | None = None
    replaces: bool = False
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.aliases, str) or isinstance(self.trigger_words, str):
            raise ValueError("a LoRA's aliases and trigger_words are tuples of texts, such as ('one', 'two')")
        for name in (self.name, *self.aliases):
            check_name(name, "LoRA")
        for words in self.trigger_words:
            check_characters(words)
        parse_source(self.source)
        check_sha256(self.sha256)
        check_weight(self.weight)


@dataclass(frozen=True, slots=True)
class Template:
    """A named prompt with variables in braces: ``prompt`` is ``{prompt} in a {place}, {mood}``.

    ``{prompt}`` stands for the job's own prompt. ``variables`` maps each other variable to its default; one whose
    default is ``None`` must be given. ``style`` is what its jobs get that name none. ``replaces`` and ``origin`` as in
    :class:`Style`.

    Raises ``ValueError`` when the name cannot be used, or the braces and ``variables`` do not agree.
    """

    name: str
    prompt: str
    description: str = ""
    negative_prompt: str = ""
    variables: Mapping[str, str | None] = field(default_factory=dict)
    style: str | None = None
    replaces: bool = False
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_name(self.name, "template")
        check_variables(self.variables)
        check_placeholders(self.prompt, self.variables)
        check_placeholders(self.negative_prompt, self.variables)
        if unused := unused_variables(self.variables, self.prompt, self.negative_prompt):
            raise ValueError(f"the variable {unused[0]!r} is used nowhere")


def check_name(name: str, kind: str = "style") -> str:
    """Refuse a name that no one could type or show; raises ``ValueError``."""
    if not any(map(str.isalnum, name)):
        raise ValueError(f"a {kind}'s name needs a letter or a digit, and {name!r} has none")
    if len(name) > 64 or not name.isprintable():
        raise ValueError(f"a {kind}'s name is one line of at most 64 characters")
    return name


def check_style_name(name: str) -> str:
    """Refuse what :func:`check_name` refuses, and the name that has a meaning of its own; raises ``ValueError``."""
    if fold(name) == AUTO:
        raise ValueError(f"{name!r} is taken: a job with 'style: {AUTO}' gets the style that its prompt names")
    return check_name(name)


def check_variables(variables: Mapping[str, str | None]) -> Mapping[str, str | None]:
    """Refuse variables that no template could have; raises ``ValueError``."""
    for name, default in variables.items():
        if not VARIABLE.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a variable: write letters, digits and _, at most 40")
        if name == OWN_PROMPT:
            raise ValueError(f"{name!r} has no place here: {PLACEHOLDER} is always the job's own prompt")
        check_characters(default or "")
    return variables


def check_placeholders(text: str, variables: Mapping[str, str | None]) -> str:
    """Refuse braces that hold no variable; raises ``ValueError``."""
    check_characters(text)
    known = [OWN_PROMPT, *variables]
    for found in _BRACES.findall(text):
        name = found[1:-1]
        if found != f"{{{name}}}" or name not in known:
            near = suggest(name, known)
            raise ValueError(f"{found!r} is no variable;{near or ' there is ' + ', '.join(known)}")
    return text


def unused_variables(variables: Mapping[str, str | None], *texts: str) -> list[str]:
    """List the variables that stand in none of the texts."""
    return [name for name in variables if not any(f"{{{name}}}" in text for text in texts)]


def check_weight(weight: float) -> float:
    """Refuse a LoRA's weight that only makes noise; raises ``ValueError``."""
    if not (math.isfinite(weight) and abs(weight) <= MAX_LORA_WEIGHT):
        raise ValueError(f"a LoRA's weight is from {-MAX_LORA_WEIGHT:g} to {MAX_LORA_WEIGHT:g}, not {weight:g}")
    return weight


def check_sha256(digest: str) -> str:
    """Refuse what is no SHA-256 in hex, as ``sha256sum`` prints it; raises ``ValueError``."""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError("sha256 is 64 hex digits in lower case, as sha256sum prints them")
    return digest


def check_template(template: str) -> str:
    """Refuse a template that would lose the user's words or leave braces in them; raises ``ValueError``."""
    if PLACEHOLDER not in template:
        raise ValueError(f"the template needs {PLACEHOLDER} where the user's words go, as in '{PLACEHOLDER}, ink'")
    check_words(template.replace(PLACEHOLDER, ""))
    return template


def check_words(words: str) -> str:
    """Refuse braces, which only ``{prompt}`` in a style's ``prompt`` may have; raises ``ValueError``."""
    check_characters(words)
    if found := _BRACES.search(words):
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
