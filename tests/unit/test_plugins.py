"""Plugins: how they are found, what is said of broken ones, and that none reaches further than its own hook."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from PIL import Image

from tenkaigen_worker.cli import cli
from tenkaigen_worker.config import PluginSettings
from tenkaigen_worker.errors import Code, InfrastructureError, InputError, PluginError
from tenkaigen_worker.plugin import FinishedJob, PictureInfo, Prompt, Style, hookimpl
from tenkaigen_worker.plugin import manager as manager_module
from tenkaigen_worker.plugin.calls import MOST_OVERDUE
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.resources import shipped

PROMPT = Prompt(text="a fox, ink", negative="", style="Standard", asked="a fox")
INFO = PictureInfo(index=0, seed=7, style="Standard")
JOB = FinishedJob(id="1", user_id=None, status="completed", style=None)
WORD: ContextVar[str] = ContextVar("word")
IMPORTS = "from dataclasses import replace\n\nfrom tenkaigen_worker.plugin import *\n"  # three lines


def load(*paths: Path, strict: bool = False, timeout: float = 10) -> Plugins:
    return Plugins.load(PluginSettings(paths=paths, strict=strict, hook_timeout_seconds=timeout))


def drop_in(folder: Path, name: str, code: str) -> Path:
    file = folder / name
    file.write_text(IMPORTS + code, encoding="utf-8")
    return file


def appender(word: str, marks: str = "") -> str:
    return f"@hookimpl{marks}\ndef transform_prompt(prompt):\n    return replace(prompt, text=prompt.text + '{word}')\n"


# Finding


def test_what_ships_is_always_there(tmp_path: Path) -> None:
    plugins = load(tmp_path)

    assert plugins.problems == ()
    assert plugins.style_names == (
        "Standard", "Abstract", "Anime", "Flat Logo", "Grunge", "Line Art", "Minimalist", "Vintage", "Watercolor",
    )  # fmt: skip
    assert [template.name for template in plugins.templates] == ["Mug Wrap", "Shirt Back", "Sticker"]
    assert [(p.name, p.hooks, p.offers) for p in plugins.describe()] == [
        ("styles", ("register_styles",), {"styles": 9}),
        ("templates", (), {"templates": 3}),
        ("loras", ("register_loras",), {"loras": 1}),
        ("tidy_prompt.py", ("transform_prompt",), {}),
    ]


def test_the_shipped_folder_named_again_is_not_loaded_twice(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(shipped("plugins"))

    plugins = load(shipped("plugins"), link, shipped("plugins") / "styles", shipped("plugins") / "tidy_prompt.py")

    assert plugins.problems == ()
    assert len(plugins.describe()) == 4
    assert len(plugins.styles) == 9


def test_folders_and_single_files(bare: Path) -> None:
    (bare / "styles").mkdir()
    (bare / "styles" / "a.yaml").write_text("name: In Styles")
    (bare / "templates").mkdir()
    (bare / "templates" / "a.yaml").write_text("name: In Templates\nprompt: A cup")
    (bare / "b.yml").write_text("name: At Top")
    (bare / "deeper").mkdir()
    (bare / "deeper" / "c.yaml").write_text("name: Too Deep")
    (bare / "_draft.yaml").write_text("name: [")
    (bare / ".#b.yaml").write_text("name: [")
    (bare / "notes.txt").write_text("no plugin")
    drop_in(bare, "_helper.py", "1/0")
    drop_in(bare, "hook.py", appender("!"))
    single = bare.parent / "single.yaml"
    single.write_text("name: Single")

    plugins = load(bare, single)

    assert plugins.problems == ()
    assert plugins.style_names == ("Standard", "At Top", "In Styles", "Single")
    assert [template.name for template in plugins.templates] == ["In Templates"]
    assert [plugin.name for plugin in plugins.describe()] == ["styles", "templates", "loras", "hook.py"]


@pytest.mark.parametrize("way", ["the folder itself", "a single file", "the working directory"])
def test_a_file_in_a_folder_named_templates_is_a_template(
    bare: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    folder = bare / "templates"
    folder.mkdir()
    (folder / "cup.yaml").write_text("name: Cup\nprompt: A cup")
    monkeypatch.chdir(folder)
    ways = {"the folder itself": folder, "a single file": folder / "cup.yaml", "the working directory": Path()}

    plugins = load(ways[way])

    assert plugins.problems == ()
    assert [template.name for template in plugins.templates] == ["Cup"]
    assert plugins.style_names == ("Standard",)


def test_the_default_folder_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert Plugins.load(PluginSettings()).problems == ()


def test_other_paths_must_exist_and_be_plugins(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("words")

    plugins = load(tmp_path / "nowhere", text)

    said = [str(problem) for problem in plugins.problems]
    assert said == [
        f"{tmp_path / 'nowhere'}: there is no such file or folder; plugins.paths names it",
        f"{text}: a plugin is a .py or a .yaml file, or a folder of them",
    ]
    assert [plugin.name for plugin in plugins.describe()][:2] == ["plugins.paths", "plugins.paths"]


def test_a_path_relative_to_the_working_directory(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bare.parent)
    drop_in(bare, "bad.py", "1/0\n")

    (problem,) = load(Path("drop-ins")).problems

    assert (problem.file, problem.line) == ("drop-ins/bad.py", 4)


def test_two_files_of_one_name_are_two_plugins(bare: Path) -> None:
    other = bare / "other"
    other.mkdir()
    drop_in(bare, "same.py", appender("1"))
    drop_in(other, "same.py", appender("2"))

    assert asyncio.run(load(bare, other).transform_prompt(PROMPT)).text == "a fox, ink12"


class FakeEntryPoint:
    """What importlib.metadata gives for an installed package's plugin."""

    def __init__(self, name: str, loads: Callable[[], object]) -> None:
        self.name = name
        self.value = f"{name}.plugin"
        self.dist = None
        self.load = loads


