"""``tenkaigen loras``: which LoRAs there are, adding one, checking their files, and making room."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tenkaigen_worker.cli.context import run
from tenkaigen_worker.cli.plugins import load_quietly, point_at_problems, print_table

if TYPE_CHECKING:
    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.loras.folder import Folder
    from tenkaigen_worker.plugin import Lora
    from tenkaigen_worker.plugin.manager import Plugins

_HUB_PAGE = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/(?:resolve|blob)/([\w.-]+)/([^?#]+)(\?.*)?")


@click.group()
def loras() -> None:
    """List, add, check and prune LoRAs: small files that teach the model a look, a figure or a franchise.

    \b
    Example:
      tenkaigen loras list
      tenkaigen loras add hub:someone/ink-lora/ink.safetensors@main --name "Ink" --licence MIT --commercial-use
      tenkaigen loras verify
      tenkaigen loras prune --dry-run
    """


@loras.command("list", short_help="List the LoRAs that jobs may name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the LoRAs that jobs may name, and whether their files are on this machine.

    \b
    Example:
      tenkaigen loras list
      tenkaigen loras list --json | jq -r '.[] | select(.commercial_use != true) | .name'
    """
    from tenkaigen_worker.cli.lora_files import file_of

    settings, plugins = load_quietly(ctx)
    folder = _lora_folder(settings)
    files = [(lora, file_of(lora, folder)) for lora in plugins.loras]
    if as_json:
        values = [{**asdict(lora), "file": str(file) if file else None} for lora, file in files]
        click.echo(json.dumps(values, ensure_ascii=False, indent=2))
    elif not files:
        click.echo("There are no LoRAs. Add one: tenkaigen loras add SOURCE --name NAME")
    else:
        headings = ("LoRA", "aliases", "base model", "licence", "commercial use", "file")
        rows = [
            (lora.name, ", ".join(lora.aliases), lora.base_model, lora.licence, _commercial(lora), _where(file))
            for lora, file in files
        ]
        print_table(headings, rows)
    point_at_problems(plugins)


