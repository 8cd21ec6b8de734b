"""The manual for plugin authors is held to the code: every example works, and what exists is in it."""

from __future__ import annotations

import inspect
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from tenkaigen_worker.cli import cli
from tenkaigen_worker.config import WatermarkSettings, load
from tenkaigen_worker.plugin import FinishedJob, PictureInfo, Prompt, hookspecs
from tenkaigen_worker.plugin.discovery import HOOKS
from tenkaigen_worker.plugin.style_files import StyleFile
from tenkaigen_worker.plugin.template_files import MAX_VALUE, TemplateFile
from tenkaigen_worker.testing import LoadedPlugin, load_plugin
from tests.unit.test_docs import ROOT, blocks, first_column, inline, known, section, table

PLUGINS = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
EXAMPLES = {match[1]: block for block in blocks(PLUGINS, "python", "yaml") if (match := re.match(r"# (\S+)\n", block))}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all files of the manual in it."""
    for name in [name for name in os.environ if name.startswith("TENKAIGEN_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    for name, text in EXAMPLES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path


def named(*suffixes: str) -> Iterator[str]:
    return (name for name in EXAMPLES if name.endswith(suffixes))


# What there is


def test_every_hook_has_its_section_with_its_signature_in_the_order_of_the_hookspecs() -> None:
    hooks = section(PLUGINS, "All hooks")
    assert re.findall(r"^### (.*)$", hooks, re.MULTILINE) == list(HOOKS)
    for name in HOOKS:
        signature = str(inspect.signature(getattr(hookspecs, name))).replace("'", "")
        assert blocks(section(hooks, name), "python")[0] == f"def {name}{signature}: ...\n"


@pytest.mark.parametrize(
    ("hook", "value"), [("transform_prompt", Prompt), ("process_image", PictureInfo), ("job_finished", FinishedJob)]
)
def test_all_that_a_hook_is_told_is_named(hook: str, value: type) -> None:
    assert {field.name for field in fields(value)} <= inline(section(PLUGINS, hook))


def test_every_key_of_a_file_is_explained() -> None:
    assert first_column(section(PLUGINS, "All keys of a style"), "key") == list(StyleFile.model_fields)
    assert first_column(section(PLUGINS, "All keys of a template"), "key") == list(TemplateFile.model_fields)
    assert f"at most {MAX_VALUE} characters" in section(PLUGINS, "A template").replace("\n", " ")


def test_every_key_of_the_watermark_is_explained_with_its_default() -> None:
    rows = table(section(PLUGINS, "Size and watermark"), "key")
    defaults = {name: field.default for name, field in WatermarkSettings.model_fields.items()}
    assert {row[0].strip("`"): row[1].strip("`") for row in rows} == {
        name: "none" if default is None else str(default) for name, default in defaults.items()
    }


def test_every_public_method_for_tests_is_explained() -> None:
    there = {name for name in dir(LoadedPlugin) if not name.startswith("_")}
    assert set(first_column(section(PLUGINS, "A test in five lines"), "method")) == there


@pytest.mark.parametrize("line", [line for block in blocks(PLUGINS, "text") for line in block.splitlines()])
def test_every_message_is_the_programs_own(line: str) -> None:
    assert known(line.partition(": prompt: ")[2])


# Examples


def test_every_block_is_tried_by_one_of_these_tests() -> None:
    signatures = {f"def {name}" for name in HOOKS}
    for block in blocks(PLUGINS, "python", "yaml"):
        assert block in EXAMPLES.values() or block.partition("(")[0] in signatures, block
    assert len(list(named(".yaml"))) == 3
    assert len(list(named(".py"))) == 5


@pytest.mark.parametrize(
    ("name", "lines"),
    [("plugins/styles/pop_art.yaml", 8), ("plugins/house_rules.py", 10), ("tests/test_house_rules.py", 5)],
)
def test_they_are_as_short_as_the_manual_says(name: str, lines: int) -> None:
    assert len([line for line in EXAMPLES[name].splitlines() if line.strip()]) <= lines


def test_styles_and_templates_are_right(workplace: Path) -> None:
    result = CliRunner().invoke(cli, ["styles", "check", "plugins"])

    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) == len([name for name in named(".yaml") if name.startswith("plugins/")])


def test_the_style_of_the_readme_is_the_same_one() -> None:
    (example,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "yaml")
    assert EXAMPLES["plugins/styles/pop_art.yaml"].startswith(example)


@pytest.mark.parametrize("name", [name for name in named(".py") if name.startswith("plugins/")])
def test_plugins_can_be_loaded(workplace: Path, name: str) -> None:
    assert load_plugin(name).hooks


@pytest.mark.parametrize("name", [name for name in named(".py") if name.startswith("tests/")])
def test_tests_pass(workplace: Path, name: str) -> None:
    module: dict[str, object] = {}
    exec(compile(EXAMPLES[name], name, "exec"), module)
    tests = [test for name, test in module.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        assert callable(test)
        test()


def test_the_configuration_is_right(workplace: Path) -> None:
    settings = load(workplace / "worker.yaml", {}).settings.plugins
    assert settings.resize
    assert settings.watermark


def test_a_package_uses_the_right_group() -> None:
    (text,) = blocks(PLUGINS, "toml")
    assert list(tomllib.loads(text)["project"]["entry-points"]) == [hookspecs.PROJECT]
