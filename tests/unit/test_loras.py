"""LoRAs: what their files may say, which name belongs to which, and which ones a job gets."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tenkaigen_worker.config import LoraSettings, PluginSettings
from tenkaigen_worker.errors import InputError
from tenkaigen_worker.loras.choose import choose, usable, with_trigger_words
from tenkaigen_worker.plugin import Lora, LoraUse, Style
from tenkaigen_worker.plugin.lora_files import read_lora
from tenkaigen_worker.plugin.lora_source import HubFile, LocalFile, WebFile, parse_source
from tenkaigen_worker.plugin.loras import Loras
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.plugin.problems import BrokenPlugin

SHA = "0123456789abcdef" * 4
BASE = "Qwen/Qwen-Image"
LEAST = f"name: Ink\nsource: ink.safetensors\nsha256: {SHA}\n"


def lora(name: str, *aliases: str, **fields: object) -> Lora:
    given = {"source": "/a.safetensors", "sha256": SHA, "commercial_use": True, "origin": f"{name}.yaml", **fields}
    return Lora(name, aliases=aliases, **given)  # type: ignore[arg-type]


def write(file: Path, text: str) -> Path:
    """Write a file so that it looks changed even within one tick of the file system's clock."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    stamp = file.stat().st_mtime_ns + 1_000_000
    os.utime(file, ns=(stamp, stamp))
    return file


# Files


def test_a_file_says_all_of_a_lora(tmp_path: Path) -> None:
    file = write(
        tmp_path / "ink.yaml",
        f"name: Ink\nsource: hub:a/b/c.safetensors@main\nsha256: {SHA.upper()}\ndescription: Ink wash\n"
        "aliases: [Sumi, Sumi-e]\nmatch_prompt: true\ntrigger_words: [ink wash]\nweight: 1\nbase_model: tiny\n"
        "licence: MIT\ncommercial_use: null\nreplaces: true\n",
    )
    assert read_lora(file) == Lora(
        "Ink", "hub:a/b/c.safetensors@main", SHA, "Ink wash", ("Sumi", "Sumi-e"), True, ("ink wash",), 1.0, "tiny",
        "MIT", None, True,
    )  # fmt: skip
    assert read_lora(file).origin == str(file)


def test_a_relative_path_starts_at_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "loras" / "ink.yaml", LEAST)
    assert read_lora(file).source == str(tmp_path / "loras" / "ink.safetensors")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", None, "name is missing: a LoRA needs at least a name, a source and a sha256"),
        (LEAST + "trigger: x\n", 4, "unknown key 'trigger'; did you mean trigger_words? The keys are: name, source"),
        (LEAST + "aliases: Sumi\n", 4, "aliases must be a list, such as [a, b]"),
        (LEAST + "aliases: [a, 5]\n", 4, "aliases.1 must be text: put it in quotes"),
        (LEAST + "aliases: ['--']\n", 4, "a LoRA's name needs a letter or a digit"),
        (LEAST + "weight: 4.5\n", 4, "weight: a LoRA's weight is from -4 to 4, not 4.5"),
        (LEAST + "weight: .nan\n", 4, "weight must be a finite number"),
        (LEAST + "weight: much\n", 4, "weight must be a number"),
        (LEAST + "match_prompt: 'on'\n", 4, "match_prompt must be true or false"),
        (LEAST.replace(SHA, "abc"), 3, "sha256: sha256 is 64 hex digits"),
        (LEAST.replace("name: Ink", "name: 7"), 1, "name must be text"),
        (LEAST.replace("ink.safetensors", "ink.bin"), 2, "ink.bin does not end with .safetensors"),
        (LEAST.replace("ink.safetensors", "http://x.y/z"), 2, "a URL must begin with https://"),
        (LEAST.replace("ink.safetensors", "https://me:secret@x.y/z"), 2, "is a secret"),
        (LEAST.replace("ink.safetensors", "https://x.y /z"), 2, "this is no URL: it has a space in it"),
        (LEAST.replace("ink.safetensors", "https://x.y:port/z"), 2, "this is no URL: Port could not be cast"),
        (LEAST.replace("ink.safetensors", "hub:a/b.safetensors"), 2, "hub:OWNER/REPO/FILE.safetensors@REVISION"),
        (LEAST.replace("ink.safetensors", "hub:a/b/../c.safetensors@x"), 2, "hub:OWNER/REPO/FILE.safetensors@REVISION"),
        (LEAST.replace("ink.safetensors", "''"), 2, "a LoRA's source is hub:"),
        ("name: [", 1, "not valid YAML"),
    ],
)
def test_a_wrong_file_says_where_and_what_would_be_right(
    tmp_path: Path, text: str, line: int | None, says: str
) -> None:
    file = write(tmp_path / "ink.yaml", text)
    with pytest.raises(BrokenPlugin) as broken:
        read_lora(file)
    problem = broken.value.problems[0]
    assert says in problem.message
    assert (problem.file, problem.line) == (str(file), line)


