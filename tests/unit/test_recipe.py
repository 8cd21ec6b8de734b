"""Resolving a request: nothing left to choose."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tenkaigen_worker.config_generation import GenerationSettings, ModeSettings
from tenkaigen_worker.errors import InputError
from tenkaigen_worker.plugin import Prompt, Style
from tenkaigen_worker.recipe import Model, Recipe, apply_style, resolve
from tenkaigen_worker.request import Names, Request, read_request

MODEL = Model("tiny", "tiny-qwen", "r1", default_width=256, default_height=320)
PROMPT = Prompt(text="a fox, ink", negative="photo", style="Line Art", asked="a fox")
STYLE = Style("Line Art")
MODES = {
    "quality": ModeSettings(steps=50, guidance_scale=4.0),
    "lightning": ModeSettings(steps=4, guidance_scale=1.0),
}


def ask(**fields: Any) -> Request:
    return read_request({"prompt": "a fox", **fields}, Names(["Line Art"], MODES))


def settle(request: Request, model: Model = MODEL, seed: int = 7, **settings: Any) -> Recipe:
    generation = GenerationSettings(modes=MODES, **settings)
    return resolve(request, prompt=PROMPT, style=STYLE, generation=generation, model=model, seed=seed)


def test_what_is_not_asked_for_comes_from_mode_and_model() -> None:
    assert settle(ask()) == Recipe(
        prompt="a fox, ink",
        negative_prompt="photo",
        style="Line Art",
        width=256,
        height=320,
        mode="quality",
        steps=50,
        guidance_scale=4.0,
        scheduler="base",
        seeds=(7,),
        backend="tiny",
        model="tiny-qwen",
        revision="r1",
        demo=False,
        version=1,
    )


def test_the_settings_sizes_come_before_the_models() -> None:
    recipe = settle(ask(), default_width=512, default_height=640)

    assert (recipe.width, recipe.height) == (512, 640)


def test_what_is_asked_for_comes_first() -> None:
    recipe = settle(
        ask(mode="lightning", width=64, height=128, steps=9, guidance_scale=2, seed=0),
        default_width=512,
        default_height=640,
    )

    assert (recipe.width, recipe.height, recipe.mode) == (64, 128, "lightning")
    assert (recipe.steps, recipe.guidance_scale, recipe.seeds) == (9, 2.0, (0,))


def test_a_mode_brings_steps_and_guidance() -> None:
    recipe = settle(ask(mode="lightning"))

    assert (recipe.steps, recipe.guidance_scale) == (4, 1.0)


def test_the_default_mode_is_the_configured_one() -> None:
    assert settle(ask(), default_mode="lightning").mode == "lightning"


def test_a_small_model_has_steps_of_its_own() -> None:
    small = Model("tiny", "tiny-qwen", None, 256, 256, demo=True, default_steps=8)

    assert settle(ask(), small).steps == 8
    assert settle(ask(steps=3), small).steps == 3
    assert settle(ask(), small).demo


def test_seeds_count_up_and_begin_again_at_the_end() -> None:
    assert settle(ask(seed=2**32 - 2, count=4)).seeds == (4294967294, 4294967295, 0, 1)
    assert settle(ask(count=2), seed=100).seeds == (100, 101)


@pytest.mark.parametrize(
    ("fields", "field", "other"), [({"width": 4096}, "width", "height"), ({"height": 4096}, "height", "width")]
)
def test_one_side_alone_may_be_too_long(fields: dict[str, int], field: str, other: str) -> None:
    with pytest.raises(InputError) as error:
        settle(ask(**fields), default_width=1328, default_height=1328)

    (problem,) = error.value.problems
    assert problem.field == field
    assert problem.message.endswith(f"ask for a smaller {field}, or for a {other} too")


def test_resolving_twice_gives_the_same() -> None:
    assert settle(ask(count=3)) == settle(ask(count=3))


def test_a_style_frames_the_users_words() -> None:
    style = Style("Neon", prompt="neon sign of {prompt}, {prompt} glows", negative_prompt="daylight")

    assert apply_style(style, "a fox", "rain") == Prompt(
        "neon sign of a fox, a fox glows", "rain, daylight", "Neon", asked="a fox"
    )


@pytest.mark.parametrize("words", ["{prompt}", "{0} {x!r} {{", "100% \\1 \\g<0>"])
def test_what_users_write_is_never_a_template(words: str) -> None:
    assert apply_style(Style("Neon", prompt="{prompt}, neon"), words, None).text == f"{words}, neon"


@pytest.mark.parametrize(
    ("own", "styles", "joined"), [(None, "", ""), ("a", "", "a"), (None, "b", "b"), ("", "b", "b"), ("a", "b", "a, b")]
)
def test_negative_prompts_are_joined(own: str | None, styles: str, joined: str) -> None:
    assert apply_style(Style("Neon", negative_prompt=styles), "x", own).negative == joined


def test_a_recipe_of_before_there_were_edits_can_be_read() -> None:
    recipe = settle(ask())
    old = {name: value for name, value in recipe.to_json().items() if name != "references"}
    assert Recipe.from_json(old) == recipe


def test_a_recipe_goes_through_json_unchanged() -> None:
    recipe = settle(ask(count=3))

    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("change", [{"version": 2}, {"seeds": 5}, {"extra": 1}, {"version": None}])
def test_what_is_no_recipe_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a recipe of version 1"):
        Recipe.from_json({**settle(ask()).to_json(), **change})


def test_a_recipe_that_lacks_something_is_refused() -> None:
    data = settle(ask()).to_json()
    del data["prompt"]

    with pytest.raises(ValueError, match="prompt"):
        Recipe.from_json(data)


def test_the_engine_imports_recipes_without_pydantic() -> None:
    code = "import sys, tenkaigen_worker.recipe; sys.exit('pydantic' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
