"""The settings of Supabase Storage: what is refused before anything is sent, and keys that are never shown."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tenkaigen_worker.cli import cli
from tenkaigen_worker.config import Settings, load
from tenkaigen_worker.errors import ConfigError

URL = "https://abcdefgh.supabase.co"
KEY = "sb_secret_hunter2"
ON = {"TENKAIGEN_STORAGE__KIND": "supabase", "TENKAIGEN_STORAGE__SUPABASE__URL": URL}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUPABASE_SECRET_KEY", raising=False)


def legacy(role: str) -> str:
    """A key as older projects have them: a JWT."""
    parts = ({"alg": "HS256"}, {"role": role, "iss": "supabase"})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + ".x"


def problem(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(None, {**ON, **environ})
    assert KEY not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["SUPABASE_SECRET_KEY", "TENKAIGEN_STORAGE__SUPABASE__SECRET_KEY"])
@pytest.mark.parametrize("key", [KEY, f" {KEY}\n", legacy("service_role")])
def test_a_key_comes_from_the_environment(name: str, key: str) -> None:
    loaded = load(None, {**ON, name: key})

    found = loaded.settings.storage.supabase.secret_key
    assert found is not None
    assert found.get_secret_value() == key.strip()
    assert loaded.origins["storage.supabase.secret_key"] == name
    assert key.strip() not in repr(loaded)


def test_our_own_name_wins() -> None:
    loaded = load(None, {"SUPABASE_SECRET_KEY": "theirs", "TENKAIGEN_STORAGE__SUPABASE__SECRET_KEY": KEY})

    assert loaded.origins["storage.supabase.secret_key"] == "TENKAIGEN_STORAGE__SUPABASE__SECRET_KEY"


def test_a_key_has_no_place_in_a_file() -> None:
    Path("worker.yaml").write_text(f"storage: {{supabase: {{secret_key: {KEY}}}}}")

    assert "a secret has no place in a file; set TENKAIGEN_STORAGE__SUPABASE__SECRET_KEY instead" in problem()


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("sb_publishable_hunter2", "is a key for browsers"),
        (legacy("anon"), "is a key for browsers"),
        (f"{KEY} {KEY}", "in one piece"),
        (f"{KEY}\n{KEY}", "in one piece"),
        (f"{KEY}ü", "in one piece"),
    ],
)
def test_a_key_that_cannot_work(key: str, says: str) -> None:
    said = problem(SUPABASE_SECRET_KEY=key)

    assert says in said
    assert "SUPABASE_SECRET_KEY" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "url", [URL, f"{URL}/", "http://127.0.0.1:54321", "http://localhost:8000", "http://kong:8000", "http://10.0.0.7"]
)
def test_urls(url: str) -> None:
    loaded = load(None, {**ON, "TENKAIGEN_STORAGE__SUPABASE__URL": url})

    assert loaded.settings.storage.supabase.url == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://abcdefgh.supabase.co", "should begin with https://"),
        ("http://8.8.8.8", "should begin with https://"),
        (f"{URL}/storage/v1", "should end with the host"),
        ("abcdefgh.supabase.co", "should be the URL of a Supabase project"),
        ("https://user:hunter2@abcdefgh.supabase.co", "should be the URL of a Supabase project"),
        ("postgresql://abcdefgh.supabase.co", "should be the URL of a Supabase project"),
        ("https://[::1", "should be the URL of a Supabase project"),
        ("https://abcdefgh.supabase.co:port", "should be the URL of a Supabase project"),
        ("https://", "should be the URL of a Supabase project"),
    ],
)
def test_urls_that_cannot_work(url: str, says: str) -> None:
    said = problem(TENKAIGEN_STORAGE__SUPABASE__URL=url)

    assert says in said
    assert "hunter2" not in said


def test_it_needs_a_url() -> None:
    said = problem(TENKAIGEN_STORAGE__SUPABASE__URL="")

    assert "STORAGE__SUPABASE__URL: is needed with storage.kind: supabase" in said


def test_uploads_are_never_public() -> None:
    same = {"TENKAIGEN_STORAGE__SUPABASE__UPLOADS_BUCKET": "generated-designs"}

    assert "should be another bucket than storage.supabase.bucket" in problem(**same)
    assert load(None, {**ON, **same, "TENKAIGEN_STORAGE__SUPABASE__PUBLIC": "false"})


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 101])
def test_names_that_no_bucket_has(name: str) -> None:
    assert "STORAGE__SUPABASE__BUCKET" in problem(TENKAIGEN_STORAGE__SUPABASE__BUCKET=name)


@pytest.mark.parametrize(
    ("section", "address"),
    [
        ({}, "storage.local.public_url"),
        ({"kind": "supabase", "supabase": {"url": URL, "public": False}}, "storage.supabase.files_url"),
    ],
)
def test_pictures_that_the_api_serves_need_its_port(section: dict[str, Any], address: str) -> None:
    with pytest.raises(ValueError, match=address):
        Settings.model_validate({"api": {"port": 0}, "storage": section})


def test_pictures_of_a_public_bucket_need_no_api() -> None:
    assert Settings.model_validate({"api": {"port": 0}, "storage": {"kind": "supabase", "supabase": {"url": URL}}})


@pytest.mark.parametrize("options", [["config"], ["config", "--json"]])
def test_the_key_is_not_printed(options: list[str]) -> None:
    result = CliRunner().invoke(cli, options, env={**ON, "SUPABASE_SECRET_KEY": KEY})

    assert result.exit_code == 0
    assert "SUPABASE_SECRET_KEY" in result.output
    assert "hunter2" not in result.output