def test_installed_packages_come_between_built_ins_and_files(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("installed")
    exec(IMPORTS + appender("installed"), module.__dict__)

    def broken() -> object:
        raise SystemExit(2)

    found = [FakeEntryPoint("zeta", lambda: module), FakeEntryPoint("broken", broken)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: found if "tenkaigen" in group else [])
    drop_in(bare, "file.py", appender("+file"))

    plugins = load(bare)

    assert asyncio.run(plugins.transform_prompt(PROMPT)).text == "a fox, inkinstalled+file"
    assert [plugin.name for plugin in plugins.describe()] == [
        "styles",
        "templates",
        "loras",
        "broken",
        "zeta",
        "file.py",
    ]
    assert [str(p) for p in plugins.problems] == [
        "entry point broken of broken.plugin: raised when it was imported: SystemExit: 2"
    ]


# Broken drop-ins


@pytest.mark.parametrize(
    ("code", "line", "says"),
    [
        ("def (\n", 4, "this is not Python"),
        ("\n1 / 0\n", 5, "raised when it was imported: ZeroDivisionError"),
        ("import no_such_module\n", 4, "ModuleNotFoundError"),
        ("import sys; sys.exit('bye')\n", 4, "SystemExit: bye"),
        ("raise BaseException('deep')\n", 4, "BaseException: deep"),
        ("raise GeneratorExit\n", 4, "GeneratorExit"),
        (
            "@hookimpl\ndef transfrom_prompt(prompt): ...\n",
            4,
            "there is no hook 'transfrom_prompt'; did you mean transform_prompt? The hooks are: register_styles",
        ),
        (
            "@hookimpl\ndef transform_prompt(promt): ...\n",
            4,
            "has no argument 'promt'; did you mean prompt? It may take: prompt",
        ),
        ("@hookimpl\ndef transform_prompt(prompt, xyz=None): ...\n", 4, "has no argument 'xyz'. It may take: prompt"),
        ("@hookimpl\ndef register_styles(x): ...\n", 4, "It takes none"),
        ("@hookimpl(wrapper=True)\ndef transform_prompt(prompt): yield\n", 4, "may not be a wrapper"),
        ("@hookimpl\nasync def register_styles(): ...\n", 4, "must be a plain function"),
        ("def transform_prompt(prompt): ...\n", None, "transform_prompt is not marked: write @hookimpl above"),
        ("x = 1\n", None, "this file has no hook"),
        ("@hookimpl\ndef register_styles():\n    return [Style('A', prompt='x')]\n", 6, "the template needs {prompt}"),
        ("@hookimpl\ndef register_styles():\n    yield Style('A')\n    1 / 0\n", 7, "raised in register_styles"),
        ("@hookimpl\ndef register_styles(): return ['A']\n", None, "raised in register_styles"),
        ("@hookimpl\ndef register_styles(): return None\n", None, "raised in register_styles"),
    ],
)
def test_one_broken_drop_in_is_reported_and_stops_nothing_else(
    bare: Path, code: str, line: int | None, says: str
) -> None:
    drop_in(bare, "a_good.py", appender("1"))
    broken = drop_in(bare, "broken.py", code)
    drop_in(bare, "c_good.py", appender("2"))

    plugins = load(bare)

    (problem,) = plugins.problems
    assert says in problem.message
    assert (problem.file, problem.line) == (str(broken), line)
    assert [plugin.name for plugin in plugins.describe() if plugin.problems] == ["broken.py"]
    assert asyncio.run(plugins.transform_prompt(PROMPT)).text == "a fox, ink12"
    assert plugins.style(None).name == "Standard"


def test_a_plugin_that_failed_to_import_leaves_no_half_module(bare: Path) -> None:
    before = set(sys.modules)
    drop_in(bare, "broken.py", "1/0")
    load(bare)

    assert set(sys.modules) == before


def test_strict_stops_with_everything_that_is_wrong(bare: Path) -> None:
    drop_in(bare, "broken.py", "1/0")
    (bare / "broken.yaml").write_text("nam: x\nname: y")

    with pytest.raises(PluginError) as stopped:
        load(bare, strict=True)

    assert "broken.py:4" in str(stopped.value)
    assert "broken.yaml:1" in str(stopped.value)


def test_strict_does_not_mind_when_nothing_is_wrong(bare: Path) -> None:
    assert load(bare, strict=True).problems == ()


# Styles


@pytest.mark.parametrize("name", ["line_art", "LINE-ART", "Line Art", "lineart"])
def test_a_style_is_found_however_it_is_spelled(tmp_path: Path, name: str) -> None:
    assert load(tmp_path).style(name).name == "Line Art"


@pytest.mark.parametrize("name", [None, "", "standard"])
def test_no_style_is_standard(tmp_path: Path, name: str | None) -> None:
    assert load(tmp_path).style(name).name == "Standard"


def test_an_unknown_style_is_answered_with_the_nearest_and_all(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path).style("Anmie")

    assert error.value.problems[0].field == "style"
    assert "did you mean Anime?" in str(error.value)
    assert "Watercolor" in str(error.value)


def test_a_style_of_a_python_plugin_knows_its_file(bare: Path) -> None:
    file = drop_in(bare, "neon.py", "@hookimpl\ndef register_styles():\n    yield Style('Neon')\n")

    assert load(bare).style("neon").origin == str(file)


def test_files_are_not_looked_at_again_at_once(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = load(bare)
    (bare / "a.yaml").write_text("name: Neon")

    monkeypatch.setattr(manager_module, "LOOK_AGAIN_SECONDS", 3600)
    assert plugins.style_names == ("Standard",)
    plugins.refresh(at_once=True)
    assert plugins.style_names == ("Standard", "Neon")

    (bare / "b.yaml").write_text("name: Noir")
    monkeypatch.setattr(manager_module, "LOOK_AGAIN_SECONDS", 0)
    assert plugins.style_names == ("Standard", "Neon", "Noir")


def test_a_name_taken_twice_names_both_origins(bare: Path) -> None:
    (bare / "a.yaml").write_text("name: Neon\ndescription: first")
    (bare / "b.yaml").write_text("name: NEON\ndescription: second")

    plugins = load(bare)

    (problem,) = plugins.problems
    assert problem.file == str(bare / "b.yaml")
    assert str(bare / "a.yaml") in problem.message
    assert "replaces: true" in problem.message
    assert plugins.style("neon").description == "first"
    assert [plugin.name for plugin in plugins.describe() if plugin.problems] == ["styles"]


def test_a_name_taken_by_yaml_and_python(bare: Path) -> None:
    (bare / "a.yaml").write_text("name: Neon")
    file = drop_in(bare, "neon.py", "@hookimpl\ndef register_styles():\n    return [Style('neon')]\n")

    plugins = load(bare)

    (problem,) = plugins.problems
    assert problem.file == str(file)
    assert [plugin.name for plugin in plugins.describe() if plugin.problems] == ["neon.py"]


def test_a_style_may_replace_another_whatever_the_order(bare: Path) -> None:
    (bare / "a.yaml").write_text("name: Neon\nreplaces: true\ndescription: mine")
    (bare / "b.yaml").write_text("name: Neon\ndescription: theirs")

    plugins = load(bare)

    assert plugins.problems == ()
    assert plugins.style("Neon").description == "mine"


def test_standard_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text('name: standard\nreplaces: true\nprompt: "{prompt}, on white"')

    plugins = load(tmp_path)

    assert plugins.style(None).prompt == "{prompt}, on white"
    assert len(plugins.styles) == 9


def test_jobs_without_a_style_run_while_standard_is_broken(bare: Path) -> None:
    (bare / "standard.yaml").write_text("name: [")

    plugins = load(bare)

    assert plugins.style(None).prompt == "{prompt}"
    assert len(plugins.problems) == 1


def test_style_files_are_read_again_when_they_change(bare: Path) -> None:
    plugins = load(bare)
    file = bare / "neon.yaml"

    file.write_text("name: Neon")
    assert plugins.style_names == ("Standard", "Neon")

    file.write_text("name: Neon\nbroken")
    assert plugins.style("Neon").name == "Neon"
    assert len(plugins.problems) == 1

    file.write_text("name: Neon\ndescription: mended")
    assert plugins.style("Neon").description == "mended"
    assert plugins.problems == ()


# Hooks


def test_prompts_are_chained_in_load_order(bare: Path) -> None:
    drop_in(bare, "a.py", appender("a"))
    drop_in(bare, "b.py", "@hookimpl\ndef transform_prompt(): return None\n")
    drop_in(
        bare, "c.py", "@hookimpl\nasync def transform_prompt(prompt): return replace(prompt, text=prompt.text+'c')\n"
    )
    drop_in(bare, "d.py", appender("d"))
    drop_in(bare, "e.py", appender("last", "(trylast=True)"))
    drop_in(bare, "f.py", appender("first", "(tryfirst=True)"))

    assert asyncio.run(load(bare).transform_prompt(PROMPT)).text == "a fox, inkfirstacdlast"


async def test_a_refusal_is_final_and_its_text_is_shown(bare: Path) -> None:
    drop_in(bare, "no.py", "@hookimpl\ndef transform_prompt(prompt):\n    raise Refused('No knives, please.')\n")

    with pytest.raises(InputError) as refused:
        await load(bare).transform_prompt(PROMPT)

    assert (refused.value.code, str(refused.value)) == (Code.REFUSED, "No knives, please.")


async def test_a_refusal_without_words_names_the_plugin(bare: Path) -> None:
    drop_in(bare, "no.py", "@hookimpl\nasync def transform_prompt(prompt):\n    raise Refused\n")

    with pytest.raises(InputError, match=r"no\.py refused"):
        await load(bare).transform_prompt(PROMPT)


@pytest.mark.parametrize("how", ["def", "async def"])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ValueError('odd')", "ValueError: odd"),
        ("raise SystemExit(1)", "SystemExit: 1"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise StopIteration", "StopIteration"),
        ("raise __import__('asyncio').CancelledError", "CancelledError"),
        ("return 'words'", "answered str, not a Prompt or None"),
        ("return replace(prompt, text=None)", "must be text"),
        ("return replace(prompt, text='a\\0fox')", "contains a NUL character"),
        ("return replace(prompt, negative='\\ud800')", "half of a surrogate pair"),
    ],
)
async def test_a_failing_plugin_fails_the_attempt_with_its_name(bare: Path, how: str, body: str, says: str) -> None:
    drop_in(bare, "bad.py", f"@hookimpl\n{how} transform_prompt(prompt):\n    {body}\n")

    with pytest.raises(InfrastructureError) as failed:
        await load(bare).transform_prompt(PROMPT)

    assert failed.value.code is Code.PLUGIN_FAILED
    assert str(failed.value).startswith("The plugin bad.py failed in transform_prompt: ")
    # An async function that raises StopIteration raises RuntimeError, says Python.
    assert says in str(failed.value)
    assert str(bare) not in str(failed.value)  # users read this


HANGS = """
import threading
may_end = threading.Event()
@hookimpl
def transform_prompt(prompt):
    if prompt.asked == "hang":
        may_end.wait()
"""
HANG = replace(PROMPT, asked="hang")


async def test_a_thread_that_hangs_costs_only_its_own_job(bare: Path) -> None:
    file = drop_in(bare, "slow.py", HANGS)
    plugins = load(bare, timeout=0.01)
    with pytest.raises(InfrastructureError, match=r"took more than 0\.01 s"):
        await plugins.transform_prompt(HANG)

    plugins._caller._timeout = 20  # a busy machine may be slow at starting a thread
    assert await plugins.transform_prompt(PROMPT) == PROMPT

    imported(file).may_end.set()
    await hook_threads_end()


async def test_when_too_many_threads_hang_the_next_call_waits_for_one_to_end(bare: Path) -> None:
    file = drop_in(bare, "slow.py", HANGS)
    plugins = load(bare, timeout=0.01)
    for _ in range(MOST_OVERDUE):
        with pytest.raises(InfrastructureError, match="took more than"):
            await plugins.transform_prompt(HANG)

    with pytest.raises(InfrastructureError, match=r"4 calls that took more than 0\.01 s have still not come back"):
        await plugins.transform_prompt(PROMPT)
    assert len(hook_threads()) == MOST_OVERDUE

    plugins._caller._timeout = 20
    waiting = asyncio.create_task(plugins.transform_prompt(PROMPT))
    await asyncio.sleep(0)
    assert len(hook_threads()) == MOST_OVERDUE

    imported(file).may_end.set()
    assert await waiting == PROMPT
    await hook_threads_end()


def imported(file: Path) -> ModuleType:
    return next(module for module in sys.modules.values() if getattr(module, "__file__", None) == str(file))


def hook_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("hook-")]


