"""The command line's own words: commands that do not exist, options that several share, and what is printed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tenkaigen_worker.cli import cli
from tenkaigen_worker.engine.host import EngineProcess
from tenkaigen_worker.errors import InputError
from tenkaigen_worker.images import encode_png
from tenkaigen_worker.recipe import Recipe

RECIPE = Recipe(
    prompt="A fox",
    negative_prompt="",
    style="Standard",
    width=64,
    height=32,
    mode="quality",
    steps=8,
    guidance_scale=1.0,
    scheduler="base",
    seeds=(1,),
    backend="tiny",
    model="tiny",
    demo=True,
)

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize(("typed", "meant"), [("wroker", "worker"), ("stat", "stats"), ("style", "styles")])
def test_a_mistyped_command_is_answered_with_the_nearest(run: Run, typed: str, meant: str) -> None:
    result = run(typed)
    assert result.exit_code == 2
    assert f"No such command '{typed}'. Did you mean {meant}?" in result.output


def test_a_command_like_no_other_is_only_refused(run: Run) -> None:
    result = run("frobnicate")
    assert result.exit_code == 2
    assert "frobnicate" in result.output
    assert "Did you mean" not in result.output


def test_submit_and_generate_ask_with_the_same_words() -> None:
    def options(name: str) -> set[str]:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        return {spelling for parameter in command.params for spelling in parameter.opts if spelling.startswith("--")}

    assert options("submit") - options("generate") == {"--file", "--wait"}
    assert options("generate") <= options("submit")
    assert {"--mode", "--guidance-scale", "--negative"} <= options("generate")


def test_generate_reads_the_request_before_the_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(_: EngineProcess) -> None:
        pytest.fail("the model was loaded for a request that cannot be")

    monkeypatch.setattr(EngineProcess, "start", start)
    result = run("generate", "A fox", "--width", "65", "--mode", "warp", "--guidance-scale", "40")
    assert isinstance(result.exception, InputError)
    assert [problem.field for problem in result.exception.problems] == ["mode", "width", "guidance_scale"]


def test_problems_of_a_plugin_stand_in_the_order_of_its_lines(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "bad.yaml").write_text("name: Bad\nprompt: no braces\nnam: x\ndescription: [1]\n")
    lines = [line for line in run("plugins").stdout.splitlines() if "bad.yaml:" in line]
    numbers = [int(line.split("bad.yaml:")[1].partition(":")[0]) for line in lines]
    assert len(numbers) > 1
    assert numbers == sorted(numbers)


def test_config_says_where_up_differs(run: Run, tmp_path: Path) -> None:
    words = "tenkaigen up takes engine.backend: tiny"
    assert words in run("config").stderr
    (tmp_path / "worker.yaml").write_text("engine:\n  backend: auto\n")
    assert words not in run("config").stderr


def test_inspect_leaves_out_what_is_not_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(Image.new("RGB", (64, 32)), RECIPE, seed=1))
    lines = [line.split(maxsplit=1) for line in run("inspect", "a.png").stdout.splitlines()]
    assert [words[1][:29] for words in lines if words[0] == "demo"] == ["yes: drawn by a demonstration"]
    assert "revision" not in [name for name, *_ in lines]


def test_inspect_says_of_another_demonstration_only_that_it_is_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(Image.new("RGB", (64, 32)), replace(RECIPE, backend="other"), seed=1))
    assert re.search("^ *demo +yes *$", run("inspect", "a.png").stdout, re.MULTILINE)
