"""A model that draws one size alone: what is scaled, what the model sees, and what stays as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tenkaigen_worker.engine.base import NO_INPUTS, Inputs, Picture
from tenkaigen_worker.engine.native import AtNativeSize, scaled, touched
from tenkaigen_worker.errors import InputError
from tenkaigen_worker.offers import NO_LIMITS
from tenkaigen_worker.recipe import Model, Recipe
from tests.unit.pictures import gradient

SIDE = 32
RECIPE = Recipe("a fox", "", "", 128, 64, "quality", 4, 1.0, "base", (7, 8), "tiny", "tiny")
REFERENCE = replace(RECIPE, seeds=(7,), reference="r" * 64, strength=0.5)
RED = (200, 30, 30)


class Red:
    """A backend that draws red squares, and keeps what it was given."""

    model = Model("tiny", "tiny", None, SIDE, SIDE)
    device, dtype, limits = "cpu", "float32", NO_LIMITS
    stages_ms: dict[str, int] = {}  # noqa: RUF012

    def pictures(self, recipe: Recipe, inputs: Inputs, **how: Any) -> Iterator[Picture]:
        self.recipe, self.inputs, self.how = recipe, inputs, how
        self.seen = {
            field: Image.open(file).copy()
            for field in ("reference", "mask")
            if (file := getattr(inputs, field)) is not None
        }
        for index in range(how["first"], len(recipe.seeds)):
            pixels = Image.new("RGB", (recipe.width, recipe.height), RED).tobytes()
            yield Picture(index, recipe.seeds[index], recipe.width, recipe.height, pixels, {"decode": 5})


@pytest.fixture
def red() -> Red:
    return Red()


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """A reference that is blue at its left edge, and a mask with one white pixel and a grey one in the middle."""
    picture = Image.new("RGB", (RECIPE.width, RECIPE.height), "white")
    picture.paste("blue", (0, 0, 24, 64))
    picture.save(tmp_path / "reference.png")
    mask = Image.new("L", picture.size)
    mask.putpixel((64, 32), 255)
    mask.putpixel((40, 8), 1)
    mask.save(tmp_path / "mask.png")
    return Inputs(reference=tmp_path / "reference.png", mask=tmp_path / "mask.png")


def run(backend: Red, recipe: Recipe = RECIPE, inputs: Inputs = NO_INPUTS, *, first: int = 0) -> list[Picture]:
    how = {"first": first, "lean": True, "report": lambda step: None, "cancel": threading.Event()}
    made = list(AtNativeSize(backend, SIDE).pictures(recipe, inputs, **how))
    assert backend.how == how
    return made


def pixels(picture: Picture) -> Any:
    return np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3)


def test_every_picture_is_drawn_at_the_native_size_and_scaled(red: Red, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "tenkaigen.engine"):
        made = run(red, first=1)

    assert red.recipe == replace(RECIPE, width=SIDE, height=SIDE)
    assert [(one.index, one.seed, one.width, one.height) for one in made] == [(1, 8, 128, 64)]
    assert (pixels(made[0]) == RED).all()
    (line,) = caplog.records
    assert line.getMessage() == "tiny draws 32 x 32 pixels; scaled to 128 x 64"
    assert line.action == "picture_scaled"


def test_the_native_size_goes_through_as_it_is(
    red: Red, inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    native = replace(REFERENCE, width=SIDE, height=SIDE)
    Image.new("RGB", (SIDE, SIDE), "teal").save(tmp_path / "reference.png")
    with caplog.at_level("INFO", "tenkaigen.engine"):
        run(red, native, replace(inputs, mask=None))

    assert red.recipe is native
    assert not caplog.records


def test_the_model_sees_the_middle_of_a_reference_and_all_that_its_mask_touches(red: Red, inputs: Inputs) -> None:
    run(red, replace(REFERENCE, mask="m" * 64), inputs)

    assert {field: picture.size for field, picture in red.seen.items()} == dict.fromkeys(red.seen, (SIDE, SIDE))
    assert red.seen["reference"].getextrema() == ((255, 255),) * 3  # the blue lies beside the square
    white = np.argwhere(np.array(red.seen["mask"]) == 255).tolist()
    # From (64, 32) and (40, 8) of 128 x 64: the square begins at x = 32 and is twice as large.
    assert white == [[4, 4], [16, 16]]


def test_what_is_not_masked_stays_as_it_was_at_full_size(red: Red, inputs: Inputs) -> None:
    (made,) = run(red, replace(REFERENCE, mask="m" * 64), inputs)

    changed = (pixels(made) != np.array(Image.open(inputs.reference))).any(-1)
    assert sorted(map(tuple, np.argwhere(changed).tolist())) == [(8, 40), (32, 64)]
    assert tuple(pixels(made)[32, 64]) == RED


def test_without_a_mask_all_is_drawn(red: Red, inputs: Inputs) -> None:
    (made,) = run(red, REFERENCE, replace(inputs, mask=None))

    assert list(red.seen) == ["reference"]
    assert (pixels(made) == RED).all()


def test_what_is_written_lies_in_the_folder_of_the_job(red: Red, inputs: Inputs, tmp_path: Path) -> None:
    run(red, replace(REFERENCE, mask="m" * 64), inputs)

    assert red.inputs.reference is not None
    assert red.inputs.mask is not None
    assert red.inputs.reference.parent == red.inputs.mask.parent == tmp_path


def test_the_pictures_of_an_edit_go_through_untouched(red: Red, tmp_path: Path) -> None:
    inputs = Inputs(references=(tmp_path / "first.png", tmp_path / "second.png"))
    made = run(red, replace(RECIPE, references=("a" * 64, "b" * 64)), inputs)

    assert red.inputs is inputs
    assert [(one.index, one.width, one.height) for one in made] == [(0, 128, 64), (1, 128, 64)]


def test_a_mask_beside_the_square_in_the_middle_is_refused(red: Red, inputs: Inputs, tmp_path: Path) -> None:
    mask = Image.new("L", (RECIPE.width, RECIPE.height))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")

    with pytest.raises(InputError, match=r"^mask: lies beside the square in the middle, where alone tiny draws"):
        run(red, replace(REFERENCE, mask="m" * 64), inputs)


def test_a_reference_of_another_size_than_the_recipe_is_refused(red: Red, inputs: Inputs) -> None:
    with pytest.raises(InputError, match=r"reference: is 128 x 64 \(RGB\); it should be 64 x 64 \(RGB\)"):
        run(red, replace(REFERENCE, width=64), inputs)


@pytest.mark.parametrize("size", [(128, 64), (64, 128), (64, 64), (16, 48)])
def test_the_picture_stands_whole_in_the_middle(size: tuple[int, int]) -> None:
    square = gradient(SIDE, SIDE).convert("RGB")
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2

    made = scaled(square, size)
    assert made.size == size
    middle = made.crop((left, top, left + side, top + side))
    assert middle.tobytes() == square.resize((side, side), Image.Resampling.LANCZOS).tobytes()


def test_the_ground_beside_it_is_the_picture_blurred() -> None:
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste("black", (0, 0, SIDE, SIDE // 2))

    beside = np.array(scaled(square, (128, 64)))[:, 0, 0].astype(int)
    # Twice as large as the square in the middle: of its height the middle half is seen, and no edge is left in it.
    assert beside[0] < 64
    assert beside[-1] > 192
    assert abs(np.diff(beside)).max() < 16


def test_a_mask_is_white_where_anything_is_touched() -> None:
    mask = Image.new("L", (1600, 1600))
    mask.putpixel((1599, 0), 1)

    assert np.argwhere(np.array(touched(mask, (128, 128)))).tolist() == [[0, 127]]
