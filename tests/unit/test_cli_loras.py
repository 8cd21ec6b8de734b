"""``tenkaigen loras``: list, add, verify, prune."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner, Result

from tenkaigen_worker.cli import cli
from tenkaigen_worker.errors import PluginError
from tenkaigen_worker.plugin.lora_files import read_lora
from tests.unit.lora_bytes import lora_bytes
from tests.unit.lora_server import LoraServer, serving, status

CONTENT = lora_bytes(into=3072, out=3072)
SHA = hashlib.sha256(CONTENT).hexdigest()

T = TypeVar("T")
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``tenkaigen loras`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli, ["loras", *arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A LoRA's file on this machine."""
    path = tmp_path / "mine.safetensors"
    path.write_bytes(CONTENT)
    return path


def cached(folder: Path, content: bytes, *, used_at: float = 1) -> Path:
    """Put a file into the cache, as if it had been fetched and last used then."""
    path = folder / ".tenkaigen" / "loras" / f"{hashlib.sha256(content).hexdigest()}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (used_at, used_at))
    return path


def named(folder: Path, name: str, content: bytes) -> None:
    """Write a LoRA's YAML whose file comes from the web."""
    path = folder / "plugins" / "loras" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"name: {name}\nsource: https://x.example/{name}\nsha256: {hashlib.sha256(content).hexdigest()}\n")


def test_a_file_is_added_and_listed(run: Run, file: Path, tmp_path: Path) -> None:
    result = run(
        "add", "mine.safetensors", "--name", "My Figure", "--alias", "Figure", "--alias", "fig", "--match-prompt",
        "--trigger", "my figure", "--weight", "-0.5", "--licence", "MIT", "--commercial-use", "--description", "Zoë",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert "My Figure: 49.4 kB, layers: 1, rank 2, F32" in result.output
    made = read_lora(tmp_path / "plugins" / "loras" / "my_figure.yaml")
    assert (made.name, made.source, made.sha256) == ("My Figure", str(file), SHA)
    assert (made.aliases, made.match_prompt, made.trigger_words) == (("Figure", "fig"), True, ("my figure",))
    assert (made.weight, made.licence, made.commercial_use, made.description) == (-0.5, "MIT", True, "Zoë")

    listed, shipped = json.loads(run("list", "--json").stdout)
    assert (listed["name"], listed["sha256"], listed["file"]) == ("My Figure", SHA, str(file))
    assert (shipped["name"], shipped["base_model"]) == ("Neon Sign", "tiny")
    assert "Figure, fig" in run("list").stdout


def test_what_a_licence_allows_is_asked_for(run: Run, file: Path, tmp_path: Path) -> None:
    result = run("add", str(file), "--name", "Mine")
    assert "refused until it says commercial_use: true" in result.stderr
    assert "commercial_use: null" in (tmp_path / "plugins" / "loras" / "mine.yaml").read_text()


def test_nothing_is_overwritten_and_no_name_is_taken(run: Run, file: Path, tmp_path: Path) -> None:
    named(tmp_path, "ink", CONTENT)
    before = (tmp_path / "plugins" / "loras" / "ink.yaml").read_text()

    assert "already has a LoRA called 'INK'" in str(run("add", str(file), "--name", "INK").exception)
    assert "already has a LoRA called 'ink'" in str(run("add", str(file), "--name", "x", "--alias", "ink").exception)
    assert "ink.yaml exists already" in str(run("add", str(file), "--name", "ink!").exception)
    assert (tmp_path / "plugins" / "loras" / "ink.yaml").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["http://x.example/a", "--name", "A"], "a URL must begin with https://"),
        (["a.ckpt", "--name", "A"], "does not end with .safetensors"),
        (["a.safetensors", "--name", "--"], "a LoRA's name needs a letter"),
        (["a.safetensors", "--name", "A", "--weight", "9"], "from -4 to 4, not 9"),
        (["a.safetensors"], "Missing option '--name'"),
    ],
)
def test_a_wrong_command_is_refused(run: Run, arguments: list[str], says: str) -> None:
    result = run("add", *arguments)
    assert result.exit_code == 2
    assert says in result.output