async def hook_threads_end() -> None:
    for thread in hook_threads():
        assert thread.daemon
        thread.join()
    for _ in range(3):  # the result is delivered, then its callbacks run
        await asyncio.sleep(0)


async def test_plain_hooks_that_follow_each_other_share_a_thread_of_their_job(bare: Path) -> None:
    say = "import threading\n@hookimpl\ndef transform_prompt(prompt):\n    name = str(threading.get_ident())\n"
    code = say + "    return replace(prompt, text=f'{prompt.text} {name}')\n"
    for name in ("a.py", "b.py", "d.py"):
        drop_in(bare, name, code)
    drop_in(bare, "c.py", "@hookimpl\nasync def transform_prompt(prompt): return None\n")
    plugins = load(bare)

    idents = (await plugins.transform_prompt(replace(PROMPT, text=""))).text.split()

    assert idents[0] == idents[1]
    assert str(threading.get_ident()) not in idents


async def test_hooks_in_a_thread_do_not_see_each_others_context(bare: Path) -> None:
    code = (
        "from tests.unit.test_plugins import WORD\n@hookimpl\ndef transform_prompt(prompt):\n"
        "    seen = WORD.get()\n    WORD.set('dirty')\n    return replace(prompt, text=prompt.text + seen)\n"
    )
    for name in ("a.py", "b.py"):
        drop_in(bare, name, code)
    WORD.set("job")

    assert (await load(bare).transform_prompt(replace(PROMPT, text=""))).text == "jobjob"
    assert WORD.get() == "job"


