"""Fitting a reference and a mask to the size of the picture that is made from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tenkaigen_worker.recipe import EDIT_PIXELS, MAX_PIXELS, MAX_SIDE, MIN_SIDE, SIDE_STEP
from tenkaigen_worker.references.fit import edit_size, fit_edited, fit_mask, fit_reference, fit_size
from tests.unit.pictures import gradient


@pytest.mark.parametrize(
    ("size", "asked", "fitted"),
    [
        ((512, 768), (None, None), (512, 768)),
        ((500, 700), (None, None), (496, 704)),
        ((4000, 3000), (None, None), (2368, 1760)),
        ((8000, 1000), (None, None), (4096, 512)),
        ((20, 10), (None, None), (128, 64)),
        ((10_000, 10), (None, None), (4096, 64)),
        ((10, 10_000), (None, None), (64, 4096)),
        ((4000, 3000), (1024, None), (1024, 768)),
        ((4000, 3000), (None, 768), (1024, 768)),
        ((100, 400), (4096, None), (4096, 1024)),
        ((4000, 3000), (256, 512), (256, 512)),
    ],
)
def test_sizes(size: tuple[int, int], asked: tuple[int | None, int | None], fitted: tuple[int, int]) -> None:
    assert fit_size(size, *asked) == fitted


SIDES = st.integers(1, 30_000)
ASKED = st.none() | st.integers(MIN_SIDE // SIDE_STEP, MAX_SIDE // SIDE_STEP).map(lambda steps: steps * SIDE_STEP)


@given(SIDES, SIDES, ASKED, st.booleans())
def test_every_size_can_be_made(width: int, height: int, asked: int | None, upright: bool) -> None:
    sides = fit_size((width, height), None if upright else asked, asked if upright else None)
    assert all(MIN_SIDE <= side <= MAX_SIDE and side % SIDE_STEP == 0 for side in sides)
    assert sides[0] * sides[1] <= MAX_PIXELS
    assert asked is None or sides[upright] == asked


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    assert fit_reference(gradient(64, 48), (64, 48)).tobytes() == gradient(64, 48).tobytes()


def test_another_shape_is_cropped_around_the_middle() -> None:
    image = Image.new("RGB", (300, 100), "red")
    ImageDraw.Draw(image).rectangle((100, 0, 199, 99), fill="blue")
    fitted = fit_reference(image, (64, 64))
    assert (fitted.mode, fitted.size) == ("RGB", (64, 64))
    assert {fitted.getpixel(at) for at in [(4, 4), (32, 32), (59, 59)]} == {(0, 0, 255)}


def test_what_is_transparent_becomes_white() -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert fit_reference(clear, (64, 64)).getpixel((5, 5)) == (255, 255, 255)
    half = Image.new("LA", (64, 64), (0, 128))
    assert fit_reference(half, (64, 64)).getpixel((5, 5)) == (127, 127, 127)


def stroke(size: tuple[int, int], mode: str = "L") -> Image.Image:
    """A mask that is white on the left half."""
    mask = Image.new(mode, size)
    ImageDraw.Draw(mask).rectangle((0, 0, size[0] // 2, size[1]), fill="white")
    return mask


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_mask_goes_the_way_of_its_reference(mode: str) -> None:
    mask = fit_mask(stroke((300, 100), mode), (300, 100), (64, 64))
    assert (mask.mode, mask.size) == ("L", (64, 64))
    assert (mask.getpixel((4, 32)), mask.getpixel((59, 32))) == (255, 0)


def test_a_mask_of_another_size() -> None:
    with pytest.raises(ValueError, match="must have the size of the reference, 300 x 100 pixels; it has 64 x 64"):
        fit_mask(stroke((64, 64)), (300, 100), (64, 64))


@pytest.mark.parametrize("colour", [(0, 255), (127, 255), (255, 0)])
def test_a_mask_without_white(colour: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is black all over"):
        fit_mask(Image.new("LA", (64, 64), colour), (64, 64), (64, 64))


@pytest.mark.parametrize(
    ("size", "asked", "fitted"),
    [
        ((96, 48), (None, None), (1456, 720)),
        ((6000, 6000), (None, None), (1024, 1024)),
        ((4000, 3000), (512, None), (512, 384)),
        ((4000, 3000), (256, 512), (256, 512)),
        ((3200, 100), (None, None), (4096, 176)),
    ],
)
def test_the_size_of_an_edit(
    size: tuple[int, int], asked: tuple[int | None, int | None], fitted: tuple[int, int]
) -> None:
    assert edit_size(size, *asked, pixels=1024 * 1024) == fitted


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000), pixels=st.integers(64 * 64, MAX_PIXELS))
def test_every_edit_can_be_made(width: int, height: int, pixels: int) -> None:
    fitted = edit_size((width, height), None, None, pixels=pixels)
    assert all(side % SIDE_STEP == 0 and MIN_SIDE <= side <= MAX_SIDE for side in fitted)
    assert fitted[0] * fitted[1] <= MAX_PIXELS


@pytest.mark.parametrize(
    ("size", "seen"), [((640, 1000), (640, 1000)), ((2000, 1500), (1184, 896)), ((8000, 250), (5792, 192))]
)
def test_what_an_edit_sees_of_a_picture_is_all_of_it(size: tuple[int, int], seen: tuple[int, int]) -> None:
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    fitted = fit_edited(picture)
    assert (fitted.mode, fitted.size, fitted.getpixel((0, 0))) == ("RGB", seen, (255, 255, 255))
    assert fitted.width * fitted.height < 1.1 * EDIT_PIXELS
    with pytest.raises(ValueError, match="at most 32 times as long as wide; it has 66 x 2 pixels"):
        fit_edited(Image.new("RGB", (66, 2)))
