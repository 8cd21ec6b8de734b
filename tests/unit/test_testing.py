"""What plugin authors test with: it works as a worker does, and what is wrong is an assertion that says so."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import tenkaigen_worker.testing
from tenkaigen_worker.plugin import FinishedJob, Prompt, Refused, Style, hookimpl
from tenkaigen_worker.resources import shipped
from tenkaigen_worker.testing import LoadedPlugin, load_plugin

INK = """
import asyncio
from dataclasses import replace
from tenkaigen_worker.plugin import *

@hookimpl
def transform_prompt(prompt):
    if "knife" in prompt.asked:
        raise Refused("No knives.")
    return replace(prompt, text=prompt.text + ", ink")

@hookimpl
async def process_image(image, info):
    return image.resize((info.seed, 1))

@hookimpl
def job_finished(job):
    assert job.status == "completed"
"""


@pytest.fixture
def ink(tmp_path: Path) -> LoadedPlugin:
    file = tmp_path / "ink.py"
    file.write_text(INK)
    return load_plugin(file)


def test_the_public_names() -> None:
    assert tenkaigen_worker.testing.__all__ == ["LoadedPlugin", "load_plugin"]
    public = {name for name in dir(LoadedPlugin) if not name.startswith("_")}
    assert public == {"expand", "hooks", "job_finished", "process_image", "style", "styles", "transform_prompt"}


def test_a_prompt_goes_through_style_and_plugin(ink: LoadedPlugin) -> None:
    assert ink.hooks == ("transform_prompt", "process_image", "job_finished")
    assert ink.transform_prompt("A fox").text == "A fox, ink"

    prompt = ink.transform_prompt("A fox", style="line_art", negative="blue")

    assert (prompt.style, prompt.asked) == ("Line Art", "A fox")
    assert prompt.text.startswith("A fox, black ink line art")
    assert prompt.text.endswith(", ink")
    assert prompt.negative.startswith("blue, color")


def test_a_refusal_is_what_the_plugin_raised(ink: LoadedPlugin) -> None:
    with pytest.raises(Refused, match="No knives"):
        ink.transform_prompt("A knife")


def test_a_picture_and_an_outcome(ink: LoadedPlugin) -> None:
    assert ink.process_image(Image.new("RGB", (16, 16)), seed=5).size == (5, 1)
    ink.job_finished(FinishedJob("1", None, "completed", None))


def test_what_a_worker_would_only_log_fails_the_test(ink: LoadedPlugin) -> None:
    with pytest.raises(AssertionError, match=r"^The plugin ink\.py failed in job_finished: AssertionError"):
        ink.job_finished(FinishedJob("1", None, "failed", None))
    with pytest.raises(AssertionError, match=r"^The plugin ink\.py failed in process_image: ValueError: ") as failed:
        ink.process_image(Image.new("RGB", (16, 16)), seed=-1)
    assert isinstance(failed.value.__cause__, ValueError)


def test_a_hook_that_takes_too_long(tmp_path: Path) -> None:
    code = "@hookimpl\nasync def transform_prompt(prompt):\n    await asyncio.Event().wait()\n"
    file = tmp_path / "slow.py"
    file.write_text("import asyncio\nfrom tenkaigen_worker.plugin import *\n" + code)

    with pytest.raises(AssertionError, match=r"it took more than 0\.01 s"):
        load_plugin(file, hook_timeout_seconds=0.01).transform_prompt("A fox")


def test_a_broken_plugin_is_an_assertion_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("from tenkaigen_worker.plugin import *\n@hookimpl\ndef transfrom_prompt(): ...\n")
    with pytest.raises(AssertionError, match=r"broken\.py:2: there is no hook 'transfrom_prompt'; did you mean"):
        load_plugin(file)
    with pytest.raises(AssertionError, match="there is no such file or folder"):
        load_plugin(tmp_path / "nowhere.py")


def test_styles_and_templates_of_a_file_or_folder(tmp_path: Path) -> None:
    (tmp_path / "neon.yaml").write_text('name: Neon\nprompt: "{prompt}, neon"')
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "cup.yaml").write_text('name: Cup\nprompt: "A {prompt} cup"')
    assert load_plugin(str(tmp_path / "neon.yaml")).transform_prompt("A fox", style="Neon").text == "A fox, neon"

    plugin = load_plugin(tmp_path)

    assert plugin.style("neon") in plugin.styles
    assert plugin.expand("cup", prompt="fox").prompt == "A fox cup"
    with pytest.raises(AssertionError, match="there is no style 'Nein'; did you mean Neon"):
        plugin.style("Nein")
    with pytest.raises(AssertionError, match="has no variable 'color'"):
        plugin.expand("cup", prompt="fox", color="red")


def test_a_module_or_an_object_with_hooks() -> None:
    class Neon:
        @hookimpl
        def register_styles(self) -> list[Style]:
            return [Style("Neon")]

        @hookimpl
        def transform_prompt(self, prompt: Prompt) -> Prompt:
            return Prompt("neon", prompt.negative, prompt.style, prompt.asked)

    plugin = load_plugin(Neon())
    assert plugin.style("neon").origin == __file__
    assert plugin.transform_prompt("A fox").text == "neon"

    module = ModuleType("ink")
    exec(INK, module.__dict__)
    assert load_plugin(module).transform_prompt("A fox").text == "A fox, ink"


def test_the_worked_example() -> None:
    plugin = load_plugin(shipped("plugins") / "tidy_prompt.py")

    assert plugin.transform_prompt("  a   fox ").text == "a fox"
    with pytest.raises(Refused):
        plugin.transform_prompt("...")
