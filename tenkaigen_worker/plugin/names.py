"""How names are compared: ``line_art``, ``Line-Art`` and ``LINE ART`` are one name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


def fold(name: str) -> str:
    """Reduce a name to what counts: no case, no spaces, no ``-`` and ``_``."""
    return re.sub(r"[\s_-]+", "", name.casefold())


def find(name: str, names: Iterable[str]) -> str | None:
    """Find the one of ``names`` that ``name`` means, in its own spelling."""
    wanted = fold(name)
    return next((known for known in names if fold(known) == wanted), None)


def suggest(name: str, names: Iterable[str]) -> str:
    """Say ``did you mean ...?`` with a leading space when one of ``names`` is near, else nothing."""
    folded = {fold(known): known for known in names}
    near = get_close_matches(fold(name[:200]), folded, n=1)
    return f" did you mean {folded[near[0]]}?" if near else ""


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """Say that no style (mode, ...) has this name, which is the nearest, and which there are."""
    known = list(names)
    shown = name if len(name) <= 60 else f"{name[:60]}..."
    near = suggest(name, known)
    return f"there is no {kind} {shown!r}{';' if near else ''}{near or '.'} The {kind}s are: {', '.join(known)}"
