"""What every command needs first: the settings, and logging as they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tenkaigen_worker.config import Loaded


def load_settings(ctx: click.Context) -> Loaded:
    """Read the configuration named by ``--config``, or the one in this folder, or the defaults."""
    from tenkaigen_worker.config import load

    return load(ctx.find_root().obj)
