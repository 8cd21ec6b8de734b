"""Keys for programs that call the API: what they look like, and what they may do."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID
from zlib import crc32

_FORM = re.compile(r"tkg_(?P<secret>[0-9a-f]{64})(?P<checksum>[0-9a-f]{8})")


class Scope(StrEnum):
    """What somebody who calls the API may do."""

    SUBMIT = "submit"  # queue, cancel and repeat jobs, upload pictures
    READ = "read"  # look at jobs
    ADMIN = "admin"  # all of it, and with everybody's jobs


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the database knows it. ``last_used_at`` is right to an hour."""

    id: UUID
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def counts(self, now: datetime) -> bool:
        """Whether it lets anybody in."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


def new_key() -> str:
    """Make a key: 256 random bits, and a checksum by which a mistyped one is known without asking anybody."""
    secret = secrets.token_hex(32)
    return f"tkg_{secret}{_checksum(secret)}"


def digest_of(key: str) -> bytes | None:
    """The SHA-256 by which the database knows a key; ``None`` for what is no key.

    A slow hash protects what people choose and others guess. Nobody guesses 256 random bits, and this one is computed
    for every request. A key is looked up by its digest, so that timing tells nothing of the key itself.
    """
    match = _FORM.fullmatch(key)
    if match is None or match["checksum"] != _checksum(match["secret"]):
        return None
    return hashlib.sha256(key.encode()).digest()


def _checksum(secret: str) -> str:
    return f"{crc32(secret.encode()):08x}"
