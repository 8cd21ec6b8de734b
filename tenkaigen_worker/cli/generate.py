"""``tenkaigen generate``: prompt in, PNG out, without a database."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tenkaigen_worker.cli.context import load_settings, run
from tenkaigen_worker.cli.options import request_options

if TYPE_CHECKING:
    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.recipe import Model


@click.command()
@click.argument("prompt")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("picture.png"), show_default=True)
@request_options
@click.pass_context
def generate(ctx: click.Context, /, output: Path, **fields: Any) -> None:
    """Make pictures of PROMPT without a database, and write them as PNG.

    With several pictures, their numbers are put before the file's ending.

    \b
    Example:
      tenkaigen generate "A cyberpunk samurai" --style Anime -o samurai.png
      tenkaigen generate "A phoenix rising" --seed 7 --count 2
    """
    from tenkaigen_worker.logs import configure_logging

    settings = load_settings(ctx).settings
    configure_logging(settings.log.model_copy(update={"level": "WARNING"}))
    run(_generate(settings, output, fields))


async def _generate(settings: Settings, output: Path, fields: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from tenkaigen_worker.engine.base import Step
    from tenkaigen_worker.engine.host import EngineProcess
    from tenkaigen_worker.images import encode_png
    from tenkaigen_worker.plugin.manager import Plugins
    from tenkaigen_worker.worker.prepare import read, resolve_request
    from tenkaigen_worker.worker.publish import post_process

    check_writable(output)
    plugins, generation = Plugins.load(settings.plugins), settings.generation
    request = read(fields, plugins=plugins, generation=generation)
    engine = EngineProcess(settings.engine)
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("Loading the model", total=None)
            info = await engine.start()
            recipe = await resolve_request(request, plugins=plugins, generation=generation, model=info.model)

            def show(step: Step) -> None:
                text = f"Picture {step.index + 1} of {len(recipe.seeds)}: {step.phase}"
                progress.update(bar, description=text, completed=step.step, total=step.total)

            async for picture in engine.generate(recipe, on_step=show):
                image = await post_process(picture, recipe, plugins)
                path = _numbered(output, picture.index) if len(recipe.seeds) > 1 else output
                path.write_bytes(encode_png(image, recipe, seed=picture.seed))
                progress.console.print(f"Seed {picture.seed}", style="dim", highlight=False)
                click.echo(path)
    finally:
        await engine.stop()
    say_if_noise(info.model)


def say_if_noise(model: Model) -> None:
    """Say so when nobody could tell from the picture what was asked for."""
    if model.demo:
        text = "The model of this backend is untrained: the picture is noise. docs/setup.md has the way to real ones."
        click.echo(text, err=True)


def check_writable(output: Path) -> None:
    """Refuse an output that cannot be written before minutes are spent on it."""
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise click.BadParameter(f"{output} cannot be written: name a file in a folder that exists.", param_hint="-o")


def _numbered(path: Path, index: int) -> Path:
    return path.with_name(f"{path.stem}-{index}{path.suffix}")
