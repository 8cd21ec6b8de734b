"""Style files: what they may say, and what is said about those that do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tenkaigen_worker import recipe
from tenkaigen_worker.errors import InputError
from tenkaigen_worker.names import find, fold, mentioned, unknown
from tenkaigen_worker.plugin import LoraUse, Style, bounds
from tenkaigen_worker.plugin.catalog import Catalog
from tenkaigen_worker.plugin.discovery import STYLES, yaml_files
from tenkaigen_worker.plugin.problems import BrokenPlugin
from tenkaigen_worker.plugin.style_files import StyleFiles, read_style
from tenkaigen_worker.request import Names, read_request
from tenkaigen_worker.resources import shipped

NINE = {
    "Standard",
    "Anime",
    "Line Art",
    "Flat Logo",
    "Watercolor",
    "Abstract",
    "Minimalist",
    "Vintage",
    "Grunge",
}

GOOD = 'name: Neon\nprompt: "{prompt}, neon sign"\n'


def write(file: Path, text: str) -> Path:
    """Write a file so that it looks changed even within one tick of the file system's clock."""
    file.write_text(text, encoding="utf-8")
    stamp = file.stat().st_mtime_ns + 1_000_000
    os.utime(file, ns=(stamp, stamp))
    return file


def test_a_style_file_says_all_of_a_style(tmp_path: Path) -> None:
    file = write(
        tmp_path / "neon.yaml",
        'name: Neon\ndescription: Glowing tubes\nprompt: "{prompt}, neon sign"\n'
        'negative_prompt: "daylight"\nreplaces: true\n',
    )

    style = read_style(file)

    assert style == Style("Neon", "Glowing tubes", "{prompt}, neon sign", "daylight", replaces=True)
    assert style.origin == str(file)


def test_a_style_file_says_how_its_jobs_are_made(tmp_path: Path) -> None:
    file = write(
        tmp_path / "neon.yaml",
        "name: Neon\nmode: lightning\nsteps: 8\nguidance_scale: 1.5\nwidth: 768\nheight: 1024\n"
        "loras: [Ink, {name: Glow, weight: 0.8}]\n",
    )

    assert read_style(file) == Style(
        "Neon",
        mode="lightning",
        steps=8,
        guidance_scale=1.5,
        width=768,
        height=1024,
        loras=(LoraUse("Ink"), LoraUse("Glow", 0.8)),
    )


