"""Publish: from the engine's pixels to files in storage."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from PIL import Image

from tenkaigen_worker.engine.base import Picture
from tenkaigen_worker.images import encode_png, encode_thumbnail
from tenkaigen_worker.jobs import Job, Output
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.plugin.types import PictureInfo
from tenkaigen_worker.recipe import Recipe
from tenkaigen_worker.storage.keys import attempt_prefix, thumbnail_key
from tenkaigen_worker.worker.spool import SpoolFile
from tenkaigen_worker.worker.tools import Tools
from tenkaigen_worker.worker.waiting import in_thread


async def publish(picture: Picture, recipe: Recipe, job: Job, tools: Tools) -> Output:
    """Post-process, encode and store one picture and its thumbnail.

    Raises :class:`~tenkaigen_worker.errors.InfrastructureError` with code ``upload_failed`` when it can be kept neither
    in the spool nor in storage.
    """
    image = await post_process(picture, recipe, tools.plugins)
    with tools.spool.file() as file, tools.spool.file() as small:
        size, digest = await in_thread(_encode, image, recipe, picture.seed, file, small)
        key = f"{attempt_prefix(job.user_id, job.lease)}{picture.index}-{digest[:12]}.png"
        output = Output(
            index=picture.index,
            key=key,
            url="",
            width=image.width,
            height=image.height,
            bytes=size,
            sha256=digest,
            seed=picture.seed,
            thumbnail_key=thumbnail_key(key),
        )
        # Storage may be away for an hour, and the pixels would be in memory all the while.
        del picture, image
        url = await tools.spool.upload(file, key, job)
        thumbnail_url = await tools.spool.upload(small, thumbnail_key(key), job, content_type="image/webp")
        return replace(output, url=url, thumbnail_url=thumbnail_url)


async def post_process(picture: Picture, recipe: Recipe, plugins: Plugins) -> Image.Image:
    """Turn the engine's pixels into an image and let the plugins have their turn with it."""
    image = Image.frombuffer("RGB", (picture.width, picture.height), picture.pixels, "raw", "RGB", 0, 1)
    info = PictureInfo(index=picture.index, seed=picture.seed, style=recipe.style)
    return await plugins.process_image(image, info)


def _encode(image: Image.Image, recipe: Recipe, seed: int, file: SpoolFile, small: SpoolFile) -> tuple[int, str]:
    """Write the PNG and its thumbnail into the spool; answers the PNG's size in bytes and its SHA-256."""
    png = encode_png(image, recipe, seed=seed)
    file.write(png)
    small.write(encode_thumbnail(image))
    return len(png), hashlib.sha256(png).hexdigest()
