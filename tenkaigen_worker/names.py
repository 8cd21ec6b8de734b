"""How names are compared, and which one was meant: ``line_art``, ``Line-Art`` and ``LINE ART`` are one name."""

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
