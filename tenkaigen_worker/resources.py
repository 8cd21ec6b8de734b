"""Where the files are that ship with the program: ``plugins``, ``migrations``, ``config``, the demonstration model."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent

# A pipeline folder of diffusers.
DEMO_MODEL = _PACKAGE / "demo_model"


def shipped(folder: str) -> Path:
    """Find a shipped folder: inside the package when installed from a wheel, beside it in a checkout."""
    installed = _PACKAGE / "shipped" / folder
    return installed if installed.is_dir() else _PACKAGE.parent / folder
