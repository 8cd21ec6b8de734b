"""A model that draws one size alone: other sizes are scaled from it.

Where the wanted picture is no square, the drawn one stands whole in its middle, and beside it the same one, blurred.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace

from PIL import Image, ImageFilter, ImageOps

from tenkaigen_worker.engine.backend import Backend, Report
from tenkaigen_worker.engine.base import Inputs, Picture
from tenkaigen_worker.engine.reference import Reference, read_reference
from tenkaigen_worker.errors import FieldProblem, InputError
from tenkaigen_worker.offers import Limits
from tenkaigen_worker.recipe import Model, Recipe

# How blurred the ground beside a picture is: the radius, as a share of the native side.
BLUR = 1 / 16

log = logging.getLogger("tenkaigen.engine")


class AtNativeSize:
    """A backend that has another one draw squares of ``side`` pixels, and scales them to what recipes ask for.

    Of a reference and its mask the model sees the centred square. What is not masked stays as it was, at full size.
    """

    def __init__(self, backend: Backend, side: int) -> None:
        self._backend = backend
        self._side = side

    @property
    def model(self) -> Model:
        return self._backend.model

    @property
    def device(self) -> str:
        return self._backend.device

    @property
    def dtype(self) -> str:
        return self._backend.dtype

    @property
    def stages_ms(self) -> Mapping[str, int]:
        return self._backend.stages_ms

    @property
    def limits(self) -> Limits:
        return self._backend.limits

    def pictures(
        self, recipe: Recipe, inputs: Inputs, *, first: int, lean: bool, report: Report, cancel: threading.Event
    ) -> Iterator[Picture]:
        """Make the recipe's pictures at the native size, and scale each; see :class:`~.backend.Backend`."""
        size, side = (recipe.width, recipe.height), self._side
        if size == (side, side):
            yield from self._backend.pictures(recipe, inputs, first=first, lean=lean, report=report, cancel=cancel)
            return

        log.info(
            "%s draws %d x %d pixels; scaled to %d x %d",
            *(self.model.name, side, side, *size),
            extra={"action": "picture_scaled"},
        )
        reference = read_reference(recipe, inputs)
        if reference is not None:
            inputs = self._seen(reference, inputs)
        drawn = self._backend.pictures(
            replace(recipe, width=side, height=side), inputs, first=first, lean=lean, report=report, cancel=cancel
        )
        for picture in drawn:
            pixels = scaled(Image.frombytes("RGB", (side, side), picture.pixels), size).tobytes()
            if reference is not None:
                pixels = reference.keep_unmasked(pixels)
            yield replace(picture, width=recipe.width, height=recipe.height, pixels=pixels)

    def _seen(self, reference: Reference, inputs: Inputs) -> Inputs:
        """What the model sees of the inputs, at its own size.

        It is written beside the reference, into the folder of the job, which goes however the job ends.
        """
        assert inputs.reference is not None  # noqa: S101 - read_reference() read it
        native, folder = (self._side, self._side), inputs.reference.parent
        picture, mask = folder / "native_reference.png", folder / "native_mask.png"
        ImageOps.fit(reference.picture, native, Image.Resampling.LANCZOS).save(picture)
        if reference.mask is None:
            return replace(inputs, reference=picture)
        seen = touched(reference.mask, native)
        if seen.getbbox() is None:
            text = f"lies beside the square in the middle, where alone {self.model.name} draws; mask a part of that"
            raise InputError.of([FieldProblem("mask", text)])
        seen.save(mask)
        return replace(inputs, reference=picture, mask=mask)


def scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale a square picture to ``size``, width and height in pixels: whole, on a ground of itself, blurred."""
    side = min(size)
    whole = picture.resize((side, side), Image.Resampling.LANCZOS)
    if size == whole.size:
        return whole
    # Blurred before it grows: the same to the eye, and quicker.
    blurred = picture.filter(ImageFilter.GaussianBlur(picture.width * BLUR))
    ground = ImageOps.fit(blurred, size, Image.Resampling.BICUBIC)
    ground.paste(whole, ((size[0] - side) // 2, (size[1] - side) // 2))
    return ground


def touched(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale a mask's centred part to ``size``: white wherever anything in it is not black.

    The mask at full size then says how much of it is seen; grey would count twice otherwise.
    """
    return _all_or_nothing(ImageOps.fit(_all_or_nothing(mask), size, Image.Resampling.BOX))


def _all_or_nothing(mask: Image.Image) -> Image.Image:
    return mask.point(lambda grey: 255 if grey else 0)
