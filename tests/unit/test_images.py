"""PNG files: what is in them, how it is read back, and what is said of files that are none of ours."""

from __future__ import annotations

import io
import json
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from tenkaigen_worker.cli import cli
from tenkaigen_worker.errors import PictureError
from tenkaigen_worker.images import MadeFrom, encode_png, encode_thumbnail, parameters, read_recipe
from tenkaigen_worker.recipe import Recipe
from tests.unit.pictures import chunk

RECIPE = Recipe(
    prompt="Ein Füchslein 狐 with {braces}\nand two lines",
    negative_prompt="photo",
    style="Anime",
    width=64,
    height=32,
    mode="quality",
    steps=8,
    guidance_scale=4.0,
    scheduler="base",
    seeds=(4294967295, 0, 1),
    backend="tiny",
    model="tiny-qwen",
    demo=True,
)


def picture(mode: str = "RGB") -> Image.Image:
    return Image.linear_gradient("L").resize((64, 32)).convert(mode)


def opened(png: bytes) -> PngImageFile:
    image = Image.open(io.BytesIO(png))
    assert isinstance(image, PngImageFile)
    return image


def resaved(**texts: str) -> bytes:
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    picture().save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_pixels_and_recipe_come_back_as_they_were() -> None:
    png = encode_png(picture(), RECIPE, seed=0)

    assert read_recipe(png) == MadeFrom(RECIPE, index=1, seed=0)
    assert opened(png).tobytes() == picture().tobytes()


def test_the_recipe_stands_in_the_file_as_plain_json() -> None:
    text = opened(encode_png(picture(), RECIPE, seed=1)).text["tenkaigen"]

    assert json.loads(text) == {**RECIPE.to_json(), "index": 2, "seed": 1}
    assert "狐" in text


def test_the_same_picture_gives_the_same_bytes() -> None:
    assert encode_png(picture(), RECIPE, seed=0) == encode_png(picture(), RECIPE, seed=0)


@pytest.mark.parametrize(
    ("mode", "kept"), [("RGB", "RGB"), ("RGBA", "RGBA"), ("L", "L"), ("LA", "LA"), ("CMYK", "RGB"), ("PA", "RGBA")]
)
def test_modes(mode: str, kept: str) -> None:
    image = opened(encode_png(picture(mode), RECIPE, seed=0))

    assert image.mode == kept


def test_parameters_as_other_programs_read_them() -> None:
    png = encode_png(picture(), RECIPE, seed=0)

    assert opened(png).text["parameters"] == (
        "Ein Füchslein 狐 with {braces}\nand two lines\n"
        "Negative prompt: photo\n"
        "Steps: 8, Sampler: Euler, CFG scale: 4, Seed: 0, Size: 64x32, Model: tiny-qwen"
    )


def test_parameters_that_could_be_misread_are_quoted() -> None:
    text = parameters(replace(RECIPE, negative_prompt="", model="a, b: c"), 0)

    assert "Negative prompt" not in text
    assert text.endswith('Model: "a, b: c"')


def test_a_scheduler_without_a_common_name_keeps_its_own() -> None:
    assert "Sampler: heun, " in parameters(replace(RECIPE, scheduler="heun"), 0)


def test_the_file_says_that_a_model_made_it() -> None:
    xmp = opened(encode_png(picture(), RECIPE, seed=0)).text["XML:com.adobe.xmp"]

    packet = ElementTree.fromstring(xmp[xmp.index("<x:") : xmp.index("<?xpacket end")])
    (description,) = packet.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType") == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )


def test_a_recipe_that_another_program_moved_behind_the_pixels_is_found() -> None:
    png = encode_png(picture(), RECIPE, seed=0)
    start = png.index(b"iTXttenkaigen") - 4
    length = int.from_bytes(png[start : start + 4]) + 12
    end = png.index(b"IEND") - 4

    moved = png[:start] + png[start + length : end] + png[start : start + length] + png[end:]

    assert read_recipe(moved).recipe == RECIPE


