"""The command line: the only place that wires everything together."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from tenkaigen_worker import __version__
from tenkaigen_worker.errors import TenkaigenError
from tenkaigen_worker.names import nearest

# Where each command lives. A command's module is imported only when it is called: `--help` stays quick.
COMMANDS = {
    "up": ("stack", "Run everything here: database, API and worker, until Ctrl-C."),
    "demo": ("demo", "Make six pictures from inserted rows, and show how."),
    "worker": ("worker", "Take jobs from the queue and make their pictures."),
    "api": ("api", "Serve the HTTP API."),
    "migrate": ("database", "Create or upgrade the job table."),
    "submit": ("jobs", "Queue a prompt, or a file of prompts."),
    "status": ("jobs", "Show one job."),
    "cancel": ("jobs", "Ask for a job to be canceled."),
    "generate": ("generate", "Make a picture without a database: prompt in, PNG out."),
    "keys": ("keys", "Make, list and revoke keys for the HTTP API."),
    "psql": ("database", "Open a shell on the configured database."),
    "stats": ("database", "Count jobs, times and costs of the last 24 hours."),
    "limits": ("limits", "Show and set how much one user may ask for."),
    "doctor": ("doctor", "Check this machine and say what to do."),
    "config": ("config", "Print the settings in force and where each came from."),
    "plugins": ("plugins", "List plugins, their hooks and their problems."),
    "styles": ("styles", "List the styles, check a style's file, draw all of them."),
    "templates": ("styles", "List the prompt templates."),
    "loras": ("loras", "List, add, check and prune LoRAs."),
    "models": ("models", "Fetch, list and check the model files."),
    "inspect": ("inspect", "Print the recipe inside a PNG."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on demand; their one-line help stands in ``COMMANDS``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the module of one command."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"tenkaigen_worker.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command for one that does not exist."""
        near = nearest(args[0], COMMANDS)
        if near and args[0] not in COMMANDS:
            ctx.fail(f"No such command '{args[0]}'. Did you mean {near}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Configuration file. Without it: ./worker.yaml where there is one, else the defaults.",
)
@click.version_option(__version__, prog_name="tenkaigen")
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Turn rows of a Postgres table into pictures.

    \b
    Example:
      tenkaigen demo
      tenkaigen up
      tenkaigen submit "A dragon" --style Anime --wait
    """
    ctx.obj = config


def main() -> None:
    """Entry point of the console script: our own errors become one message, never a traceback."""
    try:
        cli(prog_name="tenkaigen")
    except TenkaigenError as error:
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {error}", err=True)
        sys.exit(1)
