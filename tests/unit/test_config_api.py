"""The section ``api``: whom it asks who they are, and what it is told of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tenkaigen_worker.api.hosts import refuse_open_door
from tenkaigen_worker.cli import cli
from tenkaigen_worker.config import load
from tenkaigen_worker.config_api import ApiSettings
from tenkaigen_worker.errors import ConfigError

URL = "https://abcdefgh.supabase.co"
SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "worker.yaml"


def api(file: Path, text: str, **environ: str) -> ApiSettings:
    file.write_text(text)
    return load(file, environ).settings.api


def problem(file: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        api(file, text, **environ)
    assert "hunter2" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("none", ("none",)),
        ("supabase", ("supabase",)),
        ("api_keys", ("api_keys",)),
        ("[supabase, api_keys]", ("supabase", "api_keys")),
    ],
)
def test_one_way_in_or_several(file: Path, said: str, means: tuple[str, ...]) -> None:
    assert api(file, f"api: {{auth: {said}, supabase: {{url: '{URL}/'}}}}").auth == means
    variables = {"TENKAIGEN_API__AUTH": said, "TENKAIGEN_API__SUPABASE__URL": URL}
    settings = api(file, "", **variables)
    assert (settings.auth, settings.supabase.url) == (means, URL)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{auth: supabse}", "api.auth.0: got \"supabse\", should be 'none', 'supabase' or 'api_keys'"),
        ("{auth: []}", "api.auth: "),
        ("{auth: [none, api_keys]}", "api.auth: none stands alone"),
        ("{auth: supabase}", "api.supabase.url: is missing; with supabase in api.auth it should be your project's URL"),
        ("{supabase: {url: abcdefgh.supabase.co}}", "api.supabase.url: "),
        ("{supabase: {url: 'http://abcdefgh.supabase.co'}}", "should begin with https://"),
        ("{supabase: {url: 'https://abcdefgh.supabase.co/auth/v1'}}", "should end with the host"),
        ("{supabase: {url: 'https://'}}", "should be the URL of a Supabase project"),
        (f"{{supabase: {{jwt_secret: {SECRET}}}}}", "set TENKAIGEN_API__SUPABASE__JWT_SECRET instead"),
        ("{cors_origins: ['*']}", "should be an origin such as https://shop.example.com"),
        ("{cors_origins: ['https://shop.example/']}", "should be an origin"),
        ("{cors_origins: ['https://Shop.example']}", "should be an origin"),
        ("{cors_origins: ['shop.example']}", "should be an origin"),
        ("{cors_origins: ['null']}", "should be an origin"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(file: Path, text: str, says: str) -> None:
    assert says in problem(file, f"api: {text}\n")


def test_a_secret_comes_by_environment_and_is_long_enough(file: Path) -> None:
    settings = api(file, "", TENKAIGEN_API__SUPABASE__JWT_SECRET=SECRET)
    assert settings.supabase.jwt_secret is not None
    assert settings.supabase.jwt_secret.get_secret_value() == SECRET
    assert SECRET not in repr(settings)
    shown = CliRunner().invoke(cli, ["config"], env={"TENKAIGEN_API__SUPABASE__JWT_SECRET": SECRET})
    assert "hunter2" not in shown.output
    assert "***" in shown.output
    assert "at least 32 bytes" in problem(file, "", TENKAIGEN_API__SUPABASE__JWT_SECRET="hunter2")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:54321", "http://localhost:54321", "http://[::1]:54321", "http://kong:8000"]
)
def test_a_project_on_a_network_of_our_own_needs_no_tls(file: Path, url: str) -> None:
    assert api(file, f"api: {{supabase: {{url: '{url}'}}}}").supabase.url == url


@pytest.mark.parametrize("origin", ["https://shop.example", "http://localhost:3000", "http://[::1]:3000"])
def test_origins_are_written_as_browsers_do(file: Path, origin: str) -> None:
    assert api(file, f"api: {{cors_origins: ['{origin}']}}").cors_origins == (origin,)


def test_an_api_that_asks_may_be_reached_from_everywhere(file: Path) -> None:
    refuse_open_door(api(file, f"api: {{host: 0.0.0.0, auth: supabase, supabase: {{url: '{URL}'}}}}"))
    refuse_open_door(api(file, "api: {host: 0.0.0.0, auth: api_keys}"))
    with pytest.raises(ConfigError, match=r"let api\.auth ask who they are"):
        refuse_open_door(api(file, "api: {host: 0.0.0.0}"))
