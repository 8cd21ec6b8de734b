"""Prepare: from what was asked to a recipe and its files. What is wrong ends here, before any GPU time."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
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
from tenkaigen_worker.recipe import SEEDS, Recipe, apply_style, choose_mode, resolve
from tenkaigen_worker.references.fetch import Fetcher
from tenkaigen_worker.references.resolve import Fitted, OwnJobs, References
from tenkaigen_worker.request import Names, Request, check_size, every_spelling
from tenkaigen_worker.storage.base import Storage


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

    def offered(self, base: str) -> Names:
        """The names that jobs may use on a model with this base."""
        loras = every_spelling(self.usable_loras(base))
        return replace(self.names, modes=self.usable_modes(base), loras=loras)

    def usable_loras(self, base: str) -> dict[str, tuple[str, ...]]:
        """The LoRAs that jobs may use on a model with this base, with their aliases."""
        loras = self.plugins.loras
        may_be_used = usable(loras, self.lora_settings, base)
        return {name: aliases for name, aliases in loras.aliases.items() if name in may_be_used}

    def usable_modes(self, base: str) -> tuple[str, ...]:
        """The modes whose LoRA, if they need one, is there for a model with this base; the default one first."""
        loras, may_be_used = self.plugins.loras, self.usable_loras(base)
        return tuple(
            name
            for name in self.generation.mode_names
            if (wanted := self.generation.modes[name].lora) is None
            or ((lora := loras.find(wanted)) is not None and lora.name in may_be_used)
        )

    def check_default_mode(self, base: str) -> None:
        """Raise ``ConfigError`` when on a model with this base every job that names no mode would fail."""
        name = self.generation.default_mode
        wanted = self.generation.modes[name].lora
        if wanted is None or name in self.usable_modes(base):
            return
        lora = self.plugins.loras.find(wanted)
        why = why_not(lora, self.lora_settings, base) if lora else f"there is no LoRA {wanted}"
        raise ConfigError(
            f"generation.default_mode is {name}, and no job can be made in it: {why}. Add a LoRA that can be used "
            "('tenkaigen loras list' shows those there are), or choose another default mode"
        )


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
        given = await _given(request, style, sources.references, user_id, held)
        recipe = resolve(
            request,
            prompt=prompt,
            style=style,
            generation=sources.generation,
            model=model,
            seed=secrets.randbelow(SEEDS),
            loras=[one.applied for one in loras],
            given=given,
        )
        _check_limits(recipe, engine)
        files = await held.enter_async_context(sources.lora_files.hold([one.lora for one in loras]))
        inputs = Inputs(files, given.reference, given.mask) if given else Inputs(files)
        yield Prepared(recipe, inputs)


def _check_limits(recipe: Recipe, engine: EngineInfo) -> None:
    try:
        check_size(recipe.width, recipe.height, engine.limits, where=f"{engine.device} has memory for")
    except InputError as error:
        raise BeyondLimits(error, recipe.width * recipe.height) from None


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


async def _given(
    request: Request, style: Style, references: References, user_id: UUID | None, held: AsyncExitStack
) -> Fitted | None:
    """Fetch and fit what a job starts from. A size that it asks for counts as a whole, then its style's."""
    if request.reference is None:
        return None
    width, height = request.width, request.height
    if width is None and height is None:
        width, height = style.width, style.height
    fitted = references.fitted(request.reference, request.mask, user_id=user_id, width=width, height=height)
    return await held.enter_async_context(fitted)
