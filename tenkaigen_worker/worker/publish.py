"""Publish: from the engine's pixels to a file in storage."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from PIL import Image

from tenkaigen_worker.engine.base import Picture
from tenkaigen_worker.images import encode_png
from tenkaigen_worker.jobs import Job, Output
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.plugin.types import PictureInfo
from tenkaigen_worker.recipe import Recipe
from tenkaigen_worker.storage.keys import attempt_prefix
from tenkaigen_worker.worker.spool import SpoolFile
from tenkaigen_worker.worker.tools import Tools
from tenkaigen_worker.worker.waiting import in_thread


async def publish(picture: Picture, recipe: Recipe, job: Job, tools: Tools) -> Output:
    """Post-process, encode and store one picture.

    Raises :class:`~tenkaigen_worker.errors.InfrastructureError` with code ``upload_failed`` when it can be kept neither
    in the spool nor in storage.
    """
    image = await post_process(picture, recipe, tools.plugins)
    with tools.spool.file() as file:
        size, digest = await in_thread(_encode, image, recipe, picture.seed, file)
        output = Output(
            index=picture.index,
            key=f"{attempt_prefix(job.user_id, job.lease)}{picture.index}-{digest[:12]}.png",
            url="",
            width=image.width,
            height=image.height,
            bytes=size,
            sha256=digest,
            seed=picture.seed,
        )
        # Storage may be away for an hour, and the pixels would be in memory all the while.
        del picture, image
        return replace(output, url=await tools.spool.upload(file, output.key, job))


async def post_process(picture: Picture, recipe: Recipe, plugins: Plugins) -> Image.Image:
    """Turn the engine's pixels into an image and let the plugins have their turn with it."""
    image = Image.frombuffer("RGB", (picture.width, picture.height), picture.pixels, "raw", "RGB", 0, 1)
    info = PictureInfo(index=picture.index, seed=picture.seed, style=recipe.style)
    return await plugins.process_image(image, info)


def _encode(image: Image.Image, recipe: Recipe, seed: int, file: SpoolFile) -> tuple[int, str]:
    """Write the PNG into the spool; answers its size in bytes and its SHA-256."""
    png = encode_png(image, recipe, seed=seed)
    file.write(png)
    return len(png), hashlib.sha256(png).hexdigest()
