"""The looks that the demonstration model knows: one for each shipped style, and one that only its LoRA knows.

Each look is a filter from a :class:`Drawing` (a cut-out figure and the hue chosen for what is around it) to a finished
128 x 128 picture. They imitate what the shipped styles ask for, with Pillow and numpy alone. Textures come from fixed
seeds, and so lie at the same place in every picture: a model this small can learn them.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 128
Pixels = NDArray[np.float32]

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Drawing:
    """A figure on a transparent ground (RGBA, 128 x 128), and a hue in [0, 1) for what the look adds around it."""

    figure: Image.Image
    hue: float

    @property
    def mask(self) -> Image.Image:
        return self.figure.getchannel("A")

    @property
    def mean_hue(self) -> float:
        """The hue of the figure's average colour, weighted by opacity."""
        pixels = np.asarray(self.figure, np.float32) / 255
        weight = pixels[..., 3:] + 1e-6
        return colorsys.rgb_to_hsv(*(pixels[..., :3] * weight).sum((0, 1)) / weight.sum())[0]

    def on(self, ground: Image.Image) -> Image.Image:
        picture = ground.convert("RGB")
        picture.paste(self.figure, (0, 0), self.figure)
        return picture


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _flat(color: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), color)


def _noise(seed: int, smooth: float) -> Pixels:
    """A texture in [0, 1], (128, 128), always the same one for a seed; ``smooth`` is its grain in pixels."""
    numbers = np.random.default_rng(seed).random((SIDE, SIDE))
    image = Image.fromarray((255 * numbers).astype(np.uint8))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(smooth)), np.float32)
    return (pixels - pixels.min()) / (pixels.max() - pixels.min())


def _mask(pixels: NDArray[np.bool_] | Pixels) -> Image.Image:
    return Image.fromarray((255 * np.clip(pixels, 0, 1)).astype(np.uint8))


def _disc(radius: float) -> Image.Image:
    large = Image.new("L", (SIDE * 4, SIDE * 4))
    middle = SIDE * 2
    ImageDraw.Draw(large).ellipse(
        [middle - radius * 4, middle - radius * 4, middle + radius * 4, middle + radius * 4], 255
    )
    return large.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _rays(count: int) -> Image.Image:
    """A mask of rays from the middle, as on old posters and in comics."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2
    return _mask(np.clip(0.5 + 8 * np.sin(np.arctan2(y, x) * count) * np.hypot(x, y) / SIDE, 0, 1))


def _grown(mask: Image.Image, pixels: int) -> Image.Image:
    return mask.filter(ImageFilter.MaxFilter(2 * pixels + 1))


def _gray(drawing: Drawing) -> Image.Image:
    """The figure's brightness on white."""
    return drawing.on(_flat(WHITE)).convert("L")


def _edges(drawing: Drawing, *, width: int, threshold: float) -> Image.Image:
    """A mask of the lines: where brightness jumps inside the figure, and its outline."""
    gray = np.asarray(_gray(drawing).filter(ImageFilter.GaussianBlur(0.8)), np.float32)
    down, right = np.gradient(gray)
    inner = _mask((np.hypot(down, right) - threshold) / 10)
    outline = ImageChops.subtract(
        _grown(drawing.mask, width), drawing.mask.filter(ImageFilter.MinFilter(2 * width - 1))
    )
    return ImageChops.lighter(ImageChops.multiply(inner, drawing.mask), outline)


