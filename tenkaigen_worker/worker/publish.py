"""Publish: from the engine's pixels to a file in storage."""

from __future__ import annotations

import asyncio
import hashlib

from PIL import Image

from tenkaigen_worker.engine.base import Picture
from tenkaigen_worker.errors import Code, InfrastructureError, StorageError
from tenkaigen_worker.images import encode_png
from tenkaigen_worker.jobs import Job, Output
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.plugin.types import PictureInfo
from tenkaigen_worker.recipe import Recipe
from tenkaigen_worker.worker.tools import Tools

# Jobs that belong to nobody share a folder.
NOBODY = "anonymous"


def job_folder(job: Job) -> str:
    """The key prefix under which all files of a job stand, whatever the attempt."""
    return f"{job.user_id or NOBODY}/{job.id}/"


def attempt_prefix(job: Job) -> str:
    """The key prefix of the files made under the job's present lease. No other lease ever writes there."""
    return f"{job_folder(job)}{job.lease.token}-"


async def publish(picture: Picture, recipe: Recipe, job: Job, tools: Tools) -> Output:
    """Post-process, encode and store one picture.

    Raises :class:`~tenkaigen_worker.errors.InfrastructureError` with code ``upload_failed`` when storage refuses it.
    """
    image = await post_process(picture, recipe, tools.plugins)
    png, digest = await asyncio.to_thread(_encode, image, recipe, picture)

    key = f"{attempt_prefix(job)}{picture.index}-{digest[:12]}.png"
    try:
        url = await tools.storage.put(key, png, content_type="image/png")
    except StorageError as error:
        raise InfrastructureError(Code.UPLOAD_FAILED, f"The picture could not be stored: {error}") from error

    return Output(
        index=picture.index,
        key=key,
        url=url,
        width=image.width,
        height=image.height,
        bytes=len(png),
        sha256=digest,
        seed=picture.seed,
    )


async def post_process(picture: Picture, recipe: Recipe, plugins: Plugins) -> Image.Image:
    """Turn the engine's pixels into an image and let the plugins have their turn with it."""
    image = Image.frombuffer("RGB", (picture.width, picture.height), picture.pixels, "raw", "RGB", 0, 1)
    info = PictureInfo(index=picture.index, seed=picture.seed, style=recipe.style)
    return await plugins.process_image(image, info)


def _encode(image: Image.Image, recipe: Recipe, picture: Picture) -> tuple[bytes, str]:
    png = encode_png(image, recipe, seed=picture.seed)
    return png, hashlib.sha256(png).hexdigest()
