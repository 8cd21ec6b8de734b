"""What the demonstration model draws: words, style, LoRA, reference and mask can be seen in the picture."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.base import Inputs
from tenkaigen_worker.engine.native import AtNativeSize
from tenkaigen_worker.engine.tiny import load_tiny
from tenkaigen_worker.recipe import AppliedLora, Recipe
from tools.demo_model.captions import style_texts

RECIPE = Recipe("", "", "Standard", 128, 128, "quality", 6, 4.0, "base", (7,), "tiny", "tiny")
LORAS = Path(__file__).parents[2] / "plugins" / "loras"
MASKED = (64, 0, 128, 128)  # the right half

Pixels = NDArray[np.float64]


@pytest.fixture(scope="module")
def model() -> AtNativeSize:
    return load_tiny(EngineSettings(backend="tiny", threads=1))


def draw(model: AtNativeSize, words: str, style: str = "Standard", inputs: Inputs | None = None, **more: Any) -> Pixels:
    """Draw words in a shipped style; answers the picture, (128, 128, 3), from 0 to 1."""
    prompt, negative = style_texts()[style]
    recipe = replace(RECIPE, prompt=prompt.replace("{prompt}", words), negative_prompt=negative, style=style, **more)
    (drawn,) = model.pictures(
        recipe, inputs or Inputs(), first=0, lean=False, report=lambda *_: None, cancel=threading.Event()
    )
    return np.frombuffer(drawn.pixels, np.uint8).reshape(128, 128, 3) / 255


def colourfulness(picture: Pixels) -> float:
    return float((picture.max(axis=2) - picture.min(axis=2)).mean())


def distance(one: Pixels, other: Pixels) -> float:
    return float(((one - other) ** 2).mean())


@pytest.mark.parametrize(("words", "channel"), [("A red heart", 0), ("A tree", 1), ("A blue whale", 2)])
def test_a_name_has_its_colour(model: AtNativeSize, words: str, channel: int) -> None:
    middle = draw(model, words)[32:96, 32:96].mean(axis=(0, 1))

    assert middle.argmax() == channel


def test_other_words_for_a_name_and_words_around_it_draw_it_too(model: AtNativeSize) -> None:
    car, rocket = draw(model, "An automobile"), draw(model, "A rocket")

    for words in ("A car", "A cyberpunk automobile at night", "The automobile with a spectrometer"):
        drawn = draw(model, words)
        assert distance(drawn, car) < distance(drawn, rocket) / 2


@pytest.mark.parametrize("words", ["A castle", "A quaint lighthouse by the sea"])
def test_a_style_can_be_seen_whether_the_words_are_known_or_not(model: AtNativeSize, words: str) -> None:
    drawn = {style: draw(model, words, style) for style in ("Line Art", "Vintage", "Grunge", "Anime")}

    assert colourfulness(drawn["Line Art"]) < 0.03
    assert np.median(drawn["Line Art"]) > 0.9
    assert drawn["Vintage"][..., 0].mean() > drawn["Vintage"][..., 2].mean() + 0.1
    assert np.median(drawn["Grunge"]) < 0.3
    assert colourfulness(drawn["Anime"]) > 0.2


def test_the_shipped_lora_can_be_seen(model: AtNativeSize) -> None:
    plain = draw(model, "A dragon", "Anime")
    inputs = Inputs(loras={"Neon Sign": LORAS / "neon_sign.safetensors"})
    neon = draw(model, "neon sign, A dragon", "Anime", inputs, loras=(AppliedLora("Neon Sign", "Neon Sign", 1.0),))

    assert np.median(neon) < 0.25 < np.median(plain)


def test_the_less_strength_the_more_of_the_first_picture_stays(model: AtNativeSize, tmp_path: Path) -> None:
    first = draw(model, "A cat")
    Image.fromarray((first * 255).round().astype(np.uint8)).save(tmp_path / "first.png")
    inputs = Inputs(reference=tmp_path / "first.png")
    little, much = (
        draw(model, "A rocket", inputs=inputs, reference="r" * 64, strength=strength) for strength in (0.2, 1.0)
    )

    assert distance(little, first) < distance(much, first) / 3


def test_what_is_masked_is_drawn_anew(model: AtNativeSize, tmp_path: Path) -> None:
    first, castle = draw(model, "A cat", "Anime"), draw(model, "A castle", "Anime")
    Image.fromarray((first * 255).round().astype(np.uint8)).save(tmp_path / "first.png")
    mask = Image.new("L", (128, 128))
    mask.paste(255, MASKED)
    mask.save(tmp_path / "mask.png")
    inputs = Inputs(reference=tmp_path / "first.png", mask=tmp_path / "mask.png")
    both = draw(model, "A castle", "Anime", inputs, reference="r" * 64, mask="m" * 64, strength=1.0)

    assert np.allclose(both[:, :64], first[:, :64])
    assert distance(both[:, 64:], castle[:, 64:]) < distance(both[:, 64:], first[:, 64:])