def test_sources() -> None:
    assert parse_source("hub:a/b/deep/c.safetensors@refs/pr/1") == HubFile("a/b", "deep/c.safetensors", "refs/pr/1")
    assert parse_source("hub:a/b/c.safetensors") == HubFile("a/b", "c.safetensors", "main")
    assert parse_source("https://x.y/z?download=1") == WebFile("https://x.y/z?download=1")
    assert parse_source("http://127.0.0.1:8000/z") == WebFile("http://127.0.0.1:8000/z")
    assert parse_source("./a/b.safetensors") == LocalFile(Path("a/b.safetensors"))
    assert str(WebFile("https://x.y/z?signature=1")) == "https://x.y/z"
    assert str(parse_source("hub:a/b/c.safetensors@v1")) == "hub:a/b/c.safetensors@v1"


def test_a_lora_made_in_python_keeps_the_same_rules() -> None:
    for wrong in (
        {"name": "-"},
        {"source": "a.bin"},
        {"sha256": "A" * 64},
        {"weight": -5},
        {"aliases": ("",)},
        {"aliases": "a"},
    ):
        with pytest.raises(ValueError, match=r"name|weight|tuples|sha256|safetensors"):
            replace(lora("Ink"), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from -4 to 4"):
        LoraUse("Ink", 5)


# All of a process


def load(folder: Path) -> Plugins:
    return Plugins.load(PluginSettings(paths=(folder,)))


def offer(expression: str) -> str:
    return f"""
from tenkaigen_worker.plugin import *
def lora(name, source="mine.safetensors", **fields): return Lora(name, source, {SHA!r}, **fields)
@hookimpl
def register_loras():
    return {expression}
"""


def test_loras_come_from_yaml_and_python(bare: Path) -> None:
    write(bare / "loras" / "ink.yaml", LEAST)
    (bare / "figure.py").write_text(offer("[lora('Figure')]"))
    plugins = load(bare)

    assert plugins.problems == ()
    assert plugins.loras.names == ("Figure", "Ink")
    assert [one.origin for one in plugins.loras] == [str(bare / "figure.py"), str(bare / "loras" / "ink.yaml")]
    assert plugins.loras.get("figure").source == str(bare / "mine.safetensors")


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("1 / 0", "raised in register_loras: ZeroDivisionError"),
        ("None", "raised in register_loras: TypeError"),
        ("[Style('A')]", "it offered Style, not a Lora"),
        ("[lora('A', weight=9)]", "a LoRA's weight is from -4 to 4"),
    ],
)
def test_a_broken_plugin_is_left_out_alone(bare: Path, expression: str, says: str) -> None:
    (bare / "a.py").write_text(offer(expression))
    (bare / "b.py").write_text(offer("[lora('B')]"))
    plugins = load(bare)

    (problem,) = plugins.problems
    assert says in problem.message
    assert problem.file == str(bare / "a.py")
    assert plugins.loras.names == ("B",)