HUGE = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0\xff\xff\xff" * 2 + b"\x08\x02\0\0\0") + chunk(b"IDAT", b"")
BROKEN_PIXELS = (
    resaved()[: resaved().index(b"IDAT") - 4] + chunk(b"IDAT", b"\x78\x01") + chunk(b"\0\0\0\0", b"no chunk")
)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not a PNG file"),
        (b"GIF89a" + b"\0" * 100, "is not a PNG file"),
        (b"\x89PNG\r\n\x1a\n", "is not a PNG file"),
        (HUGE, "is a damaged PNG file"),
        (BROKEN_PIXELS, "is a damaged PNG file"),
        (resaved(), "carries no recipe"),
        (resaved(tenkaigen="no json"), "carries a recipe that cannot be read"),
        (resaved(tenkaigen="[1]"), "carries a recipe that cannot be read"),
        (resaved(tenkaigen="{}"), "carries a recipe that cannot be read"),
        (resaved(tenkaigen='{"index": 0, "seed": 1, "version": 9}'), "not a recipe of version 1"),
        (resaved(tenkaigen="[" * 100_000), "carries a recipe that cannot be read"),
    ],
    ids=lambda value: repr(value)[-30:],
)
def test_files_that_are_none_of_ours(data: bytes, says: str) -> None:
    with pytest.raises(PictureError, match=says):
        read_recipe(data)


def test_any_cut_or_damaged_file_is_answered_in_words() -> None:
    png = encode_png(picture(), RECIPE, seed=0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged header may claim a size that Pillow warns of
        for end in range(0, len(png), 7):
            _read_or_refuse(png[:end])
        for place in range(0, len(png), 7):
            _read_or_refuse(png[:place] + bytes([png[place] ^ 0xFF]) + png[place + 1 :])


def _read_or_refuse(data: bytes) -> None:
    with suppress(PictureError):
        read_recipe(data)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"nowhere\.png cannot be read: No such file"):
        read_recipe(tmp_path / "nowhere.png")
    with pytest.raises(PictureError, match="cannot be read: Is a directory"):
        read_recipe(tmp_path)


# Thumbnails


@pytest.mark.parametrize(
    ("size", "small"),
    [((1024, 1024), (512, 512)), ((1024, 512), (512, 256)), ((300, 1200), (128, 512)), ((64, 48), (64, 48))],
)
def test_a_thumbnail_is_a_small_webp_and_says_what_it_is(size: tuple[int, int], small: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(encode_thumbnail(Image.new("RGB", size, "red")))) as thumbnail:
        assert (thumbnail.format, thumbnail.mode, thumbnail.size) == ("WEBP", "RGB", small)
        assert b"trainedAlgorithmicMedia" in thumbnail.info["xmp"]


@pytest.mark.parametrize(("mode", "kept"), [("RGBA", "RGBA"), ("LA", "RGBA"), ("L", "RGB"), ("P", "RGB")])
def test_a_thumbnail_keeps_transparency_and_leaves_its_picture_alone(mode: str, kept: str) -> None:
    image = Image.new(mode, (600, 600))
    with Image.open(io.BytesIO(encode_thumbnail(image))) as thumbnail:
        assert thumbnail.mode == kept
    assert (image.mode, image.size) == (mode, (600, 600))


# The command line


def test_inspect_prints_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "fox.png"
    file.write_bytes(encode_png(picture(), RECIPE, seed=0))

    result = CliRunner().invoke(cli, ["inspect", str(file)])
    assert result.exit_code == 0
    assert "Füchslein 狐" in result.output

    result = CliRunner().invoke(cli, ["inspect", str(file), "--json"])
    assert json.loads(result.output)["seed"] == 0


def test_inspect_says_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "fox.png"
    file.write_bytes(resaved())

    assert isinstance(CliRunner().invoke(cli, ["inspect", str(file)]).exception, PictureError)
    assert "does not exist" in CliRunner().invoke(cli, ["inspect", str(tmp_path / "nowhere.png")]).output
    assert "is a directory" in CliRunner().invoke(cli, ["inspect", str(tmp_path)]).output
