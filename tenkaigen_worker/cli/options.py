"""The options that say what to draw: the same for ``submit`` and ``generate``.

Their values stay text here; the rules for requests check them, and name everything wrong at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--style", metavar="NAME", help="See: tenkaigen styles. Without it: Standard."),
    click.option("--negative", "negative_prompt", metavar="TEXT", help="What should not be in the picture."),
    click.option("--width", metavar="PIXELS", help="64 to 4096, a multiple of 16."),
    click.option("--height", metavar="PIXELS", help="64 to 4096, a multiple of 16."),
    click.option("--seed", metavar="NUMBER", help="The same seed and settings give the same picture again."),
    click.option("--count", metavar="NUMBER", help="Pictures per prompt, 1 to 8."),
    click.option("--mode", metavar="NAME", help="A mode of the configuration, such as quality."),
    click.option("--steps", metavar="NUMBER", help="Denoising steps, 1 to 100, in place of the mode's."),
    click.option("--guidance-scale", metavar="NUMBER", help="Guidance, 1 to 20, in place of the mode's."),
)


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a request; their names are the request's fields."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
