"""``tenkaigen models``: the model files that the configuration needs: fetching, listing, checking."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click

from tenkaigen_worker.cli.context import load_settings, run

if TYPE_CHECKING:
    from tenkaigen_worker.config_engine import EngineSettings
    from tenkaigen_worker.engine.inventory import Inventory
    from tenkaigen_worker.engine.needs import Source


@click.group()
def models() -> None:
    """Fetch, list and check the model files that the configuration needs.

    They lie in the cache of the Hugging Face hub, HF_HOME. LoRAs have commands of their own: tenkaigen loras.

    \b
    Example:
      tenkaigen models pull
      tenkaigen models list
      tenkaigen models verify
    """


@models.command()
@click.pass_context
def pull(ctx: click.Context) -> None:
    """Fetch what is not here yet, and check it; run again, it goes on where it was cut.

    \b
    Example:
      tenkaigen models pull
      HF_HOME=/srv/models tenkaigen --config config/a10g.yaml models pull
    """
    engine, sources = _sources(ctx)
    if not sources:
        return
    with _hub_libraries(engine):
        from tenkaigen_worker.cli.model_files import pull, to_pin

    stop = threading.Event()

    async def pulling() -> list[Inventory]:
        try:
            return await asyncio.to_thread(pull, sources, stop)
        finally:
            stop.set()

    pulled = run(pulling(), if_stopped="Stopped. What has arrived stays: run it again to go on.")
    for one in pulled:
        click.echo(_described(one))
    if text := to_pin(pulled, engine):
        click.echo(f"\nTo get exactly these files everywhere and always, put into the configuration:\n\n{text}")


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List what the configuration needs, and what of it is here. Asks nobody.

    \b
    Example:
      tenkaigen models list
      tenkaigen models list --json | jq -r '.[] | select(.complete | not) | .name'
    """
    engine, sources = _sources(ctx, quiet=as_json)
    if not sources and not as_json:
        return
    with _hub_libraries(engine):
        from tenkaigen_worker.engine.inventory import look
    found = [look(source) for source in sources]
    if as_json:
        click.echo(json.dumps([_as_json(one) for one in found], indent=2))
        return
    for one in found:
        click.echo(_described(one))


@models.command()
@click.pass_context
def verify(ctx: click.Context) -> None:
    """Read every file, and compare it with its checksum; exits with 1 when one is damaged or missing. Asks nobody.

    \b
    Example:
      tenkaigen models verify
    """
    engine, sources = _sources(ctx)
    if not sources:
        return
    with _hub_libraries(engine):
        from tenkaigen_worker.cli.model_files import verified
        from tenkaigen_worker.engine.inventory import look

    found = [look(source) for source in sources]
    damaged, missing = [], [one for one in found if not one.complete]
    for one, name, path, problem in verified(found):
        click.echo(f"damaged  {one.source.place}: {name}: {problem}" if problem else f"ok       {name}")
        if problem:
            damaged.append(path)
    for one in missing:
        for name in one.missing:
            click.echo(f"missing  {one.source.setting}: {one.source.place}: {name}")
        if one.problem:
            click.echo(f"damaged  {one.problem}")
    if damaged:
        click.echo("\nRemove what is damaged, and fetch it again:\n")
        for path in damaged:
            click.echo(f"  rm {path.resolve()}")
        click.echo("  tenkaigen models pull")
    elif missing:
        click.echo("\nTo fetch it: tenkaigen models pull")
    ctx.exit(1 if damaged or missing else 0)


def _sources(ctx: click.Context, *, quiet: bool = False) -> tuple[EngineSettings, list[Source]]:
    from tenkaigen_worker.engine.needs import needed

    settings = load_settings(ctx).settings
    sources = needed(settings.engine)
    if not sources and not quiet:
        click.echo(f"engine.backend: {settings.engine.backend} needs no model files.")
    return settings.engine, sources


def _hub_libraries(engine: EngineSettings) -> AbstractContextManager[None]:
    from tenkaigen_worker.engine.backend import inference_libraries

    return inference_libraries(engine.backend)


def _described(one: Inventory) -> str:
    from rich.filesize import decimal

    subject = f"{one.source.setting}: {one.source.name}" + (f" at {one.commit}" if one.commit else "")
    if one.problem:
        return one.problem
    if one.path is None:
        return f"{subject} is not here"
    if one.missing:
        return f"{subject} lacks {len(one.missing)} of its files; to name them: tenkaigen models verify"
    pinned = "" if one.pinned else ", not pinned"
    return f"{subject}, {decimal(one.bytes)}{pinned}, is in {one.path}"


def _as_json(one: Inventory) -> dict[str, object]:
    return {
        "setting": one.source.setting,
        "name": one.source.name,
        "revision": one.source.revision,
        "pinned": one.pinned,
        "commit": one.commit,
        "complete": one.complete,
        "bytes": one.bytes,
        "path": str(one.path) if one.path else None,
        "missing": list(one.missing),
        "problem": one.problem,
    }
