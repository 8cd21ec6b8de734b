"""How names are compared, and which one was meant: ``line_art``, ``Line-Art`` and ``LINE ART`` are one name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

_SEPARATORS = re.compile(r"[\s_-]+")
_WORDS = re.compile(r"[^\s_-]+")


def fold(name: str) -> str:
    """Reduce a name to what counts: no case, no spaces, no ``-`` and ``_``."""
    return _SEPARATORS.sub("", name.casefold())


def find(name: str, names: Iterable[str]) -> str | None:
    """Find the one of ``names`` that ``name`` means, in its own spelling."""
    wanted = fold(name)
    return next((known for known in names if fold(known) == wanted), None)


def mentioned(text: str, names: Iterable[str]) -> str | None:
    """Find the one of ``names`` that a text has as whole words, however they are spelled there.

    The longest wins, and of several as long the first in the text: ``a line-art fox`` has Line Art, not Art.
    """
    text = text.casefold()
    words = list(_WORDS.finditer(text))
    kept = [place for word in words for place in range(*word.span())]
    folded = "".join(word[0] for word in words)
    found = [
        (len(wanted), -start, name)
        for name in names
        if (wanted := fold(name))
        for start in _places(wanted, folded)
        if _stands_alone(text, kept[start], kept[start + len(wanted) - 1])
    ]
    return max(found)[-1] if found else None


def _places(wanted: str, text: str) -> Iterator[int]:
    start = text.find(wanted)
    while start >= 0:
        yield start
        start = text.find(wanted, start + 1)


def _stands_alone(text: str, first: int, last: int) -> bool:
    """Tell whether no letter or digit touches what stands from ``first`` to ``last``."""
    return not (text[:first][-1:].isalnum() or text[last + 1 : last + 2].isalnum())


def nearest(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Find the one of ``names`` that was probably meant; ``cutoff`` is difflib's, from 0 to 1."""
    folded = {fold(known): known for known in names}
    near = get_close_matches(fold(name[:200]), folded, n=1, cutoff=cutoff)
    return folded[near[0]] if near else None


def suggest(name: str, names: Iterable[str]) -> str:
    """Say ``did you mean ...?`` with a leading space when one of ``names`` is near, else nothing."""
    near = nearest(name, names)
    return f" did you mean {near}?" if near else ""


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """Say that no style (mode, ...) has this name, which is the nearest, and which there are."""
    known = list(names)
    shown = name if len(name) <= 60 else f"{name[:60]}..."
    near = suggest(name, known)
    return f"there is no {kind} {shown!r}{';' if near else ''}{near or '.'} The {kind}s are: {', '.join(known)}"
