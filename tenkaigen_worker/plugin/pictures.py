"""The built-in plugins that change finished pictures: ``resize`` and ``watermark``, both off unless configured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from tenkaigen_worker.config import PluginSettings, ResizeSettings, WatermarkSettings
from tenkaigen_worker.errors import ConfigError
from tenkaigen_worker.plugin.hookspecs import hookimpl

# Text is drawn this high, in pixels, and then made as wide as it shall be.
TEXT_HEIGHT = 200
OUTLINE = TEXT_HEIGHT // 16

# No font has it: what is drawn for it stands for every letter that this one lacks.
NO_LETTER = "\uffff"

# Where a mark stands: 0 is left or top, 1 is right or bottom.
PLACES = {
    "top-left": (0.0, 0.0),
    "top-right": (1.0, 0.0),
    "center": (0.5, 0.5),
    "bottom-left": (0.0, 1.0),
    "bottom-right": (1.0, 1.0),
}


def picture_plugins(settings: PluginSettings) -> Iterator[tuple[str, object]]:
    """Yield those that are configured, with their names, in the order they work in.

    Raises :class:`~tenkaigen_worker.errors.ConfigError` when the watermark's text or picture cannot be used.
    """
    if settings.resize:
        yield "resize", Resize(settings.resize)
    if settings.watermark:
        yield "watermark", Watermark(settings.watermark)


class Resize:
    """Gives every picture one exact size, with Pillow's Lanczos filter.

    Nothing is stretched: of a picture of another shape, what is too much is cut off, the same on both sides.
    """

    def __init__(self, settings: ResizeSettings) -> None:
        self._size = (settings.width, settings.height)

    # Other plugins work on what the model made; these two on what comes out.
    @hookimpl(trylast=True)
    def process_image(self, image: Image.Image) -> Image.Image:
        """Answer the picture in the size of the settings."""
        return ImageOps.fit(image, self._size, Image.Resampling.LANCZOS)


class Watermark:
    """Puts a text or a logo on every picture; width and margin are shares of the picture's width."""

    def __init__(self, settings: WatermarkSettings) -> None:
        self._settings = settings
        self._mark = _text(settings.text) if settings.text else _logo(settings.image or Path())
        self._mark.putalpha(self._mark.getchannel("A").point(lambda alpha: round(alpha * settings.opacity)))

    @hookimpl(trylast=True)
    def process_image(self, image: Image.Image) -> Image.Image:
        """Answer the picture with the mark on it: RGB stays RGB, transparent pictures stay transparent."""
        margin = round(self._settings.margin * image.width)
        room = (image.width - 2 * margin, image.height - 2 * margin)
        width = min(round(self._settings.width * image.width), room[0])
        mark = ImageOps.contain(self._mark, (max(width, 1), max(room[1], 1)), Image.Resampling.LANCZOS)

        across, down = PLACES[self._settings.position]
        place = (margin + round(across * (room[0] - mark.width)), margin + round(down * (room[1] - mark.height)))
        marked = image.convert("RGBA")
        marked.alpha_composite(mark, (max(place[0], 0), max(place[1], 0)))
        return marked if image.has_transparency_data else marked.convert("RGB")


def _text(text: str) -> Image.Image:
    """Draw white letters with a dark outline, which can be read on any ground, in Pillow's own font."""
    font = ImageFont.load_default(size=TEXT_HEIGHT)
    nothing = bytes(font.getmask(NO_LETTER))
    if unknown := [letter for letter in text if letter != " " and bytes(font.getmask(letter)) == nothing]:
        raise ConfigError(
            f"plugins.watermark.text: Pillow's own font has no {unknown[0]!r}: draw the text as a PNG file, and name "
            "that in plugins.watermark.image"
        )
    box = font.getbbox(text, stroke_width=OUTLINE)
    left, top, right, bottom = (round(side) for side in box)
    mark = Image.new("RGBA", (right - left, bottom - top), (0, 0, 0, 0))
    drawing = ImageDraw.Draw(mark)
    drawing.text((-left, -top), text, "white", font, stroke_width=OUTLINE, stroke_fill="black")
    return mark


def _logo(file: Path) -> Image.Image:
    try:
        with Image.open(file, formats=["PNG"]) as logo:
            return logo.convert("RGBA")
    except FileNotFoundError:
        raise ConfigError(f"plugins.watermark.image: there is no file {file}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"plugins.watermark.image: {file} is no PNG that can be read: {error}") from None
