"""``tenkaigen demo``: three rows inserted by plain SQL, three pictures."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from tenkaigen_worker.cli.context import load_settings

if TYPE_CHECKING:
    import asyncpg
    from rich.progress import Progress

    from tenkaigen_worker.config import Loaded

INSERTS = (
    "INSERT INTO generation_jobs (prompt, style) VALUES ('A cyberpunk samurai', 'Anime') RETURNING id",
    "INSERT INTO generation_jobs (prompt, style) VALUES ('A phoenix rising', 'Watercolor') RETURNING id",
    "INSERT INTO generation_jobs (prompt, style) VALUES ('A lighthouse in a storm', 'Line Art') RETURNING id",
)

FAREWELL = (
    "These pictures are noise, and should be: the demonstration model is the real Qwen-Image pipeline with tiny, "
    "untrained weights. For real pictures set engine.backend to diffusers and engine.model to Qwen/Qwen-Image, on a "
    "machine with a GPU: docs/setup.md says how."
)


@click.command()
@click.pass_context
def demo(ctx: click.Context) -> None:
    r"""Make three pictures: start everything, insert three rows by plain SQL, follow them, end everything.

    Uses a database of its own and the untrained demonstration model; all it leaves is in ./.tenkaigen.

    \b
    Example:
      tenkaigen demo
    """
    try:
        asyncio.run(_demo())
    except asyncio.CancelledError:
        click.echo("Stopped; everything is shut down.", err=True)
        ctx.exit(130)
