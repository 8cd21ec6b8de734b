"""Templates: what their files may say, and what comes of filling them in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenkaigen_worker.config import PluginSettings
from tenkaigen_worker.errors import InputError
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.plugin.problems import BrokenPlugin
from tenkaigen_worker.plugin.template_files import MAX_VALUE, Expanded, expand, read_template
from tenkaigen_worker.plugin.types import Template
from tenkaigen_worker.resources import shipped

CUP = Template(
    "Cup",
    "A cup with {prompt} in {color} on {ground}",
    negative_prompt="{color} handle",
    variables={"color": None, "ground": "white"},
)


def write(folder: Path, text: str) -> Path:
    file = folder / "cup.yaml"
    file.write_text(text, encoding="utf-8")
    return file


# Files


def test_a_template_file_says_all_of_a_template(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "name: Cup\ndescription: For cups\nvariables:\n  color:\n  ground: white\nstyle: Anime\nreplaces: true\n"
        'prompt: "A cup with {prompt} in {color} on {ground}"\nnegative_prompt: "{color} handle"\n',
    )

    template = read_template(file)

    assert template == Template(
        "Cup", CUP.prompt, "For cups", CUP.negative_prompt, CUP.variables, style="Anime", replaces=True
    )
    assert template.origin == str(file)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("name: Cup\n", None, "prompt is missing: a template needs a name and a prompt, as in 'prompt: \"A sticker of"),
        ("prompt: x\n", None, "name is missing: a template needs"),
        ("name: Cup\npromt: x\nprompt: x\n", 2, "unknown key 'promt'; did you mean prompt? The keys are: name, desc"),
        ("name: '!'\nprompt: x\n", 1, "name: a template's name needs a letter or a digit"),
        (
            'name: Cup\nvariables:\n  color: red\nprompt: "{colour}"\n',
            4,
            "{colour}' is no variable; did you mean color?",
        ),
        ('name: Cup\nprompt: "a {zzz}"\n', 2, "'{zzz}' is no variable; there is prompt"),
        ('name: Cup\nprompt: "a {} b"\n', 2, "'{}' is no variable"),
        ('name: Cup\nprompt: "a {prompt"\n', 2, "'{prompt' is no variable"),
        ('name: Cup\nprompt: "a prompt}"\n', 2, "'}' is no variable"),
        ('name: Cup\nprompt: "a {{prompt}}"\n', 2, "'{' is no variable"),
        ('name: Cup\nprompt: a\nnegative_prompt: "{color}"\n', 3, "'{color}' is no variable"),
        ("name: Cup\nvariables:\n  color: red\n  mood: x\nprompt: '{color}'\n", 4, "variables.mood: is used nowhere"),
        ("name: Cup\nvariables: {year: 1990}\nprompt: '{year}'\n", 2, "variables.year must be text: put it in quotes"),
        ("name: Cup\nvariables: [color]\nprompt: x\n", 2, "variables must be keys with values"),
        ("name: Cup\nvariables: {my color: x}\nprompt: x\n", 2, "'my color' is no name of a variable"),
        ("name: Cup\nvariables: {prompt: x}\nprompt: '{prompt}'\n", 2, "{prompt} is always the job's own prompt"),
        ("name: Cup\nprompt: {prompt}\n", 2, "prompt must be text: put it in quotes"),
        ("name: Cup\nprompt: x\nstyle: [a]\n", 3, "style must be text"),
    ],
)
def test_a_wrong_file_says_where_and_what_would_be_right(
    tmp_path: Path, text: str, line: int | None, says: str
) -> None:
    file = write(tmp_path, text)

    with pytest.raises(BrokenPlugin) as broken:
        read_template(file)

    (problem,) = broken.value.problems
    assert says in problem.message
    assert (problem.file, problem.line) == (str(file), line)


def test_a_template_made_in_python_keeps_the_same_rules() -> None:
    with pytest.raises(ValueError, match=r"'\{color\}' is no variable"):
        Template("Cup", "a {color} cup")
    with pytest.raises(ValueError, match="'color' is used nowhere"):
        Template("Cup", "a cup", variables={"color": "red"})


def test_the_shipped_templates_can_be_filled_in() -> None:
    styles = Plugins.load(PluginSettings(paths=())).style_names
    for file in (shipped("plugins") / "templates").glob("*.yaml"):
        template = read_template(file)
        expanded = expand(template, {name: "red" for name in template.variables}, prompt="a fox")
        assert "a fox" in expanded.prompt
        assert template.description
        assert template.style is None or template.style in styles


# In force


def test_templates_are_found_by_name_and_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    plugins = Plugins.load(PluginSettings(paths=(tmp_path,)))
    with pytest.raises(InputError, match=r"^template: there is no template 'big cup'\. The templates are: Mug Wrap"):
        plugins.template("big cup")

    write(folder, "name: Big Cup\nprompt: a cup")
    assert plugins.template("big_cup").prompt == "a cup"

    write(folder, "name: Big Cup\nprompt: '{a cup'")
    assert plugins.template("big_cup").prompt == "a cup"
    (problem,) = plugins.problems
    assert (problem.file, problem.line) == (str(folder / "cup.yaml"), 2)
    assert [plugin.name for plugin in plugins.describe() if plugin.problems] == ["templates"]


def test_a_name_taken_twice_names_both_origins(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    file = write(tmp_path / "templates", "name: sticker\nprompt: a cup")

    (problem,) = Plugins.load(PluginSettings(paths=(tmp_path,))).problems

    assert problem.file == str(file)
    assert "sticker.yaml already has a template 'Sticker'" in problem.message


# Filling in


def test_values_take_the_place_of_variables() -> None:
    assert expand(CUP, {"color": "red"}, prompt="a fox") == Expanded("A cup with a fox in red on white", "red handle")
    assert expand(CUP, {"color": "red", "ground": "sand"}, prompt="a fox").prompt.endswith("on sand")
    assert expand(CUP, {"color": 7, "ground": None}, prompt="a fox").prompt == "A cup with a fox in 7 on white"
    assert expand(Template("Cup", "a cup"), {}) == Expanded("a cup", "")


@pytest.mark.parametrize("value", ["{ground}", "{color}", "{prompt}", "}{", "{{x}}", r"\1 \g<0>", "%s $color"])
def test_braces_in_a_value_are_letters(value: str) -> None:
    expanded = expand(CUP, {"color": value}, prompt=value)

    assert expanded == Expanded(f"A cup with {value} in {value} on white", f"{value} handle")


def test_a_default_is_inserted_once_too() -> None:
    template = Template("Cup", "{a}{b}", variables={"a": "{b}", "b": "{a}"})

    assert expand(template, {}).prompt == "{b}{a}"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "color is missing: the template 'Cup' has no default for it"),
        ({"color": " "}, "color is missing"),
        ({"color": None}, "color is missing"),
        ({"color": ["red"]}, "color must be text, not ['red']"),
        ({"color": True}, "color must be text, not True"),
        ({"color": "x" * (MAX_VALUE + 1)}, f"color may have at most {MAX_VALUE} characters; this has {MAX_VALUE + 1}"),
        ({"color": "a\0"}, "color contains a NUL character"),
        ({"color": "\ud800"}, "color contains half of a surrogate pair"),
        ({"color": "red", "grond": "x"}, "the template 'Cup' has no variable 'grond'; did you mean ground?"),
        ({"color": "red", "zzz": "x"}, "the template 'Cup' has no variable 'zzz'; they are: color, ground"),
        ({"color": "red", "prompt": "x"}, "prompt is the job's own prompt: say it there"),
    ],
)
def test_wrong_variables_are_refused(variables: dict[str, object], says: str) -> None:
    with pytest.raises(InputError) as refused:
        expand(CUP, variables, prompt="a fox")

    (problem,) = refused.value.problems
    assert problem.field == "template_variables"
    assert says in problem.message


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as refused:
        expand(CUP, {"colour": "red", "ground": 5.5j})

    assert [problem.field for problem in refused.value.problems] == ["template_variables"] * 3 + ["prompt"]
    for said in (
        "'colour'; did you mean color?",
        "ground must be text",
        "color is missing",
        "prompt: must not be empty",
    ):
        assert said in str(refused.value)
