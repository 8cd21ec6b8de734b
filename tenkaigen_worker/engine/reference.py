"""Pictures from pictures: the reference to start from, the mask of what is drawn anew, and the rest left as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate, max_pool2d

from tenkaigen_worker.engine.base import Inputs
from tenkaigen_worker.errors import Code, EngineError, FieldProblem, InputError
from tenkaigen_worker.recipe import Recipe, steps_to_run


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture to start from: ``picture`` is RGB; ``mask`` is grey, white where it is drawn anew, or ``None``."""

    picture: Image.Image
    mask: Image.Image | None
    strength: float

    def pixels(self) -> torch.Tensor:
        """The picture as 1 x 3 x H x W, float32 from -1 to 1."""
        return torch.from_numpy(np.array(self.picture)).permute(2, 0, 1)[None].float() / 255 * 2 - 1

    def mask_cells(self, side: int) -> torch.Tensor | None:
        """The mask as 1 x 1 x H x W from 0 to 1, the same all over each square of ``side`` pixels, its brightest.

        The model's latents have one place for each such square. The pipeline would look at one pixel of it only, and
        so lose what is thinner.
        """
        if self.mask is None:
            return None
        grey = torch.from_numpy(np.array(self.mask))[None, None].float() / 255
        return interpolate(max_pool2d(grey, side), scale_factor=side)

    def keep_unmasked(self, pixels: bytes) -> bytes:
        """Put the reference back where the mask is black; grey blends. ``pixels`` is H x W x 3, uint8.

        The pipeline keeps what is not masked only in its latents: decoding changes every pixel a little.
        """
        if self.mask is None:
            return pixels
        drawn = Image.frombytes("RGB", self.picture.size, pixels)
        return Image.composite(drawn, self.picture, self.mask).tobytes()


def read_reference(recipe: Recipe, inputs: Inputs) -> Reference | None:
    """Read what the recipe starts from; ``None`` when it starts from nothing.

    Raises ``InputError`` for pictures that do not fit the recipe, and for a strength that would draw nothing.
    """
    if recipe.reference is None:
        if recipe.mask is not None:
            raise _problem("mask", "there is no reference to draw on; give one too")
        return None
    if recipe.strength is None:
        raise _problem("strength", "is missing; a reference needs one, such as 0.6")
    if steps_to_run(recipe.steps, recipe.strength) < 1:
        raise _problem("strength", f"{recipe.strength:g} of {recipe.steps} steps is no step at all; take a larger one")

    picture = _read("reference", inputs.reference, "RGB", recipe)
    mask = None if recipe.mask is None else _read("mask", inputs.mask, "L", recipe)
    return Reference(picture, mask, recipe.strength)


def open_picture(field: str, file: Path | None) -> Image.Image:
    """Read the PNG of a field; raises ``InputError`` for what is none, ``EngineError`` where it is gone."""
    if file is None:
        raise EngineError(Code.ENGINE_FAILED, f"the {field} came without its file")
    try:
        with Image.open(file, formats=("PNG",)) as opened:
            opened.load()
            return opened.copy()
    except FileNotFoundError as error:
        raise EngineError(Code.ENGINE_FAILED, f"the file of the {field} is gone: {error}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _problem(field, f"cannot be read as PNG: {error}") from error


def _read(field: str, file: Path | None, mode: str, recipe: Recipe) -> Image.Image:
    picture = open_picture(field, file)
    if picture.size != (recipe.width, recipe.height) or picture.mode != mode:
        has, wants = _words(picture.mode, *picture.size), _words(mode, recipe.width, recipe.height)
        raise _problem(field, f"is {has}; it should be {wants}")
    return picture


def _words(mode: str, width: int, height: int) -> str:
    return f"{width} x {height} ({mode})"


def _problem(field: str, text: str) -> InputError:
    return InputError.of([FieldProblem(field, text)])