async def test_each_hook_in_a_thread_has_its_own_limit_and_after_it_no_more_are_called(bare: Path) -> None:
    drop_in(bare, "a.py", appender("a"))
    file = drop_in(bare, "slow.py", HANGS)
    called = bare / "called"
    drop_in(
        bare,
        "z.py",
        f"from pathlib import Path\n@hookimpl\ndef transform_prompt(prompt): Path({str(called)!r}).touch()\n",
    )
    with pytest.raises(InfrastructureError, match=r"The plugin slow\.py failed .* took more than 0\.01 s"):
        await load(bare, timeout=0.01).transform_prompt(HANG)

    imported(file).may_end.set()
    await hook_threads_end()
    assert not called.exists()


async def test_all_are_told_of_a_finished_job_though_one_of_them_hangs(bare: Path) -> None:
    code = "import threading\nmay_end = threading.Event()\n@hookimpl\ndef job_finished(job): may_end.wait()\n"
    file = drop_in(bare, "a.py", code)
    told = bare / "told"
    drop_in(bare, "b.py", f"from pathlib import Path\n@hookimpl\ndef job_finished(job): Path({str(told)!r}).touch()\n")
    plugins = load(bare, timeout=0.05)

    (failure,) = await plugins.job_finished(JOB)

    assert "The plugin a.py failed in job_finished: it took more than 0.05 s" in failure
    assert told.exists()
    imported(file).may_end.set()
    await hook_threads_end()