def test_only_the_name_is_needed(tmp_path: Path) -> None:
    assert read_style(write(tmp_path / "plain.yaml", "name: Plain\n")) == Style("Plain", prompt="{prompt}")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "bom.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: Plain\n")

    assert read_style(file).name == "Plain"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", None, "name is missing: a style needs at least a name, as in 'name: Anime'"),
        ("- name: Neon\n", 1, "keys with values, such as `key: value`"),
        ("just words", 1, "keys with values, such as `key: value`"),
        ("description: x\n", None, "name is missing"),
        ("name: Neon\npromt: x\n", 2, "unknown key 'promt'; did you mean prompt? The keys are: name, description"),
        ("name: Neon\n1: x\n", 2, "unknown key '1'"),
        ("name: 1990\n", 1, "name must be text: put it in quotes"),
        ("name: Neon\nprompt: {prompt}\n", 2, "prompt must be text: put it in quotes"),
        ("name: Neon\nprompt: {prompt}, neon\n", 2, "not valid YAML"),
        ("name: Neon\nprompt: {prompt}, neon\n", 2, "needs quotes"),
        ("name: Neon\ndescription: Retro: new\n", 2, "needs quotes"),
        ('name: Neon\ndescription: "a\\0b"\n', 2, "contains a NUL character"),
        ("name: Neon\nreplaces: 'yes'\n", 2, "replaces must be true or false, not 'yes'"),
        ("name: Neon\n\nprompt: neon sign\n", 3, "the template needs {prompt}"),
        ('name: Neon\nprompt: "{prompt}, {color} sign"\n', 2, "'{color}' means nothing here"),
        ('name: Neon\nprompt: "{prompt}, {Prompt}"\n', 2, "'{Prompt}' means nothing here"),
        ('name: Neon\nprompt: "{prompt}, {open"\n', 2, "'{open' means nothing here"),
        ('name: Neon\nprompt: "{prompt}}"\n', 2, "'}' means nothing here"),
        ('name: Neon\nnegative_prompt: "not {prompt}"\n', 2, "'{prompt}' means nothing here"),
        ("name: '--'\n", 1, "needs a letter or a digit"),
        ('name: "a\\nb"\n', 1, "one line of at most 64 characters"),
        (f"name: {'x' * 65}\n", 1, "one line of at most 64 characters"),
        ("name: Neon\nname: Tube\n", 2, "name: given twice; it is on line 1 already"),
        ("name: 2026-99-99\n", 1, "name: cannot be read; if it is text, put it in quotes"),
        ("name: a\n---\nname: b\n", 2, "not valid YAML"),
        ("? [a]\n: b\n", 1, "a key must be a plain word"),
        ("name: !!python/object/apply:os.system [ls]\n", 1, "name must be text"),
        ("name: !!python/name:os.system x\n", 1, "name: cannot be read"),
        ("name: &a [x]\nprompt: [*a, *a]\n", 2, "aliases (*name) are not used here"),
        ("[" * 5000, 1, "nested too deeply"),
        ("name: AUTO\n", 1, "'AUTO' is taken: a job with 'style: auto' gets the style that its prompt names"),
        ("name: Neon\nsteps: 101\n", 2, "steps: must be a whole number from 1 to 100, not 101"),
        ("name: Neon\nsteps: 4.5\n", 2, "steps must be a whole number"),
        ("name: Neon\nsteps: true\n", 2, "steps must be a whole number"),
        ("name: Neon\nguidance_scale: 0.5\n", 2, "guidance_scale: must be a number from 1 to 20, not 0.5"),
        ("name: Neon\nguidance_scale: .nan\n", 2, "guidance_scale must be a finite number"),
        ("name: Neon\nwidth: 1000\n", 2, "width: must be a multiple of 16 from 64 to 4096, not 1000"),
        ("name: Neon\nwidth: 4096\nheight: 2048\n", 3, "4096 x 2048 is 8388608 pixels"),
        ("name: Neon\nmode: 4\n", 2, "mode must be text: put it in quotes"),
        ("name: Neon\nloras: Ink\n", 2, "loras must be a list, such as [a, b]"),
        ("name: Neon\nloras:\n- Ink\n- 5\n", 4, "loras.1: must be a name, such as Ink, or a name with a weight"),
        ("name: Neon\nloras: [{name: Ink, wieght: 1}]\n", 2, "loras.0: must be a name, such as Ink"),
        ("name: Neon\nloras: [{name: Ink, weight: yes}]\n", 2, "loras.0: must be a name, such as Ink"),
        ("name: Neon\nloras: [{weight: 1}]\n", 2, "loras.0: must be a name, such as Ink"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_wrong_file_says_where_and_what_would_be_right(
    tmp_path: Path, text: str, line: int | None, says: str
) -> None:
    file = write(tmp_path / "neon.yaml", text)

    with pytest.raises(BrokenPlugin) as broken:
        read_style(file)

    (problem,) = broken.value.problems
    assert says in problem.message
    assert (problem.file, problem.line) == (str(file), line)
    assert "\n" not in str(problem)


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "neon.yaml", "nam: Neon\nprompt: 5\n")

    with pytest.raises(BrokenPlugin) as broken:
        read_style(file)

    said = str(broken.value)
    assert f"{file}:1: unknown key 'nam'; did you mean name?" in said
    assert f"{file}:2: prompt must be text" in said
    assert "name is missing" in said


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "neon.yaml"
    file.write_bytes(b"name: \xff\xfe\n")

    with pytest.raises(BrokenPlugin, match="1: byte 0xff is not UTF-8"):
        read_style(file)


def test_a_dangling_link(tmp_path: Path) -> None:
    file = tmp_path / "neon.yaml"
    file.symlink_to(tmp_path / "nowhere")

    catalog = StyleFiles(lambda: yaml_files([tmp_path], STYLES))

    assert "no such file" in catalog.problems[0].message


def test_a_style_made_in_python_keeps_the_same_rules() -> None:
    with pytest.raises(ValueError, match=r"the template needs \{prompt\}"):
        Style("Neon", prompt="neon sign")
    with pytest.raises(ValueError, match="needs a letter"):
        Style("")
    with pytest.raises(ValueError, match="from 1 to 100"):
        Style("Neon", steps=0)
    with pytest.raises(ValueError, match="from 1 to 20"):
        Style("Neon", guidance_scale=21)
    with pytest.raises(ValueError, match="multiple of 16"):
        Style("Neon", height=100)
    with pytest.raises(ValueError, match="pixels"):
        Style("Neon", width=4096, height=4096)


