"""The built-in plugins for finished pictures: off unless configured, and exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from tenkaigen_worker.config import PluginSettings, ResizeSettings, WatermarkSettings, load
from tenkaigen_worker.errors import ConfigError
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.plugin.pictures import PLACES, Resize, Watermark
from tenkaigen_worker.plugin.types import PictureInfo

INFO = PictureInfo(index=0, seed=7, style="Standard")
BLUE = (0, 0, 200)


def blue(width: int = 200, height: int = 100) -> Image.Image:
    return Image.new("RGB", (width, height), BLUE)


def marked(image: Image.Image | None = None, **settings: Any) -> Image.Image:
    return Watermark(WatermarkSettings(**{"text": "Shop", **settings})).process_image(image or blue())


def box(image: Image.Image) -> tuple[int, int, int, int]:
    """Where a picture is no longer blue."""
    found = ImageChops.difference(image, blue(*image.size)).getbbox()
    assert found
    return found


# Switching on


async def test_both_are_off_by_default(tmp_path: Path) -> None:
    image = blue()

    assert await Plugins.load(PluginSettings(paths=())).process_image(image, INFO) is image


async def test_they_come_last_and_the_mark_after_the_size(tmp_path: Path) -> None:
    (tmp_path / "size.py").write_text(
        "from tenkaigen_worker.plugin import *\n@hookimpl\ndef process_image(image):\n"
        "    assert image.size == (200, 100)\n    return image.rotate(90, expand=True)\n"
    )
    resize, watermark = ResizeSettings(width=300, height=600), WatermarkSettings(text="Shop", margin=0)
    plugins = Plugins.load(PluginSettings(paths=(tmp_path,), resize=resize, watermark=watermark))

    image = await plugins.process_image(blue(), INFO)

    assert image.size == (300, 600)
    left, _, right, bottom = box(image)
    assert (right, bottom) == (300, 600)
    assert right - left == pytest.approx(90, abs=1)
    assert [(p.name, p.origin) for p in plugins.describe()][3:5] == [
        ("resize", "built-in, by plugins.resize"),
        ("watermark", "built-in, by plugins.watermark"),
    ]


def test_they_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "worker.yaml"
    file.write_text("plugins:\n  resize: {width: 4500, height: 5400}\n  watermark: {text: Preview, opacity: 1}\n")
    loaded = load(file, {"TENKAIGEN_PLUGINS__RESIZE": "{width: 300, height: 200}"})

    assert loaded.settings.plugins.resize == ResizeSettings(width=300, height=200)
    assert loaded.settings.plugins.watermark == WatermarkSettings(text="Preview", opacity=1)
    assert loaded.origins["plugins.resize.width"] == "TENKAIGEN_PLUGINS__RESIZE"
    assert loaded.origins["plugins.watermark.text"] == f"{file}:3"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resize: {width: 300}", "plugins.resize.height: is missing"),
        ("resize: {widht: 300, height: 300}", "plugins.resize.widht: unknown key; did you mean plugins.resize.width?"),
        ("resize: {width: 0, height: 300}", "plugins.resize.width: got 0, should be greater than or equal to 16"),
        ("resize: 300", "plugins.resize: should be a section with keys of its own"),
        ("watermark: {}", "plugins.watermark.text: give either a text or an image"),
        ("watermark: {text: a, image: b.png}", "plugins.watermark.text: give either a text or an image"),
        ("watermark: {text: ' '}", "plugins.watermark.text: should be one line of letters"),
        ('watermark: {text: "a\\nb"}', "plugins.watermark.text: should be one line of letters"),
        ("watermark: {text: a, opacity: 0}", "plugins.watermark.opacity: got 0, should be greater than 0"),
        ("watermark: {text: a, position: middle}", "plugins.watermark.position: got \"middle\", should be 'top-left'"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "worker.yaml"
    file.write_text(f"plugins:\n  {text}\n")

    with pytest.raises(ConfigError) as refused:
        load(file, {})

    assert f"{file}:2: {says}" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no file"),
        (b"", "is no PNG that can be read"),
        (b"GIF89a", "is no PNG"),
        (b"\x89PNG\r\n\x1a\n", "is no"),
    ],
)
def test_a_logo_that_cannot_be_used_stops_the_start(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "logo.png"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigError, match=says) as refused:
        Plugins.load(PluginSettings(paths=(), watermark=WatermarkSettings(image=file)))
    assert str(refused.value).startswith("plugins.watermark.image: ")


@pytest.mark.parametrize("text", ["Проба", "Äpfel", "見本", "Shop ⚑"])
def test_a_text_that_the_font_cannot_draw_stops_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^plugins\.watermark\.text: Pillow's own font has no '[ПÄ見⚑]': draw"):
        marked(text=text)


@pytest.mark.parametrize("text", ["© Shop 2026", "Preview & sample!", "a.b-c_d/e"])
def test_a_text_that_the_font_can_draw(text: str) -> None:
    assert box(marked(text=text))


# Resize


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_picture_gets_exactly_that_size(mode: str) -> None:
    image = Resize(ResizeSettings(width=333, height=77)).process_image(Image.new(mode, (64, 64)))

    assert (image.size, image.mode) == ((333, 77), mode)


def test_a_picture_of_another_shape_is_cut_and_not_stretched() -> None:
    image = blue(300, 100)
    image.paste("white", (0, 0, 100, 100))
    image.paste("white", (200, 0, 300, 100))

    cut = Resize(ResizeSettings(width=50, height=50)).process_image(image)

    assert cut.getpixel((25, 25)) == BLUE
    assert cut.getpixel((4, 25)) == BLUE
    assert cut.getpixel((45, 25)) == BLUE


def test_edges_do_not_get_the_color_of_what_cannot_be_seen() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((*BLUE, 255), (0, 0, 32, 64))

    bigger = Resize(ResizeSettings(width=256, height=256)).process_image(image)

    assert all(red < 10 for count, (red, _, _, alpha) in bigger.getcolors(100_000) or [] if alpha > 8)


# Watermark


@pytest.mark.parametrize("position", PLACES)
def test_a_mark_stands_where_it_shall(position: str) -> None:
    left, top, right, bottom = box(marked(blue(400, 400), position=position, width=0.25, margin=0.05))

    assert right - left == pytest.approx(100, abs=1)
    across = {0.0: left == 20, 0.5: abs(left + right - 400) <= 2, 1.0: right == 380}
    down = {0.0: top == 20, 0.5: abs(top + bottom - 400) <= 2, 1.0: bottom == 380}
    assert across[PLACES[position][0]]
    assert down[PLACES[position][1]]


def test_opacity() -> None:
    def brightest(opacity: float) -> int:
        (_, high), *_ = marked(opacity=opacity).getextrema()
        return int(high)

    assert brightest(1) == 255
    assert 120 <= brightest(0.5) <= 130
    assert brightest(0.004) <= 2


def test_a_logo(tmp_path: Path) -> None:
    logo = Image.new("RGBA", (10, 20), (255, 0, 0, 255))
    logo.paste((0, 0, 0, 0), (0, 0, 10, 10))
    logo.save(tmp_path / "logo.png")

    image = Watermark(
        WatermarkSettings(image=tmp_path / "logo.png", position="top-left", width=0.1, margin=0, opacity=1)
    ).process_image(blue())

    assert image.getpixel((5, 35)) == (255, 0, 0)
    assert image.getpixel((5, 5)) == BLUE


def test_transparent_pictures_stay_so_and_others_stay_rgb() -> None:
    assert marked(Image.new("RGBA", (200, 100), (0, 0, 0, 0))).mode == "RGBA"
    assert marked(Image.new("RGBA", (200, 100), (0, 0, 0, 0))).getpixel((0, 0)) == (0, 0, 0, 0)
    assert marked(Image.new("L", (200, 100))).mode == "RGB"
    assert marked().mode == "RGB"


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (2000, 16), (16, 2000)])
def test_a_mark_fits_into_any_picture(size: tuple[int, int]) -> None:
    assert marked(blue(*size), width=1, margin=0.49).size == size


def test_the_same_picture_gets_the_same_mark() -> None:
    assert marked().tobytes() == marked().tobytes()
