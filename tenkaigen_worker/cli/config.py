"""``tenkaigen config``: the settings in force, and where each came from."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from tenkaigen_worker.cli.context import load_settings

if TYPE_CHECKING:
    from tenkaigen_worker.config import Loaded


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
@click.pass_context
def config(ctx: click.Context, as_json: bool) -> None:
    """Print the settings in force and where each came from: the file and line, a variable, or the default.

    Passwords and keys are masked. Relative paths start at the working directory.

    \b
    Example:
      tenkaigen config
      tenkaigen -c config/cpu.yaml config --json
      TENKAIGEN_WORKER__LEASE_SECONDS=90 tenkaigen config
    """
    loaded = load_settings(ctx)
    values = _values(loaded)
    if as_json:
        settings = {key: {"value": value, "origin": loaded.origins[key]} for key, value in values.items()}
        click.echo(json.dumps({"file": loaded.file and str(loaded.file), "settings": settings}, indent=2))
        return

    rows = [(key, _text(value), loaded.origins[key]) for key, value in values.items()]
    if sys.stdout.isatty():
        _print_table(rows)
    else:
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for key, value, origin in rows:
            click.echo(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}")
    if loaded.file is None and loaded.origins["engine.backend"] == "default":
        click.echo("Without a file, tenkaigen up takes engine.backend: tiny.", err=True)


def _values(loaded: Loaded) -> dict[str, Any]:
    """Every setting by its dotted key, as plain JSON values; of a secret URL only where it points, of a key nothing."""
    from pydantic import SecretStr

    from tenkaigen_worker.redact import mask_urls
    from tenkaigen_worker.settings_sources import flatten

    def plain(value: Any) -> Any:
        if isinstance(value, SecretStr):
            text = value.get_secret_value()
            return mask_urls(text) if "://" in text or text == "embedded" else "***"
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return value if value is None or isinstance(value, str | int | float) else str(value)

    return {".".join(key): plain(value) for key, value in flatten(loaded.settings)}


def _text(value: Any) -> str:
    """A value as one would write it into the file."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.12g}" if isinstance(value, float) else json.dumps(value)


def _print_table(rows: list[tuple[str, str, str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("Setting", "Value", "From", box=box.SIMPLE_HEAD)
    for key, value, origin in rows:
        # As Text, so that a value in brackets is not taken for markup; what is not a default stands out.
        style = "dim" if origin == "default" else ""
        table.add_row(Text(key), Text(value), Text(origin), style=style)
    Console().print(table)