def test_files_are_read_again_when_they_change(bare: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tenkaigen.plugin")
    plugins = load(bare)
    assert plugins.loras.names == ()

    file = write(bare / "loras" / "ink.yaml", LEAST)
    assert plugins.loras.names == ("Ink",)
    write(file, "name: [")
    assert plugins.loras.names == ("Ink",)
    assert [(problem.file, problem.line) for problem in plugins.problems] == [(str(file), 1)]
    file.unlink()
    assert plugins.loras.names == ()
    assert plugins.problems == ()
    assert [getattr(record, "action", "") for record in caplog.records] == [
        "plugins_refreshed", "plugins_refreshed", "plugin_problem", "plugins_refreshed",
    ]  # fmt: skip


def test_names_taken_twice_name_both_origins(bare: Path) -> None:
    write(bare / "loras" / "a.yaml", LEAST + "aliases: [Sumi]\n")
    write(bare / "loras" / "b.yaml", LEAST.replace("Ink", "S U M I"))
    (bare / "c.py").write_text(offer("[lora('Other', aliases=('ink',))]"))
    plugins = load(bare)

    assert plugins.loras.names == ("Ink",)
    shown = {plugin.name: [str(problem) for problem in plugin.problems] for plugin in plugins.describe()}
    a = bare / "loras" / "a.yaml"
    assert shown["loras"] == [
        f"{bare}/loras/b.yaml: {a} already has a LoRA called 'S U M I': rename one, or say 'replaces: true' here"
    ]
    assert shown["c.py"] == [
        f"{bare}/c.py: {a} already has a LoRA called 'ink': rename one, or say 'replaces: true' here"
    ]


def test_one_that_replaces_takes_the_name_and_every_alias() -> None:
    old, other = lora("Ink", "Sumi", "Wash"), lora("Brush", "Pen")
    new = lora("ink", "pen", replaces=True)

    known = Loras([new, old, other])

    assert known.problems == ()
    assert known.find("Ink") == new
    assert known.find("pen") == new
    assert known.find("sumi") is None
    assert known.find("brush") == other


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="loras: there is no LoRA 'Inc'; did you mean Ink") as error:
        Loras([lora("Ink")]).get("Inc")
    assert error.value.problems[0].field == "loras"
    with pytest.raises(InputError, match="franchise: there is no LoRA 'x': none can be used here"):
        Loras().get("x", field="franchise")


# In a prompt

