"""The options that say what to draw: the same for ``submit`` and ``generate``.

Their values stay text here; the rules for requests check them, and name everything wrong at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click


def _read_variables(_ctx: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    if wrong := next((name for name, equals, _ in pairs if not (name and equals)), None):
        raise click.BadParameter(f"{wrong!r} is no NAME=TEXT, such as animal=fox.")
    return {name: text for name, _, text in pairs}


def _read_loras(_ctx: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> list[dict[str, str]]:
    """Split each name from its weight: a colon with a number at the end."""
    found = [re.fullmatch(r"(?P<name>.*?)(:(?P<weight>[+-]?[0-9.]+))?", text, re.DOTALL) for text in given]
    return [{key: text for key, text in match.groupdict().items() if text} for match in found if match]


_OPTIONS = (
    click.option("--style", metavar="NAME", help="See: tenkaigen styles. auto: the one that the prompt names."),
    click.option("--negative", "negative_prompt", metavar="TEXT", help="What should not be in the picture."),
    click.option("--width", metavar="PIXELS", help="64 to 4096, a multiple of 16."),
    click.option("--height", metavar="PIXELS", help="64 to 4096, a multiple of 16."),
    click.option("--seed", metavar="NUMBER", help="The same seed and settings give the same picture again."),
    click.option("--count", metavar="NUMBER", help="Pictures per prompt, 1 to 8."),
    click.option("--template", metavar="NAME", help="See: tenkaigen templates."),
    click.option(
        "--var",
        "template_variables",
        metavar="NAME=TEXT",
        multiple=True,
        callback=_read_variables,
        help="A variable of the template; may be given several times.",
    ),
    click.option("--mode", metavar="NAME", help="A mode of the configuration: quality, lightning or lightning-8."),
    click.option("--steps", metavar="NUMBER", help="Denoising steps, 1 to 100, in place of the mode's."),
    click.option("--guidance-scale", metavar="NUMBER", help="Guidance, 1 to 20, in place of the mode's."),
    click.option(
        "--lora",
        "loras",
        metavar="NAME[:WEIGHT]",
        multiple=True,
        callback=_read_loras,
        help="See: tenkaigen loras list. May be given several times.",
    ),
    click.option("--franchise", metavar="NAME", help="A name or an alias of a LoRA."),
    click.option(
        "--reference",
        "references",
        metavar="PICTURE",
        multiple=True,
        help="A picture to start from: a file, an https URL, or of a queued job job:ID/INDEX. A mode for edits takes "
        "up to three.",
    ),
    click.option("--mask", metavar="PICTURE", help="Beside a reference: what is white in it is drawn anew."),
    click.option("--strength", metavar="NUMBER", help="How far to go from the reference, above 0 to 1."),
)


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a request; their names are the request's fields, but for ``references``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