async def test_an_async_hook_that_hangs_is_canceled(bare: Path) -> None:
    drop_in(
        bare,
        "slow.py",
        "import asyncio\n@hookimpl\nasync def transform_prompt(prompt):\n    await asyncio.Event().wait()\n",
    )

    with pytest.raises(InfrastructureError, match="took more than"):
        await load(bare, timeout=0.01).transform_prompt(PROMPT)

    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_canceled_job_cancels_its_hook(bare: Path) -> None:
    drop_in(
        bare,
        "slow.py",
        "import asyncio\n@hookimpl\nasync def transform_prompt(prompt):\n    await asyncio.Event().wait()\n",
    )
    job = asyncio.create_task(load(bare).transform_prompt(PROMPT))
    await asyncio.sleep(0)

    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job

    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_images_are_chained(bare: Path) -> None:
    drop_in(bare, "a.py", "@hookimpl\ndef process_image(image): return image.rotate(90, expand=True)\n")
    drop_in(bare, "b.py", "@hookimpl\ndef process_image(info):\n    assert info.seed == 7\n")
    drop_in(bare, "c.py", "@hookimpl\nasync def process_image(image, info): return image.convert('L')\n")

    image = await load(bare).process_image(Image.new("RGB", (32, 16)), INFO)

    assert (image.size, image.mode) == ((16, 32), "L")


