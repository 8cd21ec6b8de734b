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
