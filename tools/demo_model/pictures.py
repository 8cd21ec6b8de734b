"""The training pictures: every known name, drawn from Noto Color Emoji with two hues and in every look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from tools.demo_model.looks import LOOKS, SIDE, Drawing

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian's fonts-noto-color-emoji
BITMAP = 109  # the only size of its pictures
FIGURE = 108  # pixels: the figure's longer side
NAMES = Path(__file__).with_name("names.tsv")


@dataclass(frozen=True)
class Name:
    """What the model knows: a name, the emoji that shows it, and other words for it."""

    name: str
    emoji: str
    others: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return self.name, *self.others


# What a seed decides in the trained model: the colours that a look adds around the figure. One pose and two hues, so
# that a small model learns them well: two poses blurred into one for far longer.
HUES = (0.55, 0.80)


def read_names(file: Path = NAMES) -> list[Name]:
    """Read the table of names: code points (hexadecimal, joined by ``_``), name, other words, separated by tabs."""
    names = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        points, name, *others = line.split("\t")
        emoji = "".join(chr(int(point, 16)) for point in points.split("_"))
        names.append(Name(name, emoji, tuple(word.strip() for other in others for word in other.split(",") if word)))
    return names


def draw(name: Name, hue: float) -> Drawing:
    """Draw a name's emoji in the middle. Raises ``SystemExit`` when the font is not installed."""
    fitted = ImageOps.contain(_glyph(name.emoji), (FIGURE, FIGURE), Image.Resampling.LANCZOS)
    figure = Image.new("RGBA", (SIDE, SIDE))
    figure.paste(fitted, ((SIDE - fitted.width) // 2, (SIDE - fitted.height) // 2))
    return Drawing(figure, hue)


def training_pictures(names: Sequence[Name]) -> Iterator[Image.Image]:
    """Yield every name with every hue and look, RGB of 128 x 128: 2 x 9 pictures a name, in this order."""
    for name in names:
        for hue in HUES:
            drawing = draw(name, hue)
            yield from (look(drawing) for look in LOOKS.values())


@cache
def _font() -> ImageFont.FreeTypeFont:
    if not FONT.exists():
        raise SystemExit(f"{FONT} is missing: apt-get install fonts-noto-color-emoji")
    return ImageFont.truetype(FONT, BITMAP)


def _glyph(emoji: str) -> Image.Image:
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((8, 8), emoji, font=_font(), embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise SystemExit(f"{FONT} has no picture for {emoji!r}")
    return canvas.crop(box)
