"""``tenkaigen generate``: prompt in, PNG out, without a database."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from tenkaigen_worker.cli.context import load_settings, run
from tenkaigen_worker.cli.options import request_options
from tenkaigen_worker.cli.pictures import files_among, keep_files, placed

if TYPE_CHECKING:
    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.recipe import Model

# How the backends draw that are there for demonstrations.
DEMO = {
    "tiny": (
        "by a demonstration model that knows about a hundred words, such as cat, dragon and rocket: from others it "
        "draws something arbitrary, at 128 x 128 pixels, from which every other size is scaled"
    ),
    "blank": "without a model: a flat picture",
}


@click.command()
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("picture.png"), show_default=True)
@request_options
@click.pass_context
def generate(ctx: click.Context, /, output: Path, **fields: Any) -> None:
    """Make pictures of PROMPT, or of --template, without a database, and write them as PNG.

    With several pictures, their numbers are put before the file's ending.

    \b
    Example:
      tenkaigen generate "A ninja" --style Anime -o ninja.png
      tenkaigen generate "A dragon" --seed 7 --count 2
      tenkaigen generate "A dragon" --style line_art --mode lightning --lora Ink:0.8 -o dragon.png
      tenkaigen generate "A dragon, in ink" --reference dragon.png --strength 0.5 -o inked.png
      tenkaigen generate "The fox wears that coat" --mode edit --reference fox.png --reference coat.png
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
    from tenkaigen_worker.references.uploads import Uploads
    from tenkaigen_worker.request import read_request
    from tenkaigen_worker.storage.local import LocalStorage
    from tenkaigen_worker.worker.prepare import NoJobs, Sources, prepared
    from tenkaigen_worker.worker.publish import post_process

    check_writable(output)
    plugins = Plugins.load(settings.plugins)
    asked, files = files_among(fields)
    async with AsyncExitStack() as stack:
        # What is given here is nobody's upload: it goes with the command.
        folder = stack.enter_context(TemporaryDirectory(prefix="tenkaigen-"))
        storage = LocalStorage(Path(folder), "file:")
        sources = Sources.of(settings, plugins, storage, NoJobs())
        stack.push_async_callback(sources.lora_files.close)
        kept = await keep_files(files, Uploads(storage, settings.references))
        request = read_request(placed(asked, kept), sources.names)

        engine = EngineProcess(settings.engine)
        stack.push_async_callback(engine.stop)
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        bar = progress.add_task("Loading the model", total=None)
        info = await engine.start()
        job = await stack.enter_async_context(prepared(request, sources, info))
        pictures = len(job.recipe.seeds)

        def show(step: Step) -> None:
            text = f"Picture {step.index + 1} of {pictures}: {step.phase}"
            progress.update(bar, description=text, completed=step.step, total=step.total)

        async for picture in engine.generate(job.recipe, job.inputs, on_step=show):
            image = await post_process(picture, job.recipe, plugins)
            path = _numbered(output, picture.index) if pictures > 1 else output
            path.write_bytes(encode_png(image, job.recipe, seed=picture.seed))
            progress.console.print(f"Seed {picture.seed}", style="dim", highlight=False)
            click.echo(path)
    say_if_demo(info.model)


def say_if_demo(model: Model) -> None:
    """Say so when the picture may not be what was asked for."""
    if model.demo:
        click.echo(f"Drawn {DEMO[model.backend]}. docs/setup.md has the way to real pictures.", err=True)


def check_writable(output: Path) -> None:
    """Refuse an output that cannot be written before minutes are spent on it."""
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise click.BadParameter(f"{output} cannot be written: name a file in a folder that exists.", param_hint="-o")


def _numbered(path: Path, index: int) -> Path:
    return path.with_name(f"{path.stem}-{index}{path.suffix}")
