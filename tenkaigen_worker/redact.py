"""Connection URLs without their passwords, for everything that people get to see."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

HIDDEN = "********"

# Greedy up to the last "@": a password that was not percent-encoded may itself hold "@", "/", "?" or "#".
_PASSWORD = re.compile(r"(?<=://)([^\s:@/]*):\S*@")


def has_password(url: str) -> bool:
    """Tell whether a URL carries a password, also one that should have been percent-encoded and was not."""
    if _PASSWORD.search(url):
        return True
    return any("pass" in name.lower() for name, _ in parse_qsl(url.partition("?")[2], keep_blank_values=True))


def without_password(url: str) -> str:
    """Show where a URL points: scheme, user, host, port and path. Parameters are left out, a password is masked.

    What cannot be taken apart safely is masked as a whole.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    if not parts.scheme or not url.startswith(f"{parts.scheme}://") or "@" in parts.path + parts.query + parts.fragment:
        return HIDDEN
    user, at, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    return f"{parts.scheme}://{name}{':***' if colon else ''}{at}{host}{parts.path}"


def mask_urls(text: str) -> str:
    """Mask the password of every URL inside ``text``."""
    return _PASSWORD.sub(r"\1:***@", text)
