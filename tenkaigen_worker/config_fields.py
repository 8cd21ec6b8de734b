"""What the sections of the configuration are made of: their base, the types of values, and contradictions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from tenkaigen_worker.hosts import is_near
from tenkaigen_worker.settings_sources import DISAGREE

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Size = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]
Text = Annotated[str, Field(min_length=1)]
Steps = Annotated[int, Field(ge=1, le=100)]
GuidanceScale = Annotated[float, Field(ge=1, le=20)]

PROJECT_EXAMPLE = "https://PROJECT.supabase.co"

# Sections are strict (`yes` is no number of seconds), but YAML has no type of its own for a path.
FilePath = Annotated[Path, Field(strict=False)]


def _matches(pattern: str, wanted: str) -> AfterValidator:
    """Check text against a pattern, and say in words what would be right."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"should be {wanted}")
        return value

    return AfterValidator(check)


_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
HostPattern = Annotated[
    str,
    _matches(rf"(\*\.)?({_LABEL}\.)+[a-z]([a-z0-9-]*[a-z0-9])?", "a host such as cdn.example.com or *.example.com"),
]
Origin = Annotated[
    str,
    _matches(
        rf"https?://(({_LABEL}\.)*{_LABEL}|\[[0-9a-f:.]+\])(:\d{{1,5}})?", "an origin such as https://shop.example.com"
    ),
]
Device = Annotated[str, _matches(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:0")]
HubId = Annotated[str, _matches(r"[\w.-]+/[\w.-]+", "a name on the Hugging Face hub such as Qwen/Qwen-Image")]
BucketName = Annotated[
    str, _matches(r"[A-Za-z0-9_.-]{1,100}", "a name of letters, digits, dots, hyphens and underscores")
]
ModeName = Annotated[str, _matches(r"[a-z0-9][a-z0-9-]{0,39}", "a name of lower-case letters, digits and hyphens")]


def _project_url(url: str) -> str:
    """Over plain HTTP anybody on the way could read a key, or put in one of their own: not beyond our own network."""
    wanted = f"should be the URL of a Supabase project, such as {PROJECT_EXAMPLE}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(wanted) from None
    if parts.scheme not in ("https", "http") or not host or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(wanted)
    if parts.path.strip("/"):
        raise ValueError(f"should end with the host, as in {PROJECT_EXAMPLE}: what comes behind it is added")
    if parts.scheme == "http" and not is_near(host):
        raise ValueError("should begin with https://: over http, secrets could be read on the way")
    return url.rstrip("/")


ProjectUrl = Annotated[str, AfterValidator(_project_url)]


class Section(BaseModel):
    """A section of the configuration: frozen, and no key that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)


def disagree(message: str, *keys: str) -> PydanticCustomError:
    """Two settings do not fit together; the message is about the first of ``keys``, dotted where they are deeper."""
    return PydanticCustomError(DISAGREE, "{message}", {"message": message, "keys": keys})
