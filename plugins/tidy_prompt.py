"""Tidy every prompt before it goes to the model, and refuse one that says nothing.

This file is also the worked example of a plugin. Copy it into a folder that `plugins.paths` names, change it, restart
the worker, and look at it with `tenkaigen plugins`. A plugin is a module with hooks: functions with the names that
`tenkaigen_worker/plugin/hookspecs.py` explains, each marked `@hookimpl`.
"""

import unicodedata
from dataclasses import replace

from tenkaigen_worker.plugin import Prompt, Refused, hookimpl

# Invisible, but they shape Persian and Hindi words and hold emoji together.
JOINERS = "\u200c\u200d"


@hookimpl
def transform_prompt(prompt: Prompt) -> Prompt:
    """Values are frozen: answer a changed copy. `Refused` ends the job, and its text is shown to the user."""
    if not any(map(str.isalnum, prompt.asked)):
        raise Refused("The prompt has no letter or digit in it: say in words what to draw.")
    return replace(prompt, text=tidy(prompt.text), negative=tidy(prompt.negative))


def tidy(text: str) -> str:
    """Drop control and zero-width characters, and fold each run of white space into one space."""
    return " ".join("".join(character for character in text if not invisible(character)).split())


def invisible(character: str) -> bool:
    """Tell whether a character leaves no mark on the page: Unicode's control and format categories."""
    hidden = unicodedata.category(character) in ("Cc", "Cf")
    return hidden and not character.isspace() and character not in JOINERS
