"""``tenkaigen inspect``: what a picture was made from."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(file: Path, as_json: bool) -> None:
    """Print the recipe inside the PNG FILE.

    \b
    Example:
      tenkaigen inspect picture.png
      tenkaigen inspect picture.png --json | jq .seed
    """
    from tenkaigen_worker.cli.generate import DEMO
    from tenkaigen_worker.images import read_recipe

    values = read_recipe(file).to_json()
    if as_json:
        click.echo(json.dumps(values, ensure_ascii=False, indent=2))
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    if values["demo"] and (how := DEMO.get(str(values["backend"]))):
        values["demo"] = f"yes: drawn {how}"
    for name, value in values.items():
        if value is not None:
            table.add_row(name, Text(_in_words(value)))
    Console().print(table)


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
