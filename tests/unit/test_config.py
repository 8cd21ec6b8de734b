"""Settings: read from file and environment, refused with file and line, printed without secrets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tenkaigen_worker.cli import cli
from tenkaigen_worker.config import Settings, load
from tenkaigen_worker.errors import ConfigError
from tenkaigen_worker.redact import mask_urls
from tenkaigen_worker.resources import shipped
from tenkaigen_worker.settings_sources import flatten

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"  # must never be seen in any message

# Where worker.yaml differs from the defaults on purpose.
DELIBERATE = {"engine.backend": "tiny"}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TENKAIGEN_")]:
        monkeypatch.delenv(name)


def write(text: str | bytes, name: str = "worker.yaml") -> Path:
    path = Path(name)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(text: str | bytes = "", **environ: str) -> list[str]:
    """The lines of the error that a file and an environment are refused with."""
    with pytest.raises(ConfigError) as caught:
        load(write(text), environ)
    lines = str(caught.value).splitlines()
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None  # a cause would show its input in a traceback
    return [line.strip() for line in (lines[1:] if len(lines) > 1 else lines)]


def named(settings: Settings) -> dict[str, object]:
    return {".".join(key): value for key, value in flatten(settings)}


class TestWhereSettingsComeFrom:
    """Defaults, then the file, then the environment."""

    def test_without_a_file_the_defaults_hold(self) -> None:
        loaded = load(None, {})

        assert loaded.settings == Settings()
        assert loaded.file is None
        assert set(loaded.origins.values()) == {"default"}

    def test_the_file_in_this_folder_is_read_without_being_named(self) -> None:
        write("log:\n  level: DEBUG\n")

        loaded = load(None, {})

        assert loaded.settings.log.level == "DEBUG"
        assert loaded.file == Path("worker.yaml")
        assert loaded.origins["log.level"] == "worker.yaml:2"
        assert loaded.origins["log.format"] == "default"

    def test_a_variable_wins_over_the_file(self) -> None:
        path = write("worker:\n  lease_seconds: 70\n  poll_seconds: 3\n")

        loaded = load(path, {"TENKAIGEN_WORKER__LEASE_SECONDS": "90", "HOME": "/root"})

        assert loaded.settings.worker.lease_seconds == 90
        assert loaded.settings.worker.poll_seconds == 3
        assert loaded.origins["worker.lease_seconds"] == "TENKAIGEN_WORKER__LEASE_SECONDS"
        assert loaded.origins["worker.poll_seconds"] == "worker.yaml:3"

    def test_every_setting_has_an_origin(self) -> None:
        assert list(load(None, {}).origins) == list(named(Settings()))

    @pytest.mark.parametrize(
        ("name", "text", "key", "value"),
        [
            ("TENKAIGEN_STATE_DIR", "/var/lib/tenkaigen", "state_dir", Path("/var/lib/tenkaigen")),
            ("TENKAIGEN_API__ALLOW_REMOTE", "true", "api.allow_remote", True),
            ("TENKAIGEN_API__ALLOWED_HOSTS", "[a.example, b.example]", "api.allowed_hosts", ("a.example", "b.example")),
            ("TENKAIGEN_PLUGINS__PATHS", "[styles, more]", "plugins.paths", (Path("styles"), Path("more"))),
            ("TENKAIGEN_WORKER__HEALTH_PORT", "null", "worker.health_port", None),
            ("TENKAIGEN_ENGINE__SILENCE__STEP_SECONDS", "1.5", "engine.silence.step_seconds", 1.5),
            ("TENKAIGEN_ENGINE__REVISION", "12345", "engine.revision", "12345"),
            ("TENKAIGEN_ENGINE__REVISION", "", "engine.revision", None),
            ("TENKAIGEN_ENGINE__THREADS", "", "engine.threads", None),
            ("TENKAIGEN_ENGINE__MODEL", "a: [b", "engine.model", "a: [b"),
        ],
    )
    def test_variables_are_yaml_unless_the_setting_is_text(self, name: str, text: str, key: str, value: object) -> None:
        loaded = load(write("engine: {revision: main, threads: 2}"), {name: text})

        assert named(loaded.settings)[key] == value
        assert loaded.origins[key] == name

    def test_modes_can_be_given_as_one_variable(self) -> None:
        environ = {
            "TENKAIGEN_GENERATION__MODES": "{draft: {steps: 8, guidance_scale: 1}}",
            "TENKAIGEN_GENERATION__DEFAULT_MODE": "draft",
        }

        loaded = load(write("generation:\n  modes:\n    draft: {steps: 9, guidance_scale: 2}\n"), environ)

        assert loaded.settings.generation.modes["draft"].steps == 8
        assert loaded.origins["generation.modes.draft.steps"] == "TENKAIGEN_GENERATION__MODES"

    def test_the_process_environment_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TENKAIGEN_LOG__LEVEL", "ERROR")

        assert load(None).settings.log.level == "ERROR"

    @pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "engine:\n", "\ufeff# a byte order mark\n"])
    def test_nothing_given_is_fine(self, text: str) -> None:
        assert load(write(text), {}).settings == Settings()


class TestWrongFiles:
    """One line per problem, with file, line and what would be right."""

    def test_a_named_file_must_be_there(self) -> None:
        with pytest.raises(ConfigError, match=r"^nope\.yaml: no such file$"):
            load(Path("nope.yaml"), {})

    def test_a_folder_is_no_file(self) -> None:
        Path("worker.yaml").mkdir()

        with pytest.raises(ConfigError, match=r"^worker\.yaml: cannot be read: "):
            load(None, {})

    def test_an_unknown_key_with_the_nearest_right_one(self) -> None:
        assert problems("engine:\n  bakend: tiny\n") == [
            "worker.yaml:2: engine.bakend: unknown key; did you mean engine.backend?"
        ]

    def test_an_unknown_section_with_the_nearest_right_one(self) -> None:
        assert problems("\n\ndatabse:\n  url: x\n") == ["worker.yaml:3: databse: unknown key; did you mean database?"]

    def test_a_key_of_another_section_is_found_there(self) -> None:
        assert problems("backend: tiny") == ["worker.yaml:1: backend: unknown key; did you mean engine.backend?"]

    def test_a_key_that_resembles_nothing_lists_what_there_is(self) -> None:
        assert problems("log: {zzz: 1}") == ["worker.yaml:1: log.zzz: unknown key; known here: level, format"]

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("engine: {threads: many}", 'engine.threads: got "many", should be a whole number'),
            ("engine: {threads: 1.5}", "engine.threads: got 1.5, should be a whole number"),
            ("engine: {threads: '4'}", 'engine.threads: got "4", should be a whole number'),
            ("engine: {threads: 0}", "engine.threads: got 0, should be greater than or equal to 1"),
            ("engine: {device: gpu}", 'engine.device: got "gpu", should be auto, cpu, cuda or cuda:0'),
            ("engine: {revision: 12345}", "engine.revision: got 12345, should be text; put it in quotes"),
            ("engine: {model: ''}", 'engine.model: got "", should be at least one character'),
            ("engine: 3", "engine: should be a section with keys of its own"),
            ("engine: [backend]", "engine: should be a section with keys of its own"),
            ("worker: {poll_seconds: yes}", "worker.poll_seconds: got true, should be a number"),
            ("worker: {poll_seconds: .inf}", "worker.poll_seconds: got Infinity, should be a finite number"),
            ("worker: {poll_seconds: .nan}", "worker.poll_seconds: got NaN, should be a finite number"),
            ("worker: {poll_seconds: }", "worker.poll_seconds: got null, should be a number"),
            ("api: {allow_remote: 1}", "api.allow_remote: got 1, should be true or false"),
            ("api: {allowed_hosts: a}", 'api.allowed_hosts: got "a", should be a list, such as [a, b]'),
            ("api: {allowed_hosts: [1]}", "api.allowed_hosts.0: got 1, should be text; put it in quotes"),
            *(
                (
                    f"references: {{allowed_hosts: ['{host}']}}",
                    f'references.allowed_hosts.0: got "{host}", should be a host such as cdn.example.com or '
                    "*.example.com",
                )
                for host in ("https://a.example", "a.example:443", "*", "*.", "a.*.example", "10.0.0.1", "localhost")
            ),
            ("api: {port: 99999}", "api.port: got 99999, should be less than or equal to 65535"),
            ("api: {port: {}}", "api.port: got a mapping, should be a whole number"),
            ("plugins: {paths: [1]}", "plugins.paths.0: got 1, should be a path"),
            ("generation: {default_width: 100}", "generation.default_width: got 100, should be a multiple of 16"),
            ("generation: {modes: 3}", "generation.modes: should be a section with keys of its own"),
            (
                "log: {level: loud}",
                "log.level: got \"loud\", should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'",
            ),
            (
                "generation: {modes: {quality: {steps: 5}}}",
                "generation.modes.quality.guidance_scale: is missing",
            ),
            (
                "generation: {default_mode: a, modes: {a: {steps: 5, guidance_scale: 1}, 'B C': 3}}",
                'generation.modes.B C: got "B C", should be a name of lower-case letters, digits and hyphens',
            ),
        ],
    )
    def test_a_wrong_value_names_itself_and_what_would_be_right(self, text: str, problem: str) -> None:
        assert f"worker.yaml:1: {problem}" in problems(text)

    def test_a_long_value_is_cut(self) -> None:
        (problem,) = problems(f"engine: {{threads: {'x' * 500}}}")
        assert len(problem) < 150

    def test_a_number_too_long_to_print(self) -> None:
        (problem,) = problems(f"api: {{port: 0x{'f' * 9000}}}")
        assert "got a huge number" in problem

    def test_all_problems_at_once_in_the_order_of_the_file(self) -> None:
        text = """\
