"""``tenkaigen styles`` and ``tenkaigen templates``: what there is, whether a file is right, and how it looks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tenkaigen_worker.cli.context import load_settings, run
from tenkaigen_worker.cli.plugins import load_quietly, point_at_problems, print_table

if TYPE_CHECKING:
    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.plugin.manager import Plugins
    from tenkaigen_worker.plugin.problems import Problem

_FIELDS = ("name", "description", "prompt", "negative_prompt", "mode", "steps", "guidance_scale", "width", "height")


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def styles(ctx: click.Context, as_json: bool) -> None:
    """List the styles that a job may name.

    Case, spaces, "-" and "_" do not matter: line_art is Line Art.

    \b
    Example:
      tenkaigen styles
      tenkaigen styles --json | jq -r '.[].name'
      tenkaigen styles check plugins/styles/pop_art.yaml
      tenkaigen styles render "A fox" -o styles.png
    """
    if ctx.invoked_subcommand:
        return
    _, loaded = load_quietly(ctx)
    if as_json:
        values = [
            {
                **{field: getattr(style, field) for field in _FIELDS},
                "loras": [{"name": lora.name, "weight": lora.weight} for lora in style.loras],
                "origin": style.origin,
            }
            for style in loaded.styles
        ]
        click.echo(json.dumps(values, ensure_ascii=False, indent=2))
        return
    print_table(("style", "description"), [(style.name, style.description) for style in loaded.styles])
    point_at_problems(loaded)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def templates(ctx: click.Context, as_json: bool) -> None:
    """List the prompt templates that a job may name, with their variables.

    A variable without "=" must be given; the others have a default.

    \b
    Example:
      tenkaigen templates
      tenkaigen templates --json | jq '.[].variables'
    """
    _, loaded = load_quietly(ctx)
    if as_json:
        fields = ("name", "description", "prompt", "negative_prompt", "style", "origin")
        values = [
            {**{field: getattr(template, field) for field in fields}, "variables": dict(template.variables)}
            for template in loaded.templates
        ]
        click.echo(json.dumps(values, ensure_ascii=False, indent=2))
        return
    rows = [
        (
            template.name,
            ", ".join(name if default is None else f"{name}={default}" for name, default in template.variables.items()),
            template.description,
        )
        for template in loaded.templates
    ]
    print_table(("template", "variables", "description"), rows)
    point_at_problems(loaded)


@styles.command(short_help="Check files before they are in a folder.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True), metavar="FILE...")
@click.pass_context
def check(ctx: click.Context, files: tuple[Path, ...]) -> None:
    """Check files with styles or templates, or folders of them; exits with 1 when anything is wrong.

    A file is what it will be when it is loaded: a template in a folder named templates, elsewhere a style. Names must
    be free beside those of the shipped files, and modes must be those of the configuration.

    \b
    Example:
      tenkaigen styles check plugins/styles/pop_art.yaml
      tenkaigen styles check plugins
    """
    from tenkaigen_worker.config import PluginSettings
    from tenkaigen_worker.plugin.manager import Plugins

    settings = load_settings(ctx).settings
    plugins = Plugins(PluginSettings(paths=files), found=())
    problems = [*plugins.problems, *_names_nobody_has(plugins, settings), *_no_files(files)]
    right = [
        f"{item.origin}: the {kind} {item.name} is right"
        for kind, items in (("style", plugins.styles), ("template", plugins.templates))
        for item in items
        if _is_among(item.origin, files)
    ]
    for line in problems or right or ["there is no style and no template in it; see: tenkaigen styles check --help"]:
        click.echo(line)
    ctx.exit(1 if problems or not right else 0)


def _names_nobody_has(plugins: Plugins, settings: Settings) -> Iterator[Problem]:
    """What a file names is elsewhere: modes in the configuration, styles in other files."""
    from tenkaigen_worker.names import find, unknown
    from tenkaigen_worker.plugin.problems import Problem

    modes = settings.generation.modes
    for style in plugins.styles:
        if style.mode is not None and find(style.mode, modes) is None:
            yield Problem(style.origin, _line(style.origin, "mode"), unknown("mode", style.mode, modes))
    for template in plugins.templates:
        if template.style is not None and find(template.style, (*plugins.style_names, "auto")) is None:
            text = unknown("style", template.style, plugins.style_names)
            yield Problem(template.origin, _line(template.origin, "style"), text)


def _line(file: str, key: str) -> int | None:
    from tenkaigen_worker.yaml_lines import read_document

    return read_document(Path(file)).lines.get((key,))


def _no_files(files: Sequence[Path]) -> Iterator[Problem]:
    from tenkaigen_worker.plugin.problems import Problem

    for file in files:
        if file.suffix == ".py":
            yield Problem(str(file), None, "this is Python, and only YAML is checked here; see: tenkaigen plugins")


def _is_among(origin: str, files: Sequence[Path]) -> bool:
    return any(Path(origin).resolve().is_relative_to(file.resolve()) for file in files)


@styles.command(short_help="Draw a prompt in every style, on one sheet.")
@click.argument("prompt")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("styles.png"), show_default=True)
@click.option("--style", "names", multiple=True, metavar="NAME", help="Only this one; may be repeated. Otherwise all.")
@click.option("--size", metavar="PIXELS", default="512", show_default=True, help="Width and height of each picture.")
@click.option("--columns", type=click.IntRange(1, 50), help="Pictures side by side; by itself about a square.")
@click.option("--seed", metavar="NUMBER", default="7", show_default=True, help="The same for all pictures.")
@click.option("--mode", metavar="NAME", help="A mode of the configuration, in place of the style's.")
@click.option("--steps", metavar="NUMBER", help="Denoising steps, 1 to 100, in place of the style's.")
@click.pass_context
def render(
    ctx: click.Context, /, output: Path, names: tuple[str, ...], size: str, columns: int | None, **fields: Any
) -> None:
    """Draw PROMPT once in every style, as one picture with the styles' names.

    \b
    Example:
      tenkaigen styles render "A fox" -o styles.png
      tenkaigen styles render "A fox" --style Anime --style pop_art --columns 2
    """
    from tenkaigen_worker.cli.sheet import make_sheet
    from tenkaigen_worker.logs import configure_logging

    settings = load_settings(ctx).settings
    configure_logging(settings.log.model_copy(update={"level": "WARNING"}))
    asked = {**fields, "width": size, "height": size}
    run(make_sheet(settings, output, asked, names=names, columns=columns))
