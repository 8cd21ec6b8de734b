"""What Supabase Storage refuses: read from its answers, told apart, and said in words."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto

import httpx
from storage3.exceptions import StorageApiError

# 544 is Supabase's own word for a database that did not answer in time.
PASSING = frozenset({408, 423, 425, 429, 544, *range(500, 600)})
_MESSAGE_LENGTH = 200
_UNPARSED = "Unable to parse error message: "
_MARKUP = re.compile(r"<(script|style|head)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)


class Kind(Enum):
    """What a refusal is about, and so what can be done about it."""

    PASSING = auto()  # it may go at the next try
    TAKEN = auto()  # a file of this name is there
    NO_FILE = auto()
    NO_BUCKET = auto()
    KEY = auto()  # who we are, and what we may
    ADDRESS = auto()  # what answers is no Supabase Storage
    FILE = auto()  # this very file: too large, of a type that the bucket does not take, a name it does not like


class Refused(Exception):
    """One request did not do what it should. ``retry_after`` is how many seconds the server asks to wait."""

    def __init__(self, kind: Kind, words: str, retry_after: float = 0.0) -> None:
        super().__init__(words)
        self.kind = kind
        self.retry_after = retry_after


def read_refusal(error: StorageApiError, mask: Callable[[str], str]) -> Refused:
    """Tell what an error of the client library is about.

    Nearly every refusal travels as HTTP 400 and has the real status inside its body; gateways and proxies answer pages
    of their own, with a status of their own. ``mask`` takes secrets out of the text.
    """
    response = _response(error)
    status = _status(error, response)
    words = f"{status} {_in_words(mask(str(error.message)))}".rstrip()
    return Refused(_kind(error, status), words, _retry_after(response))


def _kind(error: StorageApiError, status: int) -> Kind:
    code, message = str(error.code), str(error.message)
    if status in PASSING:
        return Kind.PASSING
    if code == "Duplicate" or status == 409:
        return Kind.TAKEN
    if "Bucket not found" in (code, message):
        return Kind.NO_BUCKET
    if status in (401, 403) or code in ("InvalidJWT", "Unauthorized"):
        return Kind.KEY
    if code == "TenantNotFound":
        return Kind.ADDRESS
    if message.startswith(_UNPARSED):  # not in the words of Supabase Storage
        return Kind.ADDRESS if status < 400 or status in (404, 405) else Kind.FILE
    return Kind.NO_FILE if status == 404 else Kind.FILE


def _response(error: BaseException | None) -> httpx.Response | None:
    """The answer that an error of the client library was made from; it keeps it only as the error behind its own."""
    while error is not None:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response
        error = error.__context__
    return None


def _status(error: StorageApiError, response: httpx.Response | None) -> int:
    try:
        return int(error.status)
    except ValueError:
        return response.status_code if response is not None else 500


def _retry_after(response: httpx.Response | None) -> float:
    """Seconds until the server wants to be asked again (RFC 9110, 10.2.3)."""
    text = response.headers.get("Retry-After", "") if response is not None else ""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _in_words(text: str) -> str:
    """A message, which may be a whole page of HTML, as one line of text."""
    text = html.unescape(_MARKUP.sub(" ", text.removeprefix(_UNPARSED)))
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= _MESSAGE_LENGTH else text[: _MESSAGE_LENGTH - 3] + "..."
