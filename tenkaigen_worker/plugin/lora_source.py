"""Where a LoRA's file comes from: the Hugging Face hub, a web server, or this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from tenkaigen_worker.hosts import is_loopback

SUFFIX = ".safetensors"
FORMS = "hub:OWNER/REPO/FILE.safetensors@REVISION, an https:// URL, or a path"

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@]+)@(?P<revision>[\w.-]+(/[\w.-]+)*)")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository on the Hugging Face hub; ``revision`` is a branch, a tag or a commit."""

    repo: str
    file: str
    revision: str

    def __str__(self) -> str:
        return f"hub:{self.repo}/{self.file}@{self.revision}"


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file that a web server gives to anyone who asks."""

    url: str

    def __str__(self) -> str:
        return urlsplit(self.url)._replace(query="", fragment="").geturl()  # a signature may stand there


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine, used where it lies."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Source = HubFile | WebFile | LocalFile


def parse_source(text: str) -> Source:
    """Read a LoRA's ``source``; raises ``ValueError`` that says what would be right."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "hub":
        return _hub_file(rest)
    if "://" in text:
        check_url(text)
        return WebFile(text)
    if not text.strip() or "\0" in text:
        raise ValueError(f"a LoRA's source is {FORMS}")
    if Path(text).suffix.lower() != SUFFIX:
        raise ValueError(f"{text} does not end with {SUFFIX}, and no other kind of file is loaded: a source is {FORMS}")
    return LocalFile(Path(text))


def anchored(text: str, folder: Path) -> str:
    """Let a path that is relative start at ``folder``; other sources stay as they are."""
    source = parse_source(text)
    if isinstance(source, LocalFile):
        return str(replace(source, path=folder / source.path.expanduser()))
    return text


def check_url(url: str) -> None:
    """Refuse what is not https; http may lead to this machine only. Raises ``ValueError``."""
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ValueError("this is no URL: it has a space in it, or what cannot be printed")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"this is no URL: {error}") from None
    if parts.username or parts.password:
        raise ValueError("a URL with a name or password in it is a secret: it has no place here")
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))):
        raise ValueError("a URL must begin with https:// and a host; http:// is only for this machine (127.0.0.1)")


def _hub_file(text: str) -> HubFile:
    found = _HUB.fullmatch(text if "@" in text else f"{text}@main")
    parts = found["file"].split("/") if found else []
    if not found or not found["file"].endswith(SUFFIX) or not all(part.strip(".") for part in parts):
        raise ValueError(f"a file on the hub is named hub:OWNER/REPO/FILE{SUFFIX}@REVISION")
    return HubFile(found["repo"], found["file"], found["revision"])
