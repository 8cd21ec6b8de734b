"""Decoding pictures that strangers send: type by content, limits before any pixel is decoded."""

from __future__ import annotations

import io
from contextlib import suppress

from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from tenkaigen_worker.errors import PictureError

FORMATS = ("PNG", "JPEG", "WEBP")

# What makes a picture upright that says of itself how it was held: EXIF 2.32, tag 0x0112.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode a PNG, JPEG or WebP file: upright, in sRGB, as L, LA, RGB or RGBA; of an animation the first frame.

    Nothing of what the file said beside the pixels is left. Raises :class:`~tenkaigen_worker.errors.PictureError` that
    says what is wrong; where it has more than ``max_pixels``, before any of them is decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                raise PictureError(_too_many(f"{opened.width} x {opened.height} pixels", max_pixels))
            image = _plain(opened)
            turn = _UPRIGHT.get(_orientation(opened))
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(_too_many("far more pixels", max_pixels)) from None
    except UnidentifiedImageError:
        raise PictureError("is no PNG, JPEG or WebP picture that can be read") from None
    except Exception as error:  # on damaged files Pillow's decoders raise whatever happens to them
        raise PictureError(f"is a damaged picture: {str(error)[:200] or type(error).__name__}") from error

    if turn is not None:
        image = image.transpose(turn)
    image.info = {}
    return image


def _too_many(what: str, max_pixels: int) -> str:
    return f"has {what}, and at most {max_pixels} are taken: make it smaller first"


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # what cannot be read turns nothing
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _plain(image: Image.Image) -> Image.Image:
    """The pixels with eight bits per channel, grey or sRGB, with an alpha channel where anything is transparent."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16 bits; a plain conversion would make nearly all of it white
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "1") else "RGBA")
    elif image.mode != "CMYK":
        image = image.convert("L" if image.mode in ("L", "1") else "RGB")
    if profile and image.mode in ("RGB", "RGBA", "CMYK"):
        image = _to_srgb(image, profile)
    return image.convert("RGB") if image.mode == "CMYK" else image


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Translate the colours; a profile that cannot be used is no reason to refuse a picture."""
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        translated = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return image
    return translated or image
