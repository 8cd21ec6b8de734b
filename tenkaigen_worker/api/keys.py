"""API keys, as requests bring them: looked up in the database, and believed for a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from tenkaigen_worker.access import ApiKey, digest_of
from tenkaigen_worker.api.parts import KeyTable

# How long an answer about a key counts, in seconds: not every request asks the database, and a revocation is quick.
KEPT_SECONDS = 3.0
_KEPT_AT_MOST = 1000


@dataclass(frozen=True, slots=True)
class _Answer:
    key: ApiKey | None
    until: float


class Keys:
    """Knows keys by their digests, each for ``KEPT_SECONDS``."""

    def __init__(self, table: KeyTable, clock: Callable[[], float] = monotonic) -> None:
        self._table = table
        self._clock = clock
        self._answers: dict[bytes, _Answer] = {}

    async def find(self, text: str) -> ApiKey | None:
        """The key that ``text`` is, or ``None``: it has no key's form, is unknown, revoked or past its time."""
        digest = digest_of(text)
        if digest is None:
            return None
        known = self._answers.get(digest)
        if known is None or known.until <= self._clock():
            known = _Answer(await self._table.find(digest), self._clock() + KEPT_SECONDS)
            if len(self._answers) >= _KEPT_AT_MOST:  # somebody makes up keys
                self._answers.clear()
            self._answers[digest] = known
        return known.key
