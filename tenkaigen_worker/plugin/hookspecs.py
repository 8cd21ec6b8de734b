"""The hooks, in the order a job meets them.

A plugin is a module with functions of these names, each marked ``@hookimpl``; it may leave out hooks, and arguments it
does not need. Plugins are called in the order they were loaded, each with what the one before it answered.

``register_styles`` and ``register_loras`` are called once, at load. The others are called for every job, some at the
same time for several jobs: a plain function in a thread, an ``async`` one on the event loop, both with a time limit
(``plugins.hook_timeout_seconds``). Raising, or passing the limit, fails this attempt of the job with the plugin's name;
the job is tried again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from tenkaigen_worker.plugin.types import FinishedJob, Lora, PictureInfo, Prompt, Style

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "tenkaigen_worker"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_styles() -> Iterable[Style]:  # type: ignore[empty-body]
    """Offer styles. A plain function: there is nothing to wait for."""


@hookspec
def register_loras() -> Iterable[Lora]:  # type: ignore[empty-body]
    """Offer LoRAs. A plain function: their files are fetched when a job wants them."""


@hookspec
def transform_prompt(prompt: Prompt) -> Prompt | None:
    """Change the words that go to the model, or answer ``None`` to leave them.

    Raise :class:`~tenkaigen_worker.plugin.Refused` to refuse the request for good; its text is shown to the user.
    """


@hookspec
def process_image(image: Image, info: PictureInfo) -> Image | None:
    """Change a finished picture before it is encoded, or answer ``None`` to leave it.

    The first plugin gets an RGB picture; a plugin may answer RGB, RGBA or L of any size.
    """


@hookspec
def job_finished(job: FinishedJob) -> None:
    """Hear of a job's outcome, after it was written to the database. What goes wrong here is only logged."""