def test_the_bounds_of_styles_are_those_of_jobs() -> None:
    bounds_of_pictures = (recipe.MIN_SIDE, recipe.MAX_SIDE, recipe.SIDE_STEP, recipe.MAX_PIXELS)
    assert bounds_of_pictures == (bounds.MIN_SIDE, bounds.MAX_SIDE, bounds.SIDE_STEP, bounds.MAX_PIXELS)
    with pytest.raises(InputError, match=f"steps: must be a whole number from 1 to {bounds.MAX_STEPS},"):
        read_request({"prompt": "a fox", "steps": bounds.MAX_STEPS + 1}, Names([], []))
    with pytest.raises(InputError, match=f"guidance_scale: must be a number from 1 to {bounds.MAX_GUIDANCE_SCALE:g},"):
        read_request({"prompt": "a fox", "guidance_scale": bounds.MAX_GUIDANCE_SCALE + 1}, Names([], []))


def test_nothing_is_read_again_until_it_changes(tmp_path: Path) -> None:
    read: list[Path] = []
    file = write(tmp_path / "neon.yaml", GOOD)
    catalog = Catalog(lambda: yaml_files([file], STYLES), lambda file: read.append(file) or read_style(file))

    assert catalog.refresh() is False
    assert len(read) == 1

    write(file, GOOD.replace("sign", "tube"))
    assert catalog.refresh() is True
    assert len(read) == 2
    assert catalog.items[0].prompt == "{prompt}, neon tube"


def test_a_broken_edit_keeps_the_last_good_version_until_it_is_mended(tmp_path: Path) -> None:
    file = write(tmp_path / "neon.yaml", GOOD)
    catalog = StyleFiles(lambda: yaml_files([file], STYLES))

    write(file, "name: [")
    assert catalog.refresh() is True
    assert [style.name for style in catalog.register_styles()] == ["Neon"]
    assert len(catalog.problems) == 1

    write(file, GOOD.replace("Neon", "Neon Two"))
    assert catalog.refresh() is True
    assert [style.name for style in catalog.register_styles()] == ["Neon Two"]
    assert catalog.problems == ()


def test_files_come_and_go(tmp_path: Path) -> None:
    catalog = StyleFiles(lambda: yaml_files([tmp_path], STYLES))
    assert catalog.register_styles() == []

    file = write(tmp_path / "neon.yaml", GOOD)
    assert catalog.refresh() is True
    assert len(catalog.register_styles()) == 1

    file.unlink()
    assert catalog.refresh() is True
    assert catalog.register_styles() == []


def test_the_nine_styles_ship() -> None:
    files = sorted((shipped("plugins") / "styles").glob("*.yaml"))

    styles = {style.name: style for style in map(read_style, files)}

    assert styles.keys() == NINE
    assert styles["Standard"].prompt == "{prompt}"
    assert all(style.description and style.negative_prompt for style in styles.values())
    assert len({style.prompt for style in styles.values()}) == 9


@pytest.mark.parametrize("name", ["Line Art", "line_art", "LINE-ART", " line  art ", "lineart", "Line_Art"])
def test_names_fold(name: str) -> None:
    assert find(name, ["Standard", "Line Art"]) == "Line Art"


def test_names_that_only_look_alike_do_not_fold() -> None:
    assert fold("Line Art 2") != fold("Line Art")
    assert find("Line Arts", ["Line Art"]) is None


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    assert unknown("style", "Anmie", ["Standard", "Anime"]) == (
        "there is no style 'Anmie'; did you mean Anime? The styles are: Standard, Anime"
    )
    assert unknown("mode", "zzz", ["quality"]) == "there is no mode 'zzz'. The modes are: quality"
    assert len(unknown("style", "x" * 100_000, ["Standard"])) < 200


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a fox as Line Art", "Line Art"),
        ("a line-art fox", "Line Art"),
        ("LINE_ART, a fox", "Line Art"),
        ("lineart fox", "Line Art"),
        ("(watercolor)", "Watercolor"),
        ("Art of a fox", "Art"),
        ("art, then line  art", "Line Art"),
        ("an anime fox in watercolor", "Watercolor"),
        ("neon or ANIME", "Anime"),
        ("anime or manga", "Anime"),
        ("manga or anime", "Manga"),
        ("outline art", "Art"),
        ("line arts", None),
        ("animeted", None),
        ("anime2", None),
        ("2anime", None),
        ("\u00e9anime", None),
        ("line, art", "Art"),
        ("rock'n'roll", "Rock'n'Roll"),
        ("", None),
        ("- _ -", None),
    ],
)
def test_names_are_found_in_a_text_as_whole_words(text: str, found: str | None) -> None:
    names = ["Art", "Line Art", "Watercolor", "Anime", "Manga", "Rock'n'Roll"]
    assert mentioned(text, names) == found
