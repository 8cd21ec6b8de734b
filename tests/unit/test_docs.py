"""The documentation is held to the code: what it names exists, and what exists is named."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import cast, get_args

import click
import pytest

from tenkaigen_worker.api.app import make_app
from tenkaigen_worker.api.parts import Parts
from tenkaigen_worker.api.views import job_body, status_body
from tenkaigen_worker.cli import COMMANDS, cli
from tenkaigen_worker.config import Settings
from tenkaigen_worker.config_api import ApiSettings
from tenkaigen_worker.engine.messages import Message
from tenkaigen_worker.errors import Code
from tenkaigen_worker.jobs import FINAL, TRANSITIONS
from tenkaigen_worker.metrics import Metrics
from tenkaigen_worker.plugin.lora_files import LoraFile
from tenkaigen_worker.request import NOT_YET, Request
from tenkaigen_worker.settings_sources import PREFIX, flatten, variable
from tests.unit.examples import QUEUED
from tests.unit.test_imports import LAYERS, PACKAGE, ROWS_OF_FRIENDS, modules

ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE, SETUP, OPERATORS, API, TESTING, TROUBLESHOOTING = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("architecture", "setup", "operators", "api", "testing", "troubleshooting")
)

# Variables that the pages show as mistakes.
MISTAKES = {"TENKAIGEN_WORKR__X", "TENKAIGEN_SERVICE_HOST", "TENKAIGEN_PORT"}

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

# Shorter texts of the program, in characters, are no sentences that one could know again.
LONG_ENOUGH = 12
GAP = "\0"  # stands where a text of the program takes a value

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# Reading Markdown


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def prose(text: str) -> str:
    return re.sub(FENCED, "", text)


def inline(text: str) -> set[str]:
    """What stands between single backticks, as one line each."""
    return {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))}


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its rank."""
    headings = re.sub(FENCED, lambda block: " " * len(block[0]), text)
    start = re.search(rf"^(#+) {re.escape(heading)}$", headings, re.MULTILINE)
    assert start, f"no heading {heading!r}"
    end = re.compile(rf"^#{{1,{len(start[1])}}} ", re.MULTILINE).search(headings, start.end())
    return text[start.end() : end.start() if end else None]


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading, cell by cell."""
    head = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\|\n((?:\|.*\n?)+)", text, re.MULTILINE)
    assert head, f"no table that begins with {first!r}"
    rows = [row.strip("|").split(" | ") for row in head[1].strip().splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


def codes(cells: list[str]) -> list[str]:
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def first_column(text: str, heading: str) -> list[str]:
    """What is in backticks in a table's first column."""
    return codes([row[0] for row in table(text, heading)])


# Architecture


def test_the_diagram_shows_every_transition_and_no_other() -> None:
    (diagram,) = [block for block in blocks(ARCHITECTURE, "mermaid") if "stateDiagram-v2" in block]
    arrows = set(re.findall(r"^ *(\S+) --> (\w+|\[\*\])", diagram, re.MULTILINE))
    begun_and_ended = {("[*]", "queued"), *((status.value, "[*]") for status in FINAL)}
    assert arrows == {(before.value, after.value) for before, after in TRANSITIONS} | begun_and_ended


def test_every_module_has_its_line() -> None:
    named = first_column(section(ARCHITECTURE, "3. The house"), "module")
    there = [str(path.relative_to(PACKAGE)) for path in modules() if path.name != "__init__.py"]
    assert sorted(named) == sorted(there)


@every_page
def test_every_module_that_is_named_exists(page: Path) -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    named = {code for code in inline(page.read_text(encoding="utf-8")) if re.fullmatch(r"[\w/]+\.(py|sql)", code)}
    for code in named:
        inside = code.partition("/")[0] in rooms or "/" not in code
        folder = PACKAGE if inside and not (ROOT / code).exists() else ROOT
        assert (folder / code).exists(), f"{page.name} names {code}"


