"""What ``submit``, ``status`` and ``cancel`` refuse, in how few words, before any database is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tenkaigen_worker.cli import cli


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Run a command in an empty folder, with a database that nobody answers for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENKAIGEN_DATABASE__URL", "postgresql://nobody@127.0.0.1:1/none")

    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin)

    return invoke


@pytest.mark.parametrize("command", ["status", "cancel"])
@pytest.mark.parametrize("job_id", ["42", "not-an-id", "x" * 5000])
def test_a_wrong_id_is_one_line(run, command: str, job_id: str) -> None:
    result = run(command, job_id)
    assert result.exit_code == 1
    assert result.output.startswith("Error: '")
    assert "is not a job's id" in result.output
    assert result.output.count("\n") == 1
    assert len(result.output) < 250


def test_every_wrong_field_is_named(run) -> None:
    result = run("submit", "A fox", "--width", "65", "--seed", "-1", "--style", "Animee", "--steps", "many")
    assert result.exit_code == 1
    for words in ("width: must be a multiple of 16", "seed: must be", "Anime", "steps: must be"):
        assert words in result.output
    assert "Nothing was queued" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["A fox", "--reference", "fox.png"], "Invalid value for --reference: there is no file fox.png."),
        (["A fox", "--reference", "job:7"], "reference: must be upload:ID"),
        (["A fox", *["--reference", "job:7"] * 2], "more_references: must be upload:ID"),
        (["A fox", "--mask", "."], "Invalid value for --mask: there is no file"),
        (["A fox", "--strength", "0.5"], "strength: needs a picture to start from"),
        (["A fox", "--lora", "Ink:0.5"], "loras: there is no LoRA 'Ink'"),
        (["--template", "stikker"], "template: there is no template 'stikker'; did you mean Sticker?"),
        (["--template", "sticker", "--var", "mood"], "'mood' is no NAME=TEXT, such as animal=fox"),
        (["A fox", "--var", "mood=sad"], "template_variables: needs a template"),
    ],
)
def test_what_is_wrong_beside_the_prompt(run, arguments: list[str], says: str) -> None:
    result = run("submit", *arguments)
    assert result.exit_code in (1, 2)
    assert says in result.output


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("Ink", {"name": "Ink"}),
        ("Ink:0.5", {"name": "Ink", "weight": "0.5"}),
        ("Ink:-1", {"name": "Ink", "weight": "-1"}),
        ("Fox: Red", {"name": "Fox: Red"}),
        ("Film 2:2", {"name": "Film 2", "weight": "2"}),
    ],
)
def test_a_lora_and_its_weight(given: str, asked: dict[str, str]) -> None:
    context = cli.get_command(None, "submit").make_context("submit", ["A fox", "--lora", given])  # type: ignore[arg-type,union-attr]
    assert context.params["loras"] == [asked]


def test_an_empty_prompt_is_named(run) -> None:
    result = run("submit", "  ")
    assert (result.exit_code, "prompt: must not be empty" in result.output) == (1, True)


@pytest.mark.parametrize("arguments", [(), ("A fox", "--file", "-")])
def test_one_of_prompt_and_file_is_needed(run, arguments: tuple[str, ...]) -> None:
    result = run("submit", *arguments, stdin="A wolf\n")
    assert result.exit_code == 2
    assert "either a prompt or --file" in result.output


def test_a_wrong_line_of_a_file_is_named_and_nothing_is_queued(run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"# animals\n\nA fox\n{'x' * 4001}\n")
    result = run("submit", "--file", "prompts.txt")
    assert result.exit_code == 1
    assert "prompts.txt:4: prompt: may have at most 4000 characters" in result.output
    assert "prompts.txt:3" not in result.output


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\n# nothing\n", "holds no prompt"), (b"A f\xffx\n", "not UTF-8"), (b"", "holds no prompt")],
)
def test_a_file_without_prompts(run, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    for name, stdin in (("prompts.txt", None), ("-", content)):
        result = run("submit", "--file", name, stdin=stdin)
        assert (result.exit_code, words in result.output) == (1, True), result.output


def test_a_missing_file_is_named(run) -> None:
    result = run("submit", "--file", "none.txt")
    assert result.exit_code == 2
    assert "none.txt" in result.output