MATCHING = Loras(
    lora(name, *aliases, match_prompt=name != "Silent")
    for name, *aliases in (
        ("One Piece", "OP"), ("One Piece Film Red",), ("Pokémon",), ("Line_Art-Pro",), ("Straße",), ("Silent",),
        ("C++ Art",),
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("a pirate from one piece, smiling", ["One Piece"]),
        ("ONE  PIECE", ["One Piece"]),
        ("one-piece and one_piece again", ["One Piece"]),
        ("a onepiece", ["One Piece"]),
        ("one pieces, bone piece, 1one piece, one piece2", []),
        ("one piece film red", ["One Piece Film Red"]),
        ("one piece, one piece film red", ["One Piece", "One Piece Film Red"]),
        ("opera", []),
        ("(op)", ["One Piece"]),
        ("pokémon", ["Pokémon"]),
        ("POKE\u0301MON", ["Pokémon"]),
        ("pokémons", []),
        ("strasse at night", ["Straße"]),
        ("line art pro", ["Line_Art-Pro"]),
        ("pokémon and one piece", ["Pokémon", "One Piece"]),
        ("silent night", []),
        ("c++ art", ["C++ Art"]),
        ("one piece" * 1000, []),
        ("", []),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_prompt_names_loras_by_whole_words(prompt: str, names: list[str]) -> None:
    assert [one.name for one in MATCHING.named_in(prompt)] == names


# For a job

KNOWN = Loras(
    [
        lora("Ink", "Sumi", weight=0.8, trigger_words=("ink wash",), match_prompt=True),
        lora("Dragon", "DQ", match_prompt=True, trigger_words=("dqstyle", "ink wash")),
        lora("Plain"),
        lora("Unsaid", commercial_use=None, licence="?", match_prompt=True),
        lora("Private", commercial_use=False, licence="CC-BY-NC"),
        lora("Flux", base_model="FLUX", match_prompt=True),
    ]
)
STRICT = LoraSettings()


def test_a_job_gets_what_it_names_and_what_is_named_for_it() -> None:
    style = Style("Wash", loras=(LoraUse("sumi", 0.1), LoraUse("plain", 0.5)))
    chosen = choose(
        known=KNOWN, settings=STRICT, base=BASE, asked=[LoraUse("INK", 2)], franchise="dq", style=style,
        prompt="a flux of unsaid ink",
    )  # fmt: skip

    assert [(one.applied.name, one.applied.weight) for one in chosen] == [("Ink", 2), ("Dragon", 1), ("Plain", 0.5)]
    assert with_trigger_words("A fox, Ink Wash", chosen) == "dqstyle, A fox, Ink Wash"
    assert with_trigger_words("A fox", chosen) == "ink wash, dqstyle, A fox"
    assert with_trigger_words("A fox", ()) == "A fox"


def test_a_loras_own_weight_counts_where_nobody_says() -> None:
    (one,) = choose(known=KNOWN, settings=STRICT, base=BASE, prompt="ink")
    assert (one.weight, one.applied.sha256) == (0.8, SHA)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as error:
        choose(
            known=KNOWN, settings=STRICT, base=BASE, franchise="Naruto", style=Style("X", loras=(LoraUse("nix"),)),
            asked=[LoraUse("Private"), LoraUse("Unsaid"), LoraUse("Flux"), LoraUse("Inc")],
        )  # fmt: skip

    there = "The LoRAs are: Dragon, Ink, Plain"
    assert [str(problem) for problem in error.value.problems] == [
        "loras: the licence of the LoRA Private (CC-BY-NC) does not allow commercial use",
        "loras: whether the licence of the LoRA Unsaid (?) allows commercial use is not known",
        "loras: the LoRA Flux was made for FLUX, and the model here takes those for Qwen/Qwen-Image",
        f"loras: there is no LoRA 'Inc'; did you mean Ink? {there}",
        f"franchise: there is no LoRA 'Naruto'. {there}",
        f"style: there is no LoRA 'nix'. {there}",
    ]


@pytest.mark.parametrize(
    ("licences", "names"),
    [
        ("commercial", ("Dragon", "Ink", "Plain")),
        ("unknown", ("Dragon", "Ink", "Plain", "Unsaid")),
        ("any", ("Dragon", "Ink", "Plain", "Private", "Unsaid")),
    ],
)
def test_the_setting_says_which_licences_do(licences: str, names: tuple[str, ...]) -> None:
    settings = LoraSettings.model_validate({"licences": licences})
    assert usable(KNOWN, settings, BASE) == names
    assert usable(KNOWN, settings, "FLUX") == ("Flux",)


def test_a_job_has_so_many_at_most_and_a_prompt_fills_only_what_is_left() -> None:
    two = LoraSettings(max_per_job=2)
    uses = [LoraUse("Ink"), LoraUse("Dragon"), LoraUse("Plain")]
    with pytest.raises(InputError, match="loras: at most 2 LoRAs at once, not Ink, Dragon, Plain"):
        choose(known=KNOWN, settings=two, base=BASE, asked=uses)
    chosen = choose(known=KNOWN, settings=two, base=BASE, asked=[LoraUse("Plain")], prompt="a dragon in ink")
    assert [one.lora.name for one in chosen] == ["Plain", "Dragon"]