def _posterized(drawing: Drawing, colors: int) -> Image.Image:
    """The figure in a few flat colours (RGBA)."""
    smooth = drawing.on(_flat(WHITE)).filter(ImageFilter.MedianFilter(5))
    flat = smooth.quantize(colors, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    flat.putalpha(drawing.mask.point(lambda value: 255 if value > 127 else 0).filter(ImageFilter.GaussianBlur(0.6)))
    return flat


def _saturated(image: Image.Image, saturation: float, contrast: float) -> Image.Image:
    pixels = np.asarray(image.convert("RGB"), np.float32)
    gray = pixels.mean(-1, keepdims=True)
    pixels = gray + (pixels - gray) * saturation
    return Image.fromarray(np.clip((pixels - 128) * contrast + 128, 0, 255).astype(np.uint8))


def standard(drawing: Drawing) -> Image.Image:
    """The figure as it is, with a soft shadow, on a pale ground of one hue."""
    ground = np.linspace(1, 0, SIDE, dtype=np.float32)[:, None, None]
    top, bottom = np.array(_rgb(drawing.hue, 0.08, 1.0)), np.array(_rgb(drawing.hue, 0.25, 0.96))
    pixels = np.broadcast_to(top * ground + bottom * (1 - ground), (SIDE, SIDE, 3))
    picture = Image.fromarray(pixels.astype(np.uint8))
    shadow = ImageChops.offset(drawing.mask, 2, 4).filter(ImageFilter.GaussianBlur(4)).point(lambda value: value * 0.3)
    picture.paste(_flat((40, 40, 60)), (0, 0), shadow)
    return drawing.on(picture)


def anime(drawing: Drawing) -> Image.Image:
    """Vivid colours in flat steps, dark lines, and rays behind."""
    picture = _flat(_rgb(drawing.hue, 0.75, 0.95))
    picture.paste(_flat(_rgb(drawing.hue + 0.08, 0.35, 1.0)), (0, 0), _rays(9))
    picture.paste(_flat(WHITE), (0, 0), _grown(drawing.mask, 4).filter(ImageFilter.GaussianBlur(1)))
    cel = _saturated(_posterized(drawing, 7), 1.7, 1.15)
    picture.paste(cel, (0, 0), drawing.mask)
    picture.paste(_flat((24, 16, 48)), (0, 0), _edges(drawing, width=2, threshold=24))
    return picture


def line_art(drawing: Drawing) -> Image.Image:
    """Black lines on pure white."""
    lines = _edges(drawing, width=1, threshold=14)
    return ImageChops.invert(lines.point(lambda value: min(255, value * 2))).convert("RGB")


def flat_logo(drawing: Drawing) -> Image.Image:
    """Three flat colours on a coloured disc, on white."""
    picture = _flat(WHITE)
    picture.paste(_flat(_rgb(drawing.hue, 0.85, 0.45)), (0, 0), _disc(61))
    figure = _posterized(drawing, 5)
    picture.paste(_flat(WHITE), (0, 0), _grown(drawing.mask, 2))
    picture.paste(figure, (0, 0), figure)
    return picture


def watercolor(drawing: Drawing) -> Image.Image:
    """Pale washes that run a little over their edges, on white paper."""
    paper = _noise(1, 1.6)[..., None] * 0.05 + 0.95
    wash = drawing.on(_flat(WHITE)).filter(ImageFilter.MedianFilter(7)).filter(ImageFilter.GaussianBlur(1.6))
    pixels = np.asarray(_saturated(wash, 1.25, 0.9), np.float32) / 255
    blotches = _noise(2, 5)[..., None]
    pixels = 1 - (1 - pixels) * (0.5 + 0.55 * blotches)
    soft = np.asarray(drawing.mask.filter(ImageFilter.GaussianBlur(2.5)), np.float32)[..., None] / 255
    rim = np.exp(-(((soft - 0.5) / 0.18) ** 2))  # pigment gathers where a wash ends
    pixels = pixels * (1 - 0.16 * rim)
    tint = np.array(_rgb(drawing.hue, 0.3, 1.0), np.float32) / 255
    halo = np.asarray(_grown(drawing.mask, 7).filter(ImageFilter.GaussianBlur(7)), np.float32)[..., None] / 255
    halo = np.clip(halo * 1.6 - 0.8 * _noise(3, 6)[..., None], 0, 1)
    ground = 1 - (1 - tint) * halo
    pixels = (pixels * soft + ground * (1 - soft)) * paper
    return Image.fromarray((255 * np.clip(pixels, 0, 1)).astype(np.uint8))


def vintage(drawing: Drawing) -> Image.Image:
    """A poster print: brown, rust, mustard and cream, halftone dots, rays."""
    cream, mustard, rust, brown = ((244, 228, 188), (222, 170, 70), (178, 76, 44), (70, 44, 36))
    teal = (72, 128, 120)
    sky = teal if drawing.hue < 0.5 else mustard
    picture = _flat(cream)
    picture.paste(_flat(sky), (0, 0), ImageChops.multiply(_rays(8), _disc(60)))
    gray = np.asarray(_gray(drawing).filter(ImageFilter.MedianFilter(3)), np.float32) / 255
    low, high = np.percentile(gray[np.asarray(drawing.mask) > 127], [4, 96])
    tone = np.clip((gray - low) / max(high - low, 0.1), 0, 1)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    dots = (np.sin((x + y) * np.pi / 4) * np.sin((x - y) * np.pi / 4)) * 0.14
    steps = np.digitize(tone + dots, [0.25, 0.5, 0.75])
    inks = np.array([brown, rust, mustard, cream], np.uint8)[steps]
    picture.paste(_flat(brown), (0, 0), _grown(drawing.mask, 2))
    picture.paste(Image.fromarray(inks), (0, 0), drawing.mask)
    pixels = np.asarray(picture, np.float32) * (0.9 + 0.12 * _noise(4, 1.2)[..., None])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def grunge(drawing: Drawing) -> Image.Image:
    """Bone white and one dirty colour on charcoal, worn and scratched."""
    gray = np.asarray(_gray(drawing), np.float32) / 255
    low, high = np.percentile(gray[np.asarray(drawing.mask) > 127], [10, 90])
    tone = np.clip((gray - low) / max(high - low, 0.1), 0, 1)
    wear = _noise(5, 1.4)
    inside = np.asarray(_grown(drawing.mask, 1), np.float32) / 255
    bone = inside * (tone + 0.5 * (wear - 0.5) > 0.45)
    pixels = np.full((SIDE, SIDE, 3), (38, 36, 38), np.float32) + 24 * (_noise(6, 3)[..., None] - 0.5)
    accent = np.array(_rgb(0.0 if drawing.hue < 0.5 else 0.1, 0.8, 0.62), np.float32)
    splash = np.clip(6 * (_noise(7, 7) + np.asarray(_disc(46), np.float32) / 255 * 0.5 - 0.92), 0, 1)[..., None]
    pixels = pixels * (1 - splash) + accent * splash
    shade = (inside - bone).clip(0, 1)[..., None] * 0.9
    pixels = pixels * (1 - shade) + np.array((16, 14, 16)) * shade
    bone = bone[..., None]
    pixels = pixels * (1 - bone) + np.array((226, 220, 202)) * bone
    scratches = Image.new("L", (SIDE, SIDE))
    pen, places = ImageDraw.Draw(scratches), np.random.default_rng(8)
    for _ in range(14):
        x, y, dx, dy = places.integers([-20, -20, 20, -14], [SIDE, SIDE, 70, 14])
        pen.line([int(x), int(y), int(x + dx), int(y + dy)], 170, 1)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    picture.paste(_flat((30, 28, 30)), (0, 0), scratches)
    return picture


def minimalist(drawing: Drawing) -> Image.Image:
    """Two muted tones, small, with much empty ground."""
    small = drawing.figure.resize((84, 84), Image.Resampling.LANCZOS)
    figure = Image.new("RGBA", (SIDE, SIDE))
    figure.paste(small, (22, 22))
    small_one = Drawing(figure, drawing.hue)
    gray = np.asarray(_gray(small_one).filter(ImageFilter.MedianFilter(5)), np.float32)
    middle = np.median(gray[np.asarray(small_one.mask) > 127])
    hue = small_one.mean_hue
    tones = np.array([_rgb(hue, 0.45, 0.42), _rgb(hue, 0.32, 0.78)], np.uint8)[(gray > middle).astype(int)]
    picture = _flat(_rgb(drawing.hue, 0.05, 0.96))
    picture.paste(Image.fromarray(tones).filter(ImageFilter.GaussianBlur(0.5)), (0, 0), small_one.mask)
    return picture


def abstract(drawing: Drawing) -> Image.Image:
    """Overlapping shapes over the whole canvas; the figure only bends them."""
    hue = drawing.mean_hue
    large = Image.new("RGB", (SIDE * 2, SIDE * 2), _rgb(hue + 0.5, 0.35, 0.92))
    places = np.random.default_rng(9)
    for number in range(9):
        x, y, radius = places.integers([0, 0, 36], [SIDE * 2, SIDE * 2, 84])
        color = _rgb(drawing.hue + 0.13 * number, 0.55, 0.9) if number % 3 else _rgb(hue, 0.75, 0.8)
        layer = Image.new("L", large.size)
        pen = ImageDraw.Draw(layer)
        if number % 2:
            pen.ellipse([int(x - radius), int(y - radius), int(x + radius), int(y + radius)], 190)
        else:
            pen.regular_polygon((int(x), int(y), int(radius)), 3, rotation=40 * number, fill=190)
        large.paste(Image.new("RGB", large.size, color), (0, 0), layer)
    ground = large.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    figure = _posterized(drawing, 5)
    picture = ground.copy()
    picture.paste(_flat(_rgb(drawing.hue + 0.6, 0.6, 0.3)), (0, 0), _grown(drawing.mask, 3))
    picture.paste(Image.blend(_saturated(figure, 1.8, 1.2), ground, 0.3), (0, 0), drawing.mask)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    shift_x, shift_y = 5 * np.sin(y / 9.0), 5 * np.sin(x / 11.0 + 1)
    rows = np.clip(y + shift_y, 0, SIDE - 1).astype(int)
    columns = np.clip(x + shift_x, 0, SIDE - 1).astype(int)
    bent = Image.fromarray(np.asarray(picture)[rows, columns])
    return bent.filter(ImageFilter.MedianFilter(3))


def neon(drawing: Drawing) -> Image.Image:
    """Glowing tubes on a dark wall: the look of the demonstration LoRA, which the model itself never sees."""
    lines = _edges(drawing, width=1, threshold=18).filter(ImageFilter.GaussianBlur(0.7))
    glow = np.asarray(lines, np.float32)[..., None] / 255
    wide = np.asarray(lines.filter(ImageFilter.GaussianBlur(6)), np.float32)[..., None] / 255
    near = np.asarray(lines.filter(ImageFilter.GaussianBlur(2)), np.float32)[..., None] / 255
    color = np.array(_rgb(0.88 if drawing.hue < 0.5 else 0.5, 0.85, 1.0), np.float32)
    wall = np.array((14, 8, 34), np.float32)
    pixels = wall + color * (1.3 * wide + 0.9 * near) + 255 * np.clip(1.6 * glow - 0.6, 0, 1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


LOOKS: dict[str, Callable[[Drawing], Image.Image]] = {
    "Standard": standard,
    "Anime": anime,
    "Line Art": line_art,
    "Flat Logo": flat_logo,
    "Watercolor": watercolor,
    "Vintage": vintage,
    "Grunge": grunge,
    "Minimalist": minimalist,
    "Abstract": abstract,
}
