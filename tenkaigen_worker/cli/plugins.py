"""``tenkaigen plugins``: what is loaded, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from tenkaigen_worker.cli.context import load_settings

if TYPE_CHECKING:
    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.plugin.manager import Plugins
    from tenkaigen_worker.plugin.problems import Problem


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List the plugins, their hooks, what they offer, and what is wrong with them; exits with 1 when anything is.

    \b
    Example:
      tenkaigen plugins
      tenkaigen plugins --json | jq '.[].problems'
    """
    _, loaded = load_quietly(ctx)
    found = loaded.describe()
    problems = sorted(
        (problem for plugin in found for problem in plugin.problems),
        key=lambda problem: (problem.file, problem.line or 0),
    )
    if as_json:
        values = [
            {
                "name": plugin.name,
                "origin": plugin.origin,
                "hooks": list(plugin.hooks),
                "offers": dict(plugin.offers),
                "problems": [_problem_values(problem) for problem in plugin.problems],
            }
            for plugin in found
        ]
        click.echo(json.dumps(values, ensure_ascii=False, indent=2))
    else:
        rows = [
            (plugin.name, ", ".join(plugin.hooks) or "none", _count(plugin.offers), plugin.origin) for plugin in found
        ]
        print_table(("plugin", "hooks", "offers", "origin"), rows)
        _print_problems(problems)
    ctx.exit(1 if problems else 0)


def load_quietly(ctx: click.Context) -> tuple[Settings, Plugins]:
    """Load settings and plugins, leniently and quietly: these commands show what is wrong themselves."""
    from tenkaigen_worker.logs import configure_logging
    from tenkaigen_worker.plugin.manager import Plugins

    settings = load_settings(ctx).settings
    configure_logging(settings.log.model_copy(update={"level": "ERROR"}))
    return settings, Plugins.load(settings.plugins.model_copy(update={"strict": False}))


def point_at_problems(loaded: Plugins) -> None:
    """Say where to look when something is wrong that this command does not show."""
    if loaded.problems:
        click.echo("Something is wrong with the plugins; 'tenkaigen plugins' says what.", err=True)


def _count(offers: Mapping[str, int]) -> str:
    words = {kind: "LoRAs" if kind == "loras" else kind for kind in offers}
    return ", ".join(f"{count} {words[kind] if count != 1 else words[kind][:-1]}" for kind, count in offers.items())


def _problem_values(problem: Problem) -> dict[str, str | int | None]:
    return {"file": problem.file, "line": problem.line, "message": problem.message}


def print_table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows under headings, in the terminal's width."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def _print_problems(problems: list[Problem]) -> None:
    if problems:
        click.echo("\nProblems:")
    for problem in problems:
        click.echo(f"  {problem}")
