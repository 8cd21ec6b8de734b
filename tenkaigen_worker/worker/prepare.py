"""Prepare: from what was asked to a recipe and its files. What is wrong ends here, before any GPU time."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from uuid import UUID

from tenkaigen_worker.config import LoraSettings, Settings
from tenkaigen_worker.config_generation import GenerationSettings
from tenkaigen_worker.engine.base import EngineInfo, Inputs
from tenkaigen_worker.errors import ConfigError, FieldProblem, InputError
from tenkaigen_worker.jobs import Made
from tenkaigen_worker.loras.cache import LoraCache
from tenkaigen_worker.loras.choose import choose, usable, why_not, with_trigger_words
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.plugin.template_files import expand
from tenkaigen_worker.plugin.types import PLACEHOLDER, Style
from tenkaigen_worker.recipe import EDIT_PIXELS, SEEDS, Model, NoSuchMode, Recipe, apply_style, choose_mode, resolve
from tenkaigen_worker.references.fetch import Fetcher
from tenkaigen_worker.references.resolve import Edited, Fitted, OwnJobs, References
from tenkaigen_worker.request import Names, Request, check_size, every_spelling
from tenkaigen_worker.storage.base import Storage

log = logging.getLogger("tenkaigen.worker")


class NoJobs:
    """Where there is no table, nobody has earlier jobs."""

    async def made(self, job_id: UUID, *, user_id: UUID | None) -> Made | None:
        """Nothing, for any job."""
        return None


@dataclass(frozen=True, slots=True)
class Sources:
    """Where everything comes from that a request names."""

    plugins: Plugins
    generation: GenerationSettings
    lora_settings: LoraSettings
    lora_files: LoraCache
    references: References

    @classmethod
    def of(cls, settings: Settings, plugins: Plugins, storage: Storage, jobs: OwnJobs) -> Sources:
        """Put them together; nothing is opened yet."""
        folder = settings.state_dir / "references"
        references = References(settings.references, storage, jobs, folder, Fetcher(settings.references))
        lora_files = LoraCache.of(settings.loras, settings.state_dir)
        return cls(plugins, settings.generation, settings.loras, lora_files, references)

    @property
    def names(self) -> Names:
        """All names there are; whether a LoRA may be used is said when it is chosen."""
        loras = every_spelling(self.plugins.loras.aliases)
        return Names(self.plugins.style_names, self.generation.mode_names, loras, tuple(self.templates))

    @property
    def templates(self) -> dict[str, str]:
        """The templates with their descriptions."""
        return {template.name: template.description for template in self.plugins.templates}

    def offered(self, model: Model) -> Names:
        """The names that jobs may use on this model."""
        loras = every_spelling(self.usable_loras(model.base))
        return replace(self.names, modes=self.usable_modes(model), loras=loras)

    def usable_loras(self, base: str) -> dict[str, tuple[str, ...]]:
        """The LoRAs that jobs may use on a model with this base, with their aliases."""
        loras = self.plugins.loras
        may_be_used = usable(loras, self.lora_settings, base)
        return {name: aliases for name, aliases in loras.aliases.items() if name in may_be_used}

    def usable_modes(self, model: Model) -> tuple[str, ...]:
        """The modes that jobs can be made in on this model, the default one first."""
        return tuple(name for name in self.generation.mode_names if self.why_no_mode(name, model) is None)

    def why_no_mode(self, name: str, model: Model) -> str | None:
        """Why no job can be made in a mode on this model, and what to do; ``None`` when jobs can be."""
        mode = self.generation.modes[name]
        if mode.edit and model.edit_model is None:
            return "this engine makes no edits. Name the model that makes them in engine.edit_model"
        if mode.edit and model.checkpoints and mode.checkpoint is None:
            return (
                f"no checkpoint was made for it. Name one of engine.checkpoints in generation.modes.{name}.checkpoint"
            )
        if mode.lora is None:
            return None
        lora = self.plugins.loras.find(mode.lora)
        why = why_not(lora, self.lora_settings, model.base) if lora else f"there is no LoRA {mode.lora}"
        return why and f"{why}. Add a LoRA that can be used ('tenkaigen loras list' shows those there are)"

    def check_modes(self, model: Model) -> None:
        """Say which modes no job can be made in; raise ``ConfigError`` when the default one is among them."""
        for name in self.generation.mode_names:
            if (why := self.why_no_mode(name, model)) is None:
                continue
            if name == self.generation.default_mode:
                raise ConfigError(
                    f"generation.default_mode is {name}, and no job can be made in it: {why}, or choose another "
                    "default mode"
                )
            log.warning("The mode %s is not offered: %s", name, why, extra={"action": "mode_left_out", "mode": name})


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that the engine can make."""

    recipe: Recipe
    inputs: Inputs


