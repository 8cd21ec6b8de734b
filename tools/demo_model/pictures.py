"""The training pictures: every known name, drawn from Noto Color Emoji in four variants and every look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from tools.demo_model.looks import LOOKS, SIDE, Drawing

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian's fonts-noto-color-emoji
BITMAP = 109  # the only size of its pictures
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


@dataclass(frozen=True)
class Variant:
    """How a figure stands in its picture: what a seed decides in the trained model."""

    mirrored: bool
    side: int
    degrees: float
    shift: tuple[int, int]
    hue: float


# Two poses, each on two grounds. Few, so that a small model learns each of them well.
VARIANTS = (
    Variant(mirrored=False, side=108, degrees=0, shift=(0, 0), hue=0.55),
    Variant(mirrored=True, side=100, degrees=-6, shift=(2, 1), hue=0.10),
    Variant(mirrored=False, side=108, degrees=0, shift=(0, 0), hue=0.80),
    Variant(mirrored=True, side=100, degrees=-6, shift=(2, 1), hue=0.36),
)


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


def draw(name: Name, variant: Variant) -> Drawing:
    """Draw a name's emoji as the variant says. Raises ``SystemExit`` when the font is not installed."""
    glyph = _glyph(name.emoji)
    if variant.mirrored:
        glyph = ImageOps.mirror(glyph)
    fitted = ImageOps.contain(glyph, (variant.side, variant.side), Image.Resampling.LANCZOS)
    figure = Image.new("RGBA", (SIDE, SIDE))
    right, down = variant.shift
    figure.paste(fitted, ((SIDE - fitted.width) // 2 + right, (SIDE - fitted.height) // 2 + down))
    return Drawing(figure.rotate(variant.degrees, Image.Resampling.BICUBIC), variant.hue)


def training_pictures(names: Sequence[Name]) -> Iterator[Image.Image]:
    """Yield every name in every variant and look, RGB of 128 x 128: 4 x 9 pictures a name, in this order."""
    for name in names:
        for variant in VARIANTS:
            drawing = draw(name, variant)
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