def test_the_layers_are_those_of_the_import_rules() -> None:
    rows = table(section(ARCHITECTURE, "4. Who may import whom"), "row")
    assert [set(codes([row[1]])) for row in rows] == list(LAYERS)
    friends = [set(codes([row[1]])) for row in rows if row[2].startswith("yes")]
    assert friends == list(ROWS_OF_FRIENDS)


def test_every_error_code_is_explained() -> None:
    rows = table(section(ARCHITECTURE, "Error codes"), "code")
    assert [codes(row[:1])[0] for row in rows] == [code.value for code in Code]
    assert [row[1:3] for row in rows] == [[code.fault, "yes" if code.retryable else "no"] for code in Code]


def test_every_message_of_the_engine_is_explained() -> None:
    text = section(ARCHITECTURE, "6. The engine process")
    named = first_column(text, "from the parent") + first_column(text, "from the child")
    assert sorted(named) == sorted(kind.__name__ for kind in get_args(Message))


# Settings


def test_every_section_of_the_settings_is_explained() -> None:
    assert first_column(section(SETUP, "Configuration"), "section") == list(Settings.model_fields)


@every_page
def test_every_setting_that_is_named_exists(page: Path) -> None:
    known = {key for key, _ in flatten(Settings())} | {("engine", "checkpoints"), ("generation", "modes")}
    dotted = {".".join(key) for key in known} | {".".join(key[:1]) for key in known}
    sections = "|".join(name for name in Settings.model_fields if name != "state_dir")
    for code in inline(page.read_text(encoding="utf-8")):
        name = code.partition(":")[0]
        if re.fullmatch(rf"({sections})\.[a-z_.]+", name) and not name.endswith(
            (".py", ".sql", ".yaml", ".md", ".log")
        ):
            assert name in dotted, f"{page.name} names {name}"


@every_page
def test_every_variable_that_is_named_exists(page: Path) -> None:
    known = {variable(key) for key, _ in flatten(Settings())} | {variable(("generation", "modes"))} | MISTAKES
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", text)):
        assert name in known, f"{page.name} names {name}"


# Plugins


def test_every_key_of_a_lora_is_explained() -> None:
    assert first_column(section(SETUP, "LoRAs"), "key") == list(LoraFile.model_fields)