class BeyondLimits(InputError):
    """A picture of ``pixels`` is more than this engine can draw; another one may have more memory."""

    def __init__(self, error: InputError, pixels: int) -> None:
        super().__init__(str(error), code=error.code, problems=error.problems)
        self.pixels = pixels


@asynccontextmanager
async def prepared(
    request: Request, sources: Sources, engine: EngineInfo, *, user_id: UUID | None = None
) -> AsyncIterator[Prepared]:
    """Settle what a request left open, and hold the files that it needs while the block runs.

    Raises :class:`~tenkaigen_worker.errors.InputError` when something about it is wrong, when a plugin refuses it, or
    when it does not fit the model; :class:`BeyondLimits` when the picture is beyond what the engine can draw;
    ``InfrastructureError`` for what may pass.
    """
    plugins, model = sources.plugins, engine.model
    words = _words(request, plugins)
    style = plugins.style(words.style, prompt=words.prompt)
    mode = choose_mode(request, style, sources.generation)
    if why := sources.why_no_mode(mode, model):
        raise NoSuchMode("mode", f"{mode} cannot be used here: {why}", mode)
    loras = choose(
        known=plugins.loras,
        settings=sources.lora_settings,
        base=model.base,
        asked=request.loras or (),
        franchise=request.franchise,
        style=style,
        mode_lora=sources.generation.modes[mode].lora,
        prompt=words.prompt,
    )
    prompt = apply_style(style, words.prompt, words.negative)
    prompt = await plugins.transform_prompt(replace(prompt, text=with_trigger_words(prompt.text, loras)))
    async with AsyncExitStack() as held:
        given = edited = None
        if sources.generation.modes[mode].edit:
            edited = await held.enter_async_context(_edited(request, sources, model, user_id))
        elif request.reference is not None:
            given = await held.enter_async_context(_fitted(request, style, sources.references, user_id))
        recipe = resolve(
            request,
            prompt=prompt,
            style=style,
            generation=sources.generation,
            model=model,
            seed=secrets.randbelow(SEEDS),
            loras=[one.applied for one in loras],
            given=given,
            edited=edited,
        )
        _check_limits(recipe, engine)
        files = await held.enter_async_context(sources.lora_files.hold([one.lora for one in loras]))
        inputs = Inputs(files, given.reference, given.mask) if given else Inputs(files)
        yield Prepared(recipe, replace(inputs, references=edited.files) if edited else inputs)


def _check_limits(recipe: Recipe, engine: EngineInfo) -> None:
    try:
        where, references = f"{engine.device} has memory for", len(recipe.references)
        check_size(recipe.width, recipe.height, engine.limits, where=where, references=references)
    except InputError as error:
        raise BeyondLimits(error, recipe.width * recipe.height + references * EDIT_PIXELS) from None


@dataclass(frozen=True, slots=True)
class _Words:
    """What is asked for in words, after the template was filled in and before the style."""

    prompt: str
    negative: str | None
    style: str | None


def _words(request: Request, plugins: Plugins) -> _Words:
    if request.template is None:
        return _Words(request.prompt, request.negative_prompt, request.style)
    template = plugins.template(request.template)
    if request.prompt.strip() and PLACEHOLDER not in template.prompt + template.negative_prompt:
        text = f"the template {template.name} says everything and has no place for it: leave it out"
        raise InputError.of([FieldProblem("prompt", text)])
    expanded = expand(template, request.template_variables or {}, prompt=request.prompt)
    negatives = [words for words in (request.negative_prompt, expanded.negative_prompt) if words]
    return _Words(expanded.prompt, ", ".join(negatives) or None, request.style or template.style)


def _fitted(
    request: Request, style: Style, references: References, user_id: UUID | None
) -> AbstractAsyncContextManager[Fitted]:
    """Fetch and fit what a job starts from. A size that it asks for counts as a whole, then its style's."""
    width, height = request.width, request.height
    if width is None and height is None:
        width, height = style.width, style.height
    return references.fitted(request.reference or "", request.mask, user_id=user_id, width=width, height=height)


def _edited(
    request: Request, sources: Sources, model: Model, user_id: UUID | None
) -> AbstractAsyncContextManager[Edited]:
    """Fetch the pictures that a job changes. Unless it asks for a size, the first one's shape counts."""
    generation = sources.generation
    width = generation.default_width or model.default_width
    height = generation.default_height or model.default_height
    return sources.references.edited(
        request.reference or "",
        request.more_references or (),
        user_id=user_id,
        width=request.width,
        height=request.height,
        pixels=width * height,
    )