def test_a_wrong_file_is_not_added(run: Run, file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    for name, says in (("mine", "a PyTorch pickle"), ("nowhere", "No such file")):
        result = run("add", f"{name}.safetensors", "--name", "Mine")
        assert isinstance(result.exception, PluginError)
        assert says in str(result.exception)
    assert not (tmp_path / "plugins").exists()


@pytest.mark.parametrize(
    "command", [("add", "mine.safetensors", "--name", "Mine", "--folder", "taken/x"), ("prune",), ("verify",)]
)
def test_a_disk_that_refuses_is_said(run: Run, file: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / ".tenkaigen").mkdir()
    for taken in (tmp_path / "taken", tmp_path / ".tenkaigen" / "loras"):
        taken.touch()
    result = run(*command)
    assert isinstance(result.exception, PluginError)
    assert "Not a directory" in str(result.exception)


def test_verify_finds_what_is_wrong(run: Run, file: Path, tmp_path: Path) -> None:
    run("add", str(file), "--name", "Mine")
    named(tmp_path, "ink", lora_bytes(1, into=3072, out=3072))
    named(tmp_path, "other", lora_bytes(2))
    good = cached(tmp_path, lora_bytes(1, into=3072, out=3072), used_at=7)

    result = run("verify")
    assert (result.exit_code, result.stdout) == (0, "ok     ink\nok     Mine\nok     Neon Sign\n")
    assert good.stat().st_atime == 7

    cached(tmp_path, lora_bytes(2))
    nobodys = cached(tmp_path, lora_bytes(3))
    nobodys.write_bytes(lora_bytes(4))
    file.write_bytes(CONTENT[:-1])
    result = run("verify")
    assert result.exit_code == 1
    wrong = [line for line in result.stdout.splitlines() if line.startswith("wrong")]
    assert ["it is cut short" in wrong[0], "another model's" in wrong[1], "no LoRA needs it" in wrong[2]] == [True] * 3

    file.unlink()
    assert f"wrong  Mine: there is no file {file}" in run("verify").stdout


def test_a_file_that_may_only_be_read_is_not_wrong(
    run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    assert run("add", "mine.safetensors", "--name", "Mine").exit_code == 0
    monkeypatch.setattr(os, "utime", refuse)
    assert run("verify").stdout == "ok     Mine\nok     Neon Sign\n"


def test_prune_removes_what_nobody_needs(run: Run, tmp_path: Path) -> None:
    named(tmp_path, "ink", lora_bytes(1))
    needed, nobodys = cached(tmp_path, lora_bytes(1)), cached(tmp_path, lora_bytes(2), used_at=9)
    partial = nobodys.with_suffix(".part")
    partial.write_bytes(b"x")
    partial.with_suffix(".etag").write_text('"x"')

    would = run("prune", "--dry-run").stdout
    assert would.count("would remove") == 2
    assert nobodys.exists()

    assert run("prune").stdout == would.replace("would remove", "removed")
    assert list(needed.parent.iterdir()) == [needed]
    assert run("prune").stdout == "Nothing to remove.\n"


def test_prune_leaves_what_was_not_fetched(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [cached(tmp_path, lora_bytes()).with_name(name) for name in ("mine.safetensors", "mine.part")]
    for file in own:
        file.write_bytes(lora_bytes())
    monkeypatch.setenv("TENKAIGEN_LORAS__MAX_BYTES", "0")

    assert run("prune").stdout.count("removed") == 1
    assert sorted(own[0].parent.iterdir()) == sorted(own)


def test_prune_removes_what_is_beyond_the_limit(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for number in range(3):
        named(tmp_path, f"lora{number}", lora_bytes(number))
        files.append(cached(tmp_path, lora_bytes(number), used_at=10 - number))
    monkeypatch.setenv("TENKAIGEN_LORAS__MAX_BYTES", str(2 * len(lora_bytes())))

    assert run("prune").stdout.startswith("removed  lora2 (")
    assert [path.exists() for path in files] == [True, True, False]


def test_prune_keeps_what_a_broken_file_may_need(run: Run, tmp_path: Path) -> None:
    named(tmp_path, "ink", lora_bytes(1))
    kept = cached(tmp_path, lora_bytes(1))
    (tmp_path / "plugins" / "loras" / "ink.yaml").write_text("name: [")

    result = run("prune")
    assert "it is not known which files are needed" in result.stderr
    assert kept.exists()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LoraServer]]:
    """What starts servers beside the test, since a command has an event loop of its own."""
    monkeypatch.setenv("no_proxy", "*")
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def await_there(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    yield lambda content, *script: await_there(stack.enter_async_context(serving(content, *script)))
    await_there(stack.aclose())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_url_is_fetched(run: Run, serve: Callable[..., LoraServer], tmp_path: Path) -> None:
    store = serve(CONTENT)
    result = run("add", store.url, "--name", "Web", "--folder", "elsewhere")

    assert result.exit_code == 0, result.output
    made = read_lora(tmp_path / "elsewhere" / "web.yaml")
    assert (made.source, made.sha256) == (store.url, SHA)
    assert [path.name for path in (tmp_path / ".tenkaigen" / "loras").iterdir()] == [f"{SHA}.safetensors"]


def test_a_page_of_the_hub_is_its_file_at_the_commit_of_today(
    run: Run, serve: Callable[..., LoraServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, commit = serve(CONTENT), "c" * 40
    hub = serve(b"", status(302, Location=store.url, X_Repo_Commit=commit))
    monkeypatch.setenv("HF_ENDPOINT", hub.origin)

    assert run("add", "https://huggingface.co/a/b/blob/main/c.safetensors", "--name", "Hub").exit_code == 0
    assert hub.seen[0].path == "/a/b/resolve/main/c.safetensors"
    assert read_lora(tmp_path / "plugins" / "loras" / "hub.yaml").source == f"hub:a/b/c.safetensors@{commit}"


def test_what_was_fetched_and_does_not_fit_is_not_kept(
    run: Run, serve: Callable[..., LoraServer], tmp_path: Path
) -> None:
    result = run("add", serve(lora_bytes()).url, "--name", "Web")
    assert "another model's" in str(result.exception)
    assert list((tmp_path / ".tenkaigen" / "loras").iterdir()) == []
    assert not (tmp_path / "plugins").exists()