async def test_an_answer_that_is_no_image(bare: Path) -> None:
    drop_in(bare, "a.py", "@hookimpl\ndef process_image(image): return b'png'\n")

    with pytest.raises(InfrastructureError, match="answered bytes, not a PIL image or None"):
        await load(bare).process_image(Image.new("RGB", (16, 16)), INFO)


async def test_without_plugins_an_image_passes_untouched_and_without_a_thread(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = load(bare)
    monkeypatch.setattr(threading, "Thread", None)
    image = Image.new("RGB", (16, 16))

    assert await plugins.process_image(image, INFO) is image


async def test_all_are_told_of_a_finished_job_whatever_one_of_them_does(
    bare: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = bare / "told"
    drop_in(bare, "a.py", "@hookimpl\ndef job_finished(job): raise SystemExit\n")
    drop_in(bare, "b.py", "@hookimpl\ndef job_finished(job): raise Refused('too late')\n")
    drop_in(
        bare,
        "c.py",
        f"from pathlib import Path\n@hookimpl\ndef job_finished(job): Path({str(told)!r}).write_text(job.status)\n",
    )

    await load(bare).job_finished(JOB)

    assert told.read_text() == "completed"
    assert "The plugin a.py failed in job_finished: SystemExit" in caplog.text
    assert "The plugin b.py failed in job_finished: Refused: too late" in caplog.text
    assert len(caplog.records) == 2


# The shipped drop-in


@pytest.mark.parametrize(
    ("text", "tidy"),
    [
        ("  a   fox \n\t on\r\n ice ", "a fox on ice"),
        ("a\u200bf\ufeffo\x07x\u202e", "afox"),
        ("a\u00a0fox\u3000runs", "a fox runs"),
        ("\u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc\u200c\u062e\u0648"),  # Persian
        ("family 👨\u200d👩\u200d👧", "family 👨\u200d👩\u200d👧"),
    ],
)
async def test_prompts_are_tidied(tmp_path: Path, text: str, tidy: str) -> None:
    prompt = Prompt(text=text, negative=text, style="Standard", asked=text)

    assert await load(tmp_path).transform_prompt(prompt) == Prompt(tidy, tidy, "Standard", asked=text)


@pytest.mark.parametrize("asked", ["...", "\u200b", " ?! ", "🔥"])
async def test_a_prompt_that_says_nothing_is_refused(tmp_path: Path, asked: str) -> None:
    prompt = Prompt(text=f"{asked}, anime art", negative="", style="Anime", asked=asked)

    with pytest.raises(InputError, match="no letter or digit") as refused:
        await load(tmp_path).transform_prompt(prompt)
    assert refused.value.code is Code.REFUSED


# What authors import


def test_what_authors_need_is_in_one_place() -> None:
    import tenkaigen_worker.plugin

    assert sorted(tenkaigen_worker.plugin.__all__) == [
        "FinishedJob", "Lora", "LoraUse", "PictureInfo", "Prompt", "Refused", "Style", "hookimpl",
    ]  # fmt: skip
    assert Style("A").prompt == "{prompt}"
    assert callable(hookimpl)


# The command line


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Call ``tenkaigen`` in an empty folder, with drop-ins from ``tmp_path / 'mine'``."""
    for name in [name for name in os.environ if name.startswith("TENKAIGEN_")]:
        monkeypatch.delenv(name)
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENKAIGEN_PLUGINS__PATHS", json.dumps([str(tmp_path / "mine")]))

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, arguments)
        return result.exit_code, result.output

    return run


def test_the_commands_show_what_is_loaded(run: Callable[..., tuple[int, str]]) -> None:
    code, text = run("plugins")
    assert (code, "tidy_prompt.py" in text, "Problems" in text) == (0, True, False)

    code, text = run("styles")
    assert (code, "Watercolor" in text) == (0, True)

    code, text = run("styles", "--json")
    assert code == 0
    assert json.loads(text)[0]["name"] == "Standard"


def test_the_commands_show_what_is_wrong(
    run: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENKAIGEN_PLUGINS__STRICT", "true")
    (tmp_path / "mine" / "neon.yaml").write_text("nam: [Neon]\nname: x")

    code, text = run("plugins")
    assert code == 1
    assert f"{tmp_path}/mine/neon.yaml:1: unknown key 'nam'; did you mean name?" in text

    code, text = run("plugins", "--json")
    assert code == 1
    assert json.loads(text)[0]["problems"][0]["line"] == 1

    code, text = run("styles")
    assert code == 0
    assert "'tenkaigen plugins' says what" in text