# The command line


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of every ``tenkaigen`` that is called in a block or between backticks."""
    written = "\n".join(blocks(text, "console", "sh", "bash", "ini")).replace("\\\n", " ").splitlines()
    for line in [*written, *inline(text)]:
        line = re.sub(r"^(\$ |Try +)", "", line)
        if not re.search(r"(^|[\s/])tenkaigen ", line):
            continue
        words = shlex.split(line, comments=True)
        starts = [place for place, word in enumerate(words) if word == "tenkaigen" or word.endswith("/tenkaigen")]
        if starts:
            rest = words[starts[0] + 1 :]
            end = next((place for place, word in enumerate(rest) if word in {"|", "&&", ";", ">"}), len(rest))
            yield rest[:end]


@every_page
def test_every_command_exists_with_its_options(page: Path) -> None:
    for arguments in command_lines(page.read_text(encoding="utf-8")):
        if arguments[:1] in (["-c"], ["--config"]):
            arguments = arguments[2:]
        name, *rest = arguments
        if name in {"--help", "--version"}:
            continue
        assert name in COMMANDS, f"{page.name}: tenkaigen {name}"
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        while isinstance(command, click.Group) and rest and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        if name == "psql":  # the rest is psql's own
            continue
        while isinstance(command, click.Group) and rest and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        options = {spelling for parameter in command.params for spelling in parameter.opts} | {"--help"}
        for option in (word for word in rest if word.startswith("-") and word != "-"):
            assert option in options, f"{page.name}: tenkaigen {name} {option}"


def test_every_command_is_named_in_the_house() -> None:
    calls = {arguments[0] for arguments in command_lines(section(ARCHITECTURE, "3. The house"))}
    assert calls == set(COMMANDS)


# HTTP and SQL


def test_every_route_is_explained() -> None:
    app = make_app(cast(Parts, None), ApiSettings())
    there = {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert set(re.findall(r"^### ([A-Z]+ /.*)$", API, re.MULTILINE)) == there


def test_every_problem_code_of_the_api_is_explained() -> None:
    raised = {"invalid_request", "unsupported", "too_large"}  # codes of jobs, which requests get too
    for path in (PACKAGE / "api").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        raised |= {code for node in ast.walk(tree) if isinstance(node, ast.Call) for code in problem_code(node)}
        raised |= set(re.findall(r'^ +code = "(\w+)"$', path.read_text(encoding="utf-8"), re.MULTILINE))
    raised |= {f"{what}_unavailable" for what in ("database", "storage")}
    assert set(codes([row[1] for row in table(section(API, "Errors"), "status")])) == raised


def problem_code(call: ast.Call) -> Iterator[str]:
    """The second argument of ``Problem(...)`` and ``Problem.of_field(...)``, where it is written out."""
    if ast.unparse(call.func) in {"Problem", "Problem.of_field"} and len(call.args) > 1:
        code = call.args[1]
        if isinstance(code, ast.Constant):
            yield str(code.value)


def test_every_field_of_a_request_is_explained() -> None:
    assert first_column(section(API, "POST /api/generate"), "field") == list(Request.model_fields)
    (row,) = [row for row in table(section(API, "Errors"), "status") if "`unsupported`" in row[1]]
    assert set(codes(row[2:])) == set(NOT_YET)


def test_the_status_document_has_the_fields_it_shows() -> None:
    running, done = map(json.loads, blocks(section(API, "GET /api/generate/status/{job_id}"), "json"))
    assert list(running) == list(status_body(QUEUED)) == [*job_body(QUEUED), "queue_position", "estimated_seconds"]
    assert set(done) <= set(running)


def test_every_column_that_a_user_sets_is_explained() -> None:
    text = section(API, "What you set")
    named = set(first_column(text, "column")) | {*NOT_YET} - {"variables"}
    by_sql_only = {"priority", "max_attempts", "user_id", "idempotency_key", "cancel_requested_at"}
    assert named == {*Request.model_fields, *NOT_YET} - {"variables"} | by_sql_only
    assert {*NOT_YET} - {"variables"} <= inline(text)


def test_every_number_is_explained() -> None:
    rendered = Metrics().render().decode()
    there = {name for name in re.findall(r"^# TYPE (\w+)", rendered, re.MULTILINE) if not name.endswith("_created")}
    assert set(first_column(section(SETUP, "Health and numbers"), "number")) == there


# What the program says


@cache
def sources() -> list[ast.Module]:
    return [ast.parse(path.read_text(encoding="utf-8")) for path in modules()]


@cache
def sentences() -> list[re.Pattern[str]]:
    """The first line of every text of the program that is long enough to be known again, with its gaps."""
    found = []
    for tree in sources():
        pieces = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in pieces:
                text = node.value
            else:
                continue
            words = text.partition("\n")[0].split(GAP)
            if sum(map(len, words)) >= LONG_ENOUGH:
                found.append(re.compile(".*".join(map(re.escape, words))))
    return found


def said() -> list[str]:
    """The lines of the grey blocks, but for PostgreSQL's own words."""
    return [line for block in blocks(TROUBLESHOOTING, "text") for line in block.splitlines()]


def known(line: str) -> bool:
    return any(sentence.search(line) for sentence in sentences())


def test_there_is_something_that_the_program_says() -> None:
    assert len(said()) > 30


@pytest.mark.parametrize("line", said())
def test_every_message_is_the_programs_own(line: str) -> None:
    assert known(line)


def test_a_message_that_nobody_says_is_found_out() -> None:
    assert not known("Error: the database refuses the password (host db, port 5432): check database.url")


@pytest.mark.parametrize(("page", "heading"), [(TESTING, "Writing a scenario"), (OPERATORS, "What the log says")])
def test_every_action_that_is_named_is_logged(page: str, heading: str) -> None:
    logged = {node.value for tree in sources() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    named = first_column(section(page, heading), "action")
    assert len(named) > 10
    assert set(named) <= logged


# Links


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {
        slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    }


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8")))
    for link in links:
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(path), f"{page.name} links to {link}"
