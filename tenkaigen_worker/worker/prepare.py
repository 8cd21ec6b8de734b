"""Prepare: from what was asked to a recipe. What is wrong with the input ends here, before any GPU time."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from tenkaigen_worker.config import GenerationSettings
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.recipe import SEEDS, Model, Recipe, apply_style, resolve
from tenkaigen_worker.request import Request, read_request


def read(fields: Mapping[str, Any], *, plugins: Plugins, generation: GenerationSettings) -> Request:
    """Check a request's fields; needs no model. Raises :class:`~tenkaigen_worker.errors.InputError`."""
    return read_request(fields, styles=plugins.style_names, modes=generation.modes)


async def resolve_request(
    request: Request, *, plugins: Plugins, generation: GenerationSettings, model: Model
) -> Recipe:
    """Settle what a request left open: style, plugins, mode, sizes, seeds.

    Raises :class:`~tenkaigen_worker.errors.InputError` when a plugin refuses it, or when it does not fit the model.
    """
    prompt = apply_style(plugins.style(request.style), request.prompt, request.negative_prompt)
    prompt = await plugins.transform_prompt(prompt)
    seed = secrets.randbelow(SEEDS)
    return resolve(request, prompt=prompt, generation=generation, model=model, seed=seed)
