"""Pictures from strangers: what is taken, how it is turned and cleaned, and what is refused before it is decoded."""

from __future__ import annotations

import io
import random
import warnings
from contextlib import suppress

import pytest
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from tenkaigen_worker.errors import PictureError
from tenkaigen_worker.references.decode import decode
from tests.unit.pictures import bomb, encoded, gradient

LIMIT = 1_000_000  # pixels


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_three_formats_are_read(kind: str) -> None:
    image = decode(encoded(gradient(), kind), max_pixels=LIMIT)
    assert (image.mode, image.size) == ("RGB", (48, 32))


def test_pictures_as_printers_and_phones_make_them() -> None:
    four_inks = decode(encoded(gradient(mode="CMYK"), "JPEG", quality=100), max_pixels=LIMIT)
    assert (four_inks.mode, four_inks.size) == ("RGB", (48, 32))
    with_a_preview = encoded(gradient(), "MPO", save_all=True, append_images=[gradient(24, 16)])
    assert decode(with_a_preview, max_pixels=LIMIT).size == (48, 32)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM", "EPS", "PDF"])
def test_other_formats_are_not(kind: str) -> None:
    with pytest.raises(PictureError, match="is no PNG, JPEG or WebP picture"):
        decode(encoded(gradient(), kind), max_pixels=LIMIT)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04" + b"\0" * 100])
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(PictureError, match="is no PNG, JPEG or WebP picture"):
        decode(data, max_pixels=LIMIT)


@pytest.mark.parametrize(
    ("mode", "kept"),
    [("1", "L"), ("L", "L"), ("LA", "LA"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("I;16", "L")],
)
def test_modes(mode: str, kept: str) -> None:
    assert decode(encoded(gradient().convert("L").convert(mode)), max_pixels=LIMIT).mode == kept


def test_a_palette_with_a_transparent_colour() -> None:
    image = gradient().convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode(encoded(image, transparency=0), max_pixels=LIMIT).mode == "RGBA"


def test_sixteen_bits_keep_their_greys() -> None:
    deep = gradient(mode="L").convert("I").point(lambda value: value * 257).convert("I;16")
    grey = decode(encoded(deep), max_pixels=LIMIT)
    assert max(abs(a - b) for a, b in zip(grey.tobytes(), gradient(mode="L").tobytes(), strict=True)) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pictures_are_turned_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(gradient(), kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened)
    image = decode(data, max_pixels=LIMIT)
    assert (image.size, image.tobytes()) == (expected.size, expected.tobytes())


def test_a_broken_orientation_turns_nothing() -> None:
    data = encoded(gradient(), exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    assert decode(data, max_pixels=LIMIT).size == (48, 32)


def test_only_pixels_are_left() -> None:
    exif = Image.Exif()
    exif[0x010E] = "my garden"
    exif.get_ifd(0x8825)[1] = "N"
    text = PngInfo()
    text.add_text("Comment", "my garden")
    image = decode(encoded(gradient(), exif=exif, pnginfo=text, dpi=(300, 300)), max_pixels=LIMIT)
    assert image.info == {}
    again = encoded(image)
    assert b"my garden" not in again
    assert b"eXIf" not in again


def test_colours_become_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    wrong = decode(encoded(gradient(), icc_profile=lab), max_pixels=LIMIT)
    assert wrong.tobytes() == gradient().tobytes()  # a profile of another kind of picture

    swapped = swap_red_and_blue(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    translated = decode(encoded(red, icc_profile=swapped), max_pixels=LIMIT).getpixel((0, 0))
    assert isinstance(translated, tuple)
    assert translated[2] > 250
    assert translated[0] < 5


def swap_red_and_blue(profile: bytes) -> bytes:
    """A display that has its wires crossed."""
    return profile.replace(b"rXYZ", b"xXYZ").replace(b"bXYZ", b"rXYZ").replace(b"xXYZ", b"bXYZ")


def test_a_profile_that_is_none_is_left_out() -> None:
    image = decode(encoded(gradient(), icc_profile=b"no profile"), max_pixels=LIMIT)
    assert image.tobytes() == gradient().tobytes()


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, lossless=True)
        assert decode(data, max_pixels=LIMIT).convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bomb(30_000, 30_000)
    assert len(data) < 200_000
    monkeypatch.setattr(Image.Image, "load", None)
    for size, says in [((30_000, 30_000), "far more pixels"), ((1000, 1001), "has 1000 x 1001 pixels")]:
        with pytest.raises(PictureError, match=f"{says}.*at most 1000000 are taken"):
            decode(bomb(*size), max_pixels=LIMIT)


def test_as_many_pixels_as_allowed_are_fine() -> None:
    assert decode(bomb(1000, 1000), max_pixels=LIMIT).size == (1000, 1000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_cut_and_damaged_files_are_answered_in_words(kind: str) -> None:
    whole = encoded(gradient(), kind)
    dice = random.Random(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged header may claim a size that Pillow warns of
        with pytest.raises(PictureError):
            decode(whole[: len(whole) // 2], max_pixels=LIMIT)
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(dice.randint(1, 8)):
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
            with suppress(PictureError):
                decode(bytes(damaged), max_pixels=LIMIT)
