"""Fitting a reference and its mask to the size of the picture that is made from them."""

from __future__ import annotations

from math import sqrt

from PIL import Image, ImageOps

from tenkaigen_worker.recipe import EDIT_PIXELS, MAX_PIXELS, MAX_SIDE, MIN_SIDE, SIDE_STEP

# The pipeline draws anew what is lighter than this.
_WHITE = 128

_EDIT_STEP = 32
# How often as long as wide a picture of an edit may be. The pipeline scales it to 384 x 384 pixels in area as well, in
# steps of 32: far narrower ones would end with no width at all.
_EDIT_RATIO = 32


def fit_size(given: tuple[int, int], width: int | None, height: int | None) -> tuple[int, int]:
    """Choose the size of a picture that is made from one of size ``given``: width and height in pixels.

    What was asked for counts; one side alone lets the other follow. Without either it is the given size, scaled to what
    can be made, in multiples of 16.
    """
    if width and height:
        return width, height
    ratio = given[0] / given[1]
    if width:
        return width, _side(width / ratio, beside=width)
    if height:
        return _side(height * ratio, beside=height), height

    scale = min(1.0, MAX_SIDE / max(given), sqrt(MAX_PIXELS / (given[0] * given[1])))
    scale = max(scale, MIN_SIDE / min(given))
    width = _side(given[0] * scale)
    return width, _side(given[1] * scale, beside=width)


def edit_size(given: tuple[int, int], width: int | None, height: int | None, *, pixels: int) -> tuple[int, int]:
    """Choose the size of an edit whose first picture has size ``given``: width and height in pixels.

    What was asked for counts, as in :func:`fit_size`. Without either it is the given shape, with about ``pixels`` in
    all, in multiples of 16.
    """
    if width or height:
        return fit_size(given, width, height)
    length = sqrt(pixels * given[0] / given[1])
    width = _side(length)
    return width, _side(length * given[1] / given[0], beside=width)


def _side(length: float, *, beside: int = MIN_SIDE) -> int:
    """The nearest length that a picture may have, beside another side."""
    longest = min(MAX_SIDE, MAX_PIXELS // beside // SIDE_STEP * SIDE_STEP)
    return min(max(round(length / SIDE_STEP) * SIDE_STEP, MIN_SIDE), longest)


def fit_reference(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale and crop a decoded picture to ``size``, around its middle; RGB, what is transparent becomes white."""
    return _cover(_flat(image, "white").convert("RGB"), size)


def fit_edited(image: Image.Image) -> Image.Image:
    """Shrink a decoded picture to what an edit sees of it; never crop it. RGB, what is transparent becomes white.

    More pixels would be carried for nothing. Raises ``ValueError`` for one that is too narrow.
    """
    if max(image.size) > _EDIT_RATIO * min(image.size):
        has = " x ".join(map(str, image.size))
        raise ValueError(f"may be at most {_EDIT_RATIO} times as long as wide; it has {has} pixels")
    image = _flat(image, "white").convert("RGB")
    if image.width * image.height <= EDIT_PIXELS:
        return image
    width = sqrt(EDIT_PIXELS * image.width / image.height)
    sides = (width, width * image.height / image.width)
    size = tuple(round(side / _EDIT_STEP) * _EDIT_STEP for side in sides)
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def fit_mask(image: Image.Image, reference: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """Scale and crop a decoded mask as its reference, which had the size ``reference``; L, transparent becomes black.

    Raises ``ValueError`` when it has another size than the reference, or leaves nothing to be drawn.
    """
    if image.size != reference:
        right, wrong = (" x ".join(map(str, size)) for size in (reference, image.size))
        raise ValueError(f"must have the size of the reference, {right} pixels; it has {wrong}")
    mask = _cover(_flat(image, "black").convert("L"), size)
    _, lightest = mask.getextrema()
    if not isinstance(lightest, int | float) or lightest < _WHITE:
        raise ValueError("is black all over, so nothing would be drawn: what is white in it is drawn anew")
    return mask


def _cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def _flat(image: Image.Image, colour: str) -> Image.Image:
    if image.mode not in ("LA", "RGBA"):
        return image
    ground = Image.new("RGBA", image.size, colour)
    return Image.alpha_composite(ground, image.convert("RGBA"))
