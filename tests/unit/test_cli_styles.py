"""``tenkaigen styles`` and ``tenkaigen templates``: lists, checks, and the sample sheet."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tenkaigen_worker.cli import cli
from tenkaigen_worker.cli.sheet import lay_out
from tenkaigen_worker.engine.host import EngineProcess
from tenkaigen_worker.errors import InputError
from tenkaigen_worker.resources import shipped

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder, with an engine that draws flat pictures."""
    for name in [name for name in os.environ if name.startswith("TENKAIGEN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TENKAIGEN_ENGINE__BACKEND", "blank")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli, arguments)


def write(name: str, text: str) -> Path:
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


# Lists


def test_the_list_of_styles_tells_all_of_them(run: Run) -> None:
    write("plugins/neon.yaml", "name: Neon\nsteps: 8\nloras: [{name: Glow, weight: 0.5}]")

    (neon,) = [style for style in json.loads(run("styles", "--json").output) if style["name"] == "Neon"]

    assert neon["steps"] == 8
    assert neon["loras"] == [{"name": "Glow", "weight": 0.5}]


def test_the_list_of_templates_has_their_variables(run: Run) -> None:
    text = run("templates").output
    assert "theme, shirt_color=black" in text
    assert "Sticker" in text

    (shirt,) = [template for template in json.loads(run("templates", "--json").output) if "Shirt" in template["name"]]
    assert shirt["variables"] == {"theme": None, "shirt_color": "black"}


def test_the_list_of_plugins_says_what_each_offers(run: Run) -> None:
    text = run("plugins").output
    assert "9 styles" in text
    assert "3 templates" in text
    assert json.loads(run("plugins", "--json").output)[0]["offers"] == {"styles": 9}


# Check


def test_right_files_are_named_with_what_they_are(run: Run) -> None:
    write("plugins/neon.yaml", 'name: Neon\nprompt: "{prompt}, neon"\nmode: quality\n')
    write("plugins/templates/cup.yaml", 'name: Cup\nprompt: "A {prompt} cup"\nstyle: neon\n')
    write("plugins/hook.py", "1 / 0")

    result = run("styles", "check", "plugins")

    assert result.output.splitlines() == [
        "plugins/neon.yaml: the style Neon is right",
        "plugins/templates/cup.yaml: the template Cup is right",
    ]
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("neon.yaml", "nam: Neon\nname: x", "neon.yaml:1: unknown key 'nam'; did you mean name?"),
        ("templates/cup.yaml", "name: Cup\nprompt: '{x}'", "templates/cup.yaml:2: prompt: '{x}' is no variable"),
        ("anime.yaml", "name: anime", "anime.yaml: {shipped}/styles/anime.yaml already has a style 'Anime'"),
        ("neon.yaml", "name: Neon\nmode: warp", "neon.yaml:2: there is no mode 'warp'. The modes are: quality"),
        ("templates/cup.yaml", "name: Cup\nprompt: x\nstyle: Anmie", "cup.yaml:3: there is no style 'Anmie'; did you"),
        ("hook.py", "", "hook.py: this is Python, and only YAML is checked here; see: tenkaigen plugins"),
        ("notes.txt", "", "notes.txt: a plugin is a .py or a .yaml file, or a folder of them"),
    ],
)
def test_wrong_files_are_problems_with_a_line(run: Run, name: str, text: str, says: str) -> None:
    write(name, text)

    result = run("styles", "check", name)

    assert says.replace("{shipped}", str(shipped("plugins"))) in result.output
    assert len(result.output.splitlines()) == 1
    assert result.exit_code == 1


def test_a_file_that_is_not_there(run: Run) -> None:
    result = run("styles", "check", "nowhere.yaml")

    assert "'nowhere.yaml' does not exist" in result.output
    assert result.exit_code == 2
    assert run("styles", "check", "plugins").exit_code == 2


def test_a_folder_without_any(run: Run) -> None:
    write("plugins/deeper/neon.yaml", "name: Neon")

    result = run("styles", "check", "plugins")

    assert "there is no style and no template in it" in result.output
    assert result.exit_code == 1


def test_what_ships_is_right(run: Run) -> None:
    result = run("styles", "check", str(shipped("plugins")))

    assert result.exit_code == 0
    assert len(result.output.splitlines()) == 12


# Render


def test_a_sheet_of_some_styles(run: Run) -> None:
    result = run(
        "styles", "render", "A fox", "--style", "anime", "--style", "LINE_ART", "--columns", "1", "--size", "64",
        "--steps", "1", "-o", "sheet.png",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert "sheet.png" in result.output
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (72, 4 + 2 * (64 + 14 + 4))
        assert "trainedAlgorithmicMedia" in sheet.info["XML:com.adobe.xmp"]


def test_the_request_is_read_before_the_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineProcess, "start", None)

    result = run("styles", "render", "A fox", "--size", "65", "--style", "Anmie")

    assert isinstance(result.exception, InputError)
    assert {problem.field for problem in result.exception.problems} == {"style", "width", "height"}
    result = run("styles", "render", "A fox", "-o", "nowhere/sheet.png")
    assert "nowhere/sheet.png cannot be written" in result.output


def test_pictures_are_laid_out_row_by_row_with_their_names() -> None:
    colors = ["red", "green", "blue"]
    pictures = [(color, Image.new("RGB", (100, 50), color)) for color in colors]

    sheet = lay_out(pictures, side=100, columns=2)

    assert sheet.size == (6 + 2 * 106, 6 + 2 * (100 + 14 + 6))
    assert sheet.getpixel((56, 56)) == (255, 0, 0)
    assert sheet.getpixel((162, 56)) == (0, 128, 0)
    assert sheet.getpixel((56, 176)) == (0, 0, 255)
    assert sheet.getpixel((56, 10)) == (255, 255, 255)
    for left, top in [(6, 106), (112, 106), (6, 226)]:
        caption = sheet.crop((left, top, left + 100, top + 14))
        assert caption.convert("L").getextrema()[0] < 100
    assert sheet.crop((112, 226, 212, 240)).convert("L").getextrema() == (255, 255)


def test_a_long_name_stays_below_its_picture() -> None:
    sheet = lay_out([("M" * 64, Image.new("RGB", (512, 512)))], side=512, columns=9)

    assert sheet.width == 576
    caption = sheet.crop((0, 544, 576, 608)).convert("L")
    assert caption.getextrema()[0] < 100
    assert caption.crop((0, 0, 24, 64)).getextrema() == (255, 255)