log:
  level: loud
engine:
  threads: many
  threads: 2
  bakend: tiny
worker:
  lease_seconds: 10
"""
        found = problems(text, TENKAIGEN_API__PORT="http")

        assert [line.split(": ")[0] for line in found] == [
            "worker.yaml:2",
            "worker.yaml:4",
            "worker.yaml:5",
            "worker.yaml:6",
            "worker.yaml:8",
            "TENKAIGEN_API__PORT",
        ]

    def test_a_key_given_twice(self) -> None:
        assert problems("log:\n  level: INFO\n  level: INFO\n") == [
            "worker.yaml:3: log.level: given twice; it is on line 2 already"
        ]

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("log:\n  level: [INFO\n", "worker.yaml:3: not valid YAML: while parsing a flow sequence"),
            ("log:\n\tlevel: INFO\n", "worker.yaml:2: not valid YAML: while scanning for the next token"),
            ("- log\n- engine\n", "worker.yaml:1: the top level must be keys with values"),
            ("\n\njust words\n", "worker.yaml:3: the top level must be keys with values"),
            ("log: {}\n---\nlog: {}\n", "worker.yaml:2: not valid YAML: expected a single document"),
            ("a: &x {b: 1}\nc: *x\n", "worker.yaml:2: not valid YAML: aliases (*name) are not used here"),
            (b"log:\n  level: IN\xffFO\n", "worker.yaml:2: byte 0xff is not UTF-8"),
            ("log:\n  level: IN\x07FO\n", "worker.yaml:2: character U+0007 is not allowed in YAML"),
            ("log: {level: !!int many}", "worker.yaml:1: log.level: cannot be read"),
            ("log: {level: !!python/name:os.system x}", "worker.yaml:1: log.level: cannot be read"),
            ("? [a, b]\n: 1\n", "worker.yaml:1: a key must be a plain word"),
            ("[" * 5000, "worker.yaml:1: nested too deeply"),
        ],
    )
    def test_what_is_no_yaml_of_ours(self, text: str | bytes, problem: str) -> None:
        assert problems(text)[0].startswith(problem)


class TestSettingsThatDoNotFitTogether:
    """Each value is fine, both together are not."""

    def test_an_outage_in_which_leases_run_out_is_noticed(self) -> None:
        (problem,) = problems("worker:\n  lease_seconds: 50\n  rescue_seconds: 30\n")
        assert problem.startswith("worker.yaml:3: worker.rescue_seconds: should be less than worker.lease_seconds - ")

    def test_listening_elsewhere_needs_a_server_of_ones_own(self) -> None:
        (problem,) = problems("database:\n  listen_url: postgresql://worker@db:5432/shop\n")
        assert problem.startswith("worker.yaml:2: database.listen_url: leads to another server than database.url")

    def test_a_heartbeat_must_leave_room_for_another(self) -> None:
        (problem,) = problems("worker:\n  lease_seconds: 60\n  heartbeat_seconds: 30\n")
        assert problem.startswith("worker.yaml:3: worker.heartbeat_seconds: should be less than half of")

    def test_the_one_that_was_given_is_pointed_at(self) -> None:
        (problem,) = problems("worker:\n  lease_seconds: 30\n")
        assert problem.startswith("worker.yaml:2: worker.heartbeat_seconds: should be less than half of")

        (problem,) = problems(TENKAIGEN_WORKER__LEASE_SECONDS="30")
        assert problem.startswith("TENKAIGEN_WORKER__LEASE_SECONDS: worker.heartbeat_seconds: should be less than half")

    def test_the_default_mode_must_be_a_mode(self) -> None:
        (problem,) = problems("generation: {default_mode: qualty}")
        assert problem == ("worker.yaml:1: generation.default_mode: no mode has this name; did you mean quality?")

    @pytest.mark.parametrize(
        ("mode", "says"),
        [
            (
                "{steps: 4, guidance_scale: 1, max_steps: 3}",
                "steps: should be from min_steps (1) to max_steps (3), not 4",
            ),
            ("{steps: 4, guidance_scale: 2, max_guidance_scale: 1}", "guidance_scale: should be at most max_guidance"),
            ("{steps: 4, guidance_scale: 1, scheduler: turbo}", "scheduler: "),
        ],
    )
    def test_a_mode_keeps_its_own_bounds(self, mode: str, says: str) -> None:
        (problem,) = problems(f"generation: {{default_mode: fast, modes: {{fast: {mode}}}}}")
        assert problem.startswith(f"worker.yaml:1: generation.modes.fast.{says}")

    def test_a_checkpoint_that_is_not_there(self) -> None:
        (problem,) = problems("generation: {modes: {quality: {steps: 9, guidance_scale: 1, checkpoint: best}}}")
        assert problem.startswith("worker.yaml:1: generation.modes.quality.checkpoint: no checkpoint in engine.checkp")
        assert problem.endswith("has this name; there is base")

        (problem,) = problems("engine: {checkpoints: {}}")
        assert problem == "worker.yaml:1: engine.checkpoints: should be a section with keys of its own"

    def test_any_port_will_do_only_where_pictures_have_an_address_of_their_own(self) -> None:
        words = "with 0 nobody knows beforehand where pictures will be found: name a port, or set "
        assert problems("api: {port: 0}") == [f"worker.yaml:1: api.port: {words}storage.local.public_url"]
        assert problems(TENKAIGEN_API__PORT="0") == [f"TENKAIGEN_API__PORT: {words}storage.local.public_url"]

        elsewhere = {"TENKAIGEN_API__PORT": "0", "TENKAIGEN_STORAGE__LOCAL__PUBLIC_URL": "https://shop.example/files"}
        assert load(None, elsewhere).settings.api.port == 0


class TestWrongVariables:
    """A mistyped variable is refused, not passed over."""

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("TENKAIGEN_DATABASE__ULR", "TENKAIGEN_DATABASE__URL"),
            ("TENKAIGEN_DATABASE_URL", "TENKAIGEN_DATABASE__URL"),
            ("TENKAIGEN_database__url", "TENKAIGEN_DATABASE__URL"),
            ("TENKAIGEN_STATEDIR", "TENKAIGEN_STATE_DIR"),
            ("TENKAIGEN_BACKEND", "TENKAIGEN_ENGINE__BACKEND"),
        ],
    )
    def test_an_unknown_one_with_the_nearest_right_one(self, name: str, nearest: str) -> None:
        assert problems(**{name: SECRET}) == [f"{name}: unknown variable; did you mean {nearest}?"]

    def test_one_that_resembles_nothing(self) -> None:
        assert problems(TENKAIGEN_ZZZ="1") == [
            "TENKAIGEN_ZZZ: unknown variable; `tenkaigen config` lists what can be set"
        ]

    def test_a_section_is_set_key_by_key(self) -> None:
        assert problems(TENKAIGEN_LOG="{level: INFO}") == [
            "TENKAIGEN_LOG: is a section; set its keys one by one, such as TENKAIGEN_LOG__LEVEL"
        ]

    @pytest.mark.parametrize(
        ("name", "text", "problem"),
        [
            ("TENKAIGEN_API__PORT", "http", 'got "http", should be a whole number'),
            ("TENKAIGEN_API__PORT", "", "is empty; give it a value or unset it"),
            ("TENKAIGEN_STATE_DIR", " ", "is empty; give it a value or unset it"),
            ("TENKAIGEN_API__ALLOWED_HOSTS", "a.example", 'got "a.example", should be a list, such as [a, b]'),
            ("TENKAIGEN_ENGINE__BACKEND", "gpu", "got \"gpu\", should be 'auto', 'nunchaku', 'diffusers', 'tiny' or"),
            ("TENKAIGEN_GENERATION__MODES", "{a: 1, a: 2}", "a: given twice; it is on line 1 already"),
        ],
    )
    def test_a_wrong_value(self, name: str, text: str, problem: str) -> None:
        assert problems(**{name: text})[0].startswith(f"{name}: {problem}")

    @pytest.mark.parametrize("text", ["[a", "\udcff", "*a", "!!int x"])
    def test_one_that_cannot_be_read(self, text: str) -> None:
        assert problems(TENKAIGEN_API__ALLOWED_HOSTS=text)[0].startswith("TENKAIGEN_API__ALLOWED_HOSTS: ")


class TestSecrets:
    """Passwords come by environment and are never shown."""

    REFUSED = "a secret has no place in a file; set TENKAIGEN_DATABASE__URL instead"

    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://shop:{SECRET}@db.example/shop",
            f"postgresql://shop:{SECRET}/@db.example/shop",
            f"postgresql://shop:a#?{SECRET}@db.example/shop",
            f"postgresql://db.example/shop?user=shop&password={SECRET}",
            f"postgresql://db.example/shop?sslpassword={SECRET}",
            SECRET,
        ],
    )
    def test_a_password_in_the_file_is_refused(self, url: str) -> None:
        assert problems(f"database:\n  url: {url}\n")[0] == f"worker.yaml:2: database.url: {self.REFUSED}"

    @pytest.mark.parametrize("url", ["embedded", "postgresql://shop@db.example:5432/shop?sslmode=verify-full"])
    def test_a_url_without_one_may_stand_there(self, url: str) -> None:
        loaded = load(write(f"database: {{url: '{url}'}}"), {})

        assert loaded.settings.database.url.get_secret_value() == url

    @pytest.mark.parametrize("value", [SECRET, f"mysql://shop:{SECRET}@db/shop", f"host=db password={SECRET}"])
    def test_a_wrong_url_is_not_quoted(self, value: str) -> None:
        (problem,) = problems(TENKAIGEN_DATABASE__URL=value)
        assert problem.startswith("TENKAIGEN_DATABASE__URL: should be embedded, or a URL such as postgresql://")

    @pytest.mark.parametrize(
        "text",
        [
            f"database: postgresql://shop:{SECRET}@db/shop",
            f"database: {{ulr: 'postgresql://shop:{SECRET}@db/shop'}}",
            f"database: [{{url: 'postgresql://shop:{SECRET}@db/shop'}}]",
            f"database:\n  url: 'postgresql://shop:{SECRET}@db/shop\n",
            f"database:\n  url: postgresql://shop:{SECRET}@db/shop: x\n",
            f"database: {{url: *{SECRET}}}",
            f"database: {{url: [{SECRET}]}}",
            f"api: {{port: 'https://shop:{SECRET}@db/shop'}}",
        ],
    )
    def test_a_secret_in_a_wrong_place_is_not_quoted(self, text: str) -> None:
        assert problems(text)  # which looks for the secret

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            (f"postgresql://shop:{SECRET}@db.example:6543/shop", "postgresql://shop:***@db.example:6543/shop"),
            (f"postgresql://shop@db.example/shop?password={SECRET}", "postgresql://shop@db.example/shop?password=***"),
            ("postgresql://db.example/shop", "postgresql://db.example/shop"),
            (f"postgresql://db/shop?a=b&SSLPassword={SECRET}&c=d", "postgresql://db/shop?a=b&SSLPassword=***&c=d"),
            (f"postgresql://shop:{SECRET}/@db.example/shop", "postgresql://shop:***@db.example/shop"),
            (f"postgresql://shop:#{SECRET}@db.example/shop", "postgresql://shop:***@db.example/shop"),
            (f"postgresql://[shop:{SECRET}@db/shop", "postgresql://[shop:***@db/shop"),
            (
                f"cannot reach postgresql://shop:{SECRET}@db/shop today",
                "cannot reach postgresql://shop:***@db/shop today",
            ),
        ],
    )
    def test_masking(self, url: str, shown: str) -> None:
        assert mask_urls(url) == shown


class TestCommand:
    """``tenkaigen config``."""

    def run(self, *arguments: str, **environ: str) -> str:
        result = CliRunner().invoke(cli, [*arguments], env=environ, catch_exceptions=False)
        assert result.exit_code == 0
        assert SECRET not in result.output
        return result.output

    def test_prints_every_setting_with_its_origin(self) -> None:
        write("log:\n  level: DEBUG\n", "mine.yaml")

        lines = self.run("-c", "mine.yaml", "config", TENKAIGEN_WORKER__POLL_SECONDS="2.5").splitlines()

        rows = {line.split()[0]: line.split()[1:] for line in lines}
        assert list(rows) == list(named(Settings()))
        assert rows["log.level"] == ["DEBUG", "mine.yaml:2"]
        assert rows["worker.poll_seconds"] == ["2.5", "TENKAIGEN_WORKER__POLL_SECONDS"]
        assert rows["worker.lease_seconds"] == ["60", "default"]
        assert rows["plugins.paths"] == ["[plugins]", "default"]
        assert rows["engine.threads"] == ["null", "default"]

    def test_masks_the_password(self) -> None:
        url = f"postgresql://shop:{SECRET}@db.example/shop"

        output = self.run("config", TENKAIGEN_DATABASE__URL=url)

        assert "postgresql://shop:***@db.example/shop" in output

    def test_json(self) -> None:
        data = json.loads(self.run("config", "--json", TENKAIGEN_API__PORT="9000"))

        assert data["file"] is None
        assert data["settings"]["api.port"] == {"value": 9000, "origin": "TENKAIGEN_API__PORT"}
        assert data["settings"]["plugins.paths"] == {"value": ["plugins"], "origin": "default"}
        assert data["settings"]["database.url"] == {"value": "embedded", "origin": "default"}

    def test_a_table_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("TERM", "dumb")
        write("api:\n  allowed_hosts: ['[bold]']\n")

        cli(["config"], standalone_mode=False)

        output = capsys.readouterr().out
        assert "Setting" in output.splitlines()[1]
        assert any(line.split() == ["api.allowed_hosts", "[[bold]]", "worker.yaml:2"] for line in output.splitlines())


class TestWhatShips:
    """The files that people copy are true of the program."""

    def test_worker_yaml_names_every_setting_with_its_default(self) -> None:
        loaded = load(ROOT / "worker.yaml", {})
        defaults = named(Settings())

        assert [key for key, origin in loaded.origins.items() if origin == "default"] == []
        assert named(loaded.settings) == {**defaults, **DELIBERATE}

    def test_worker_yaml_has_the_order_of_the_sections(self) -> None:
        lines = [int(origin.rpartition(":")[2]) for origin in load(ROOT / "worker.yaml", {}).origins.values()]
        assert lines == sorted(lines)

    @pytest.mark.parametrize("path", sorted(shipped("config").glob("*.yaml")), ids=lambda path: path.name)
    def test_ready_made_configurations_load(self, path: Path) -> None:
        loaded = load(path, {})
        assert loaded.settings.engine.backend in {"nunchaku", "diffusers"}

    def test_there_are_ready_made_configurations(self) -> None:
        assert {path.name for path in shipped("config").glob("*.yaml")} == {"a10g.yaml", "cpu.yaml"}

    def test_every_checkpoint_of_the_a10g_is_some_modes(self) -> None:
        settings = load(shipped("config") / "a10g.yaml", {}).settings
        drawn_with = {mode.checkpoint for mode in settings.generation.modes.values()}
        assert drawn_with == set(settings.engine.checkpoints)

    def test_what_is_commented_out_for_the_a10g_can_be_put_in(self) -> None:
        text = (shipped("config") / "a10g.yaml").read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
        commented = text.partition("# The other way")[2].partition("# A shop on Supabase")[0]
        blocks = re.findall(r"(?:^#  .*\n)+", commented, re.MULTILINE)
        fragments = [re.sub("^#", "", block, flags=re.MULTILINE) for block in blocks]
        lora, edit_model, edit_checkpoint, edit_mode = map(yaml.safe_load, fragments)
        settings["generation"]["modes"] |= lora | edit_mode
        settings["engine"]["checkpoints"] |= edit_checkpoint
        settings["engine"] |= edit_model

        modes = load(write(yaml.safe_dump(settings)), {}).settings.generation.modes

        assert (modes["lightning"].lora, modes["lightning"].checkpoint) == ("Lightning 4", "base")
        assert (modes["edit"].edit, modes["edit"].checkpoint) == (True, "edit")

    @pytest.mark.parametrize("name", ["constraints.txt", "constraints-a10g.txt"])
    def test_everything_we_require_is_pinned_within_its_range(self, name: str) -> None:
        pins = constraints(name)

        for requirement in map(Requirement, requires("tenkaigen-worker") or []):
            version = pins.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not in {name}"
            assert requirement.specifier.contains(version), f"{requirement} does not allow {version}"

    def test_an_a10g_has_the_same_versions_but_for_torch(self) -> None:
        usual, a10g = constraints("constraints.txt"), constraints("constraints-a10g.txt")

        assert {name for name, version in usual.items() if a10g.get(name) != version} == {"torch"}
        assert a10g["torch"].startswith("2.10.")

    def test_the_package_index_is_never_asked_for_nunchaku(self) -> None:
        names = [canonicalize_name(Requirement(line).name) for line in requires("tenkaigen-worker") or []]
        names += [*constraints("constraints.txt"), *constraints("constraints-a10g.txt")]
        assert not [name for name in names if "nunchaku" in name]


def constraints(name: str) -> dict[str, str]:
    return dict(pinned((shipped("config") / name).read_text(encoding="utf-8").splitlines()))


def pinned(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert "+" not in version, f"{line} names one build"
            yield canonicalize_name(name), version
