"""Connection URLs without their passwords, for everything that people get to see."""

from __future__ import annotations

import re

# Greedy up to the last "@": a password that was not percent-encoded may itself hold "@", "/", "?" or "#".
_PASSWORD = re.compile(r"(?<=://)([^\s:@/]*):\S*@")
_PARAMETER = re.compile(r"([?&][^\s=&]*pass[^\s=&]*)=[^\s&]*", re.IGNORECASE)


def mask_urls(text: str) -> str:
    """Mask the password of every URL inside ``text``, also one that should have been percent-encoded and was not."""
    return _PARAMETER.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", text))
