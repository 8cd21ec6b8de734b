"""The sample sheet: one prompt in many styles, side by side in one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import Progress

from tenkaigen_worker.cli.generate import check_writable, say_if_demo
from tenkaigen_worker.config import Settings
from tenkaigen_worker.engine.base import Step
from tenkaigen_worker.engine.host import EngineProcess
from tenkaigen_worker.images import XMP, XMP_KEY
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.request import read_request
from tenkaigen_worker.storage.factory import open_storage
from tenkaigen_worker.worker.prepare import NoJobs, Sources, prepared
from tenkaigen_worker.worker.publish import post_process

PAPER, INK = "white", "#202020"


async def make_sheet(
    settings: Settings, output: Path, fields: Mapping[str, Any], *, names: Sequence[str], columns: int | None
) -> None:
    """Make one picture a style, all from the same request ``fields``, and write the sheet as PNG.

    Raises :class:`~tenkaigen_worker.errors.InputError` before the model is loaded when something is wrong with them.
    """
    check_writable(output)
    plugins = Plugins.load(settings.plugins)
    pictures: list[tuple[str, Image.Image]] = []
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(open_storage(settings))
        sources = Sources.of(settings, plugins, storage, NoJobs())
        stack.push_async_callback(sources.lora_files.close)
        requests = [read_request({**fields, "style": name}, sources.names) for name in names or plugins.style_names]
        engine = EngineProcess(settings.engine)
        stack.push_async_callback(engine.stop)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("Loading the model", total=None)
            info = await engine.start()
            for number, request in enumerate(requests):
                async with prepared(request, sources, info) as job:
                    style = job.recipe.style
                    text = f"{style}, {number + 1} of {len(requests)}"

                    def show(step: Step, text: str = text, done: int = number) -> None:
                        part = step.step / step.total if step.phase == "denoise" else step.phase == "decode"
                        progress.update(bar, description=text, completed=done + part, total=len(requests))

                    async for picture in engine.generate(job.recipe, job.inputs, on_step=show):
                        pictures.append((style, await post_process(picture, job.recipe, plugins)))

    side = requests[0].width or info.model.default_width
    save_sheet(output, pictures, side=side, columns=columns or math.ceil(math.sqrt(len(pictures))))
    click.echo(output)
    say_if_demo(info.model)


def save_sheet(output: Path, pictures: Sequence[tuple[str, Image.Image]], *, side: int, columns: int) -> None:
    """Write the sheet of :func:`lay_out` as PNG, with the mark of generated media."""
    marks = PngInfo()
    marks.add_itxt(XMP_KEY, XMP)
    lay_out(pictures, side=side, columns=columns).save(output, "PNG", pnginfo=marks)


def lay_out(pictures: Sequence[tuple[str, Image.Image]], *, side: int, columns: int) -> Image.Image:
    """Put pictures on one sheet, row by row, each inside a square of ``side`` pixels with its name below."""
    gap, caption = max(side // 16, 4), max(side // 8, 14)
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    size = (gap + columns * (side + gap), gap + rows * (side + caption + gap))
    sheet = Image.new("RGB", size, PAPER)
    drawing = ImageDraw.Draw(sheet)

    for number, (name, image) in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = gap + column * (side + gap), gap + row * (side + caption + gap)
        tile = ImageOps.contain(image.convert("RGBA"), (side, side))
        sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2), tile)
        place = (left + side / 2, top + side + caption / 2)
        drawing.text(place, name, INK, _font(name, caption * 0.7, side), anchor="mm")
    return sheet


def _font(text: str, size: float, room: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font for a caption: smaller for a long name, so that it stays below its picture."""
    while (font := ImageFont.load_default(size)).getlength(text) > room and size > 4:
        size *= 0.9
    return font