@loras.command(short_help="Fetch a LoRA, check it, and write its YAML.")
@click.argument("source")
@click.option("--name", required=True, help="What jobs call it.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="A further name; may be given several times.")
@click.option("--match-prompt", is_flag=True, help="Apply it also where a prompt has one of its names.")
@click.option(
    "--trigger",
    "trigger_words",
    multiple=True,
    metavar="WORDS",
    help="Words it was trained with; may be given several times.",
)
@click.option("--weight", type=float, default=1.0, show_default=True, help="How strongly it is applied, -4 to 4.")
@click.option("--description", default="", help="For people who choose.")
@click.option("--base-model", default="Qwen/Qwen-Image", show_default=True, help="The model it was trained for.")
@click.option("--licence", default="", help="What its licence is called, such as Apache-2.0.")
@click.option("--commercial-use/--no-commercial-use", default=None, help="What that licence allows.")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Where its YAML goes.  [plugins/loras]"
)
@click.pass_context
def add(ctx: click.Context, /, source: str, folder: Path | None, **given: Any) -> None:
    """Fetch a LoRA from SOURCE, check it, and write its YAML with the SHA-256.

    SOURCE is an https:// URL, hub:OWNER/REPO/FILE.safetensors@REVISION, or a file of this machine, which stays where it
    is. Nothing is overwritten.

    \b
    Example:
      tenkaigen loras add hub:someone/ink-lora/ink.safetensors@main --name Ink --licence MIT --commercial-use
      tenkaigen loras add https://example.org/dragon.safetensors --name "Dragon Quest" --alias DQ --match-prompt
      tenkaigen loras add ./mine.safetensors --name Mine --trigger "in the style of mine" --commercial-use
    """
    from tenkaigen_worker.cli.lora_files import fetch
    from tenkaigen_worker.plugin import Lora
    from tenkaigen_worker.plugin.lora_source import anchored, parse_source

    settings, plugins = load_quietly(ctx)
    try:
        source = anchored(_from_page(source), Path.cwd())
        # Everything but the SHA-256 is checked before anything is fetched.
        lora = Lora(source=source, sha256="0" * 64, **given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    file = _place(lora, plugins, folder or _first_folder(settings) / "loras")

    lora, found = run(fetch(settings, lora, parse_source(source)), if_stopped="Stopped. Run it again to go on.")
    text = _yaml_of(lora)
    with _refusals_of(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    click.echo(f"{found}\nWrote {file}. A job names it so: --lora {lora.name!r}")
    if lora.commercial_use is None and settings.loras.licences == "commercial":
        click.echo(
            "Such jobs are refused until it says commercial_use: true, or loras.licences is unknown or any.", err=True
        )


@loras.command(short_help="Compare every file with its SHA-256.")
@click.pass_context
def verify(ctx: click.Context) -> None:
    """Read every LoRA file on this machine, and compare it with its SHA-256; exits with 1 when one is wrong.

    \b
    Example:
      tenkaigen loras verify
    """
    from tenkaigen_worker.cli.lora_files import verified

    settings, plugins = load_quietly(ctx)
    folder = _lora_folder(settings)
    checked = problems = 0
    with _refusals_of(folder.path):
        for name, problem in verified(plugins.loras, folder):
            checked += 1
            problems += problem is not None
            click.echo(f"wrong  {name}: {problem}" if problem else f"ok     {name}")
    if not checked:
        click.echo("There is no LoRA file on this machine.")
    ctx.exit(1 if problems else 0)


@loras.command(short_help="Remove files that nobody needs.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.pass_context
def prune(ctx: click.Context, dry_run: bool) -> None:
    """Remove files that no LoRA needs any more, and beyond loras.max_bytes those that were not used for longest.

    Files that a running job uses stay.

    \b
    Example:
      tenkaigen loras prune --dry-run
      tenkaigen loras prune
    """
    from rich.filesize import decimal

    settings, plugins = load_quietly(ctx)
    names = {lora.sha256: lora.name for lora in plugins.loras}
    known = frozenset(names)
    if plugins.problems:
        click.echo(
            "Something is wrong with the plugins ('tenkaigen plugins' says what), so it is not known which files are "
            "needed: only loras.max_bytes counts.",
            err=True,
        )
    folder = _lora_folder(settings)
    with _refusals_of(folder.path):
        removed = folder.make_room(known=None if plugins.problems else known, dry_run=dry_run)
    for kept in removed:
        name = names.get(kept.sha256 or "", kept.path.name)
        click.echo(f"{'would remove' if dry_run else 'removed'}  {name} ({decimal(kept.bytes)})")
    if not removed:
        click.echo("Nothing to remove.")


@contextmanager
def _refusals_of(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a sentence."""
    from tenkaigen_worker.errors import PluginError

    try:
        yield
    except OSError as error:
        raise PluginError(f"{error.filename or path}: {error.strerror or error}") from None


def _lora_folder(settings: Settings) -> Folder:
    from tenkaigen_worker.loras.cache import LoraCache

    return LoraCache.of(settings.loras, settings.state_dir).folder


def _where(file: Path | None) -> str:
    from rich.filesize import decimal

    return decimal(file.stat().st_size) if file else "fetched when a job wants it"


def _commercial(lora: Lora) -> str:
    return {True: "yes", False: "no", None: "unknown"}[lora.commercial_use]


def _from_page(source: str) -> str:
    """Take the address of a file's page on the hub as the file itself, which needs no token in a URL."""
    page = _HUB_PAGE.fullmatch(source)
    return f"hub:{page[1]}/{page[3]}@{page[2]}" if page else source


def _first_folder(settings: Settings) -> Path:
    return next((path for path in settings.plugins.paths if not path.is_file()), Path("plugins"))


def _place(lora: Lora, plugins: Plugins, folder: Path) -> Path:
    """Find the place for a new LoRA's YAML; raises ``PluginError`` when place or name is taken."""
    from tenkaigen_worker.errors import PluginError

    for name in (lora.name, *lora.aliases):
        if holder := plugins.loras.find(name):
            raise PluginError(f"{holder.origin} already has a LoRA called {name!r}: choose another name")
    words = re.sub(r"[\W_]+", "_", lora.name.casefold()).strip("_")
    file = folder / f"{words}.yaml"
    if file.exists():
        raise PluginError(f"{file} exists already, and nothing is overwritten: remove it, or choose another name")
    return file


def _yaml_of(lora: Lora) -> str:
    """Write what differs from the defaults, and always the licence."""
    import yaml

    always = {"name", "source", "sha256", "weight", "base_model", "licence", "commercial_use"}
    values = {
        one.name: list(value) if isinstance(value, tuple) else value
        for one in fields(lora)
        if one.name != "origin" and ((value := getattr(lora, one.name)) != one.default or one.name in always)
    }
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10_000))
