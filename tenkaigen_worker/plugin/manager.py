"""All plugins of a process: found, checked, and called in isolation from each other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

import pluggy
from pluggy import HookImpl

from tenkaigen_worker.config import PluginSettings
from tenkaigen_worker.errors import Code, InfrastructureError, InputError, PluginError
from tenkaigen_worker.names import fold, mentioned
from tenkaigen_worker.plugin import hookspecs
from tenkaigen_worker.plugin.calls import Caller, Chain, HookFailed, HookRefused
from tenkaigen_worker.plugin.catalog import Catalog
from tenkaigen_worker.plugin.chains import PROMPTS, images, news
from tenkaigen_worker.plugin.discovery import (
    HOOKS,
    LORAS,
    STYLES,
    TEMPLATES,
    Found,
    discover,
    source_problems,
    yaml_files,
)
from tenkaigen_worker.plugin.lora_files import LoraFiles
from tenkaigen_worker.plugin.loras import Loras, Registered
from tenkaigen_worker.plugin.members import Member, admit
from tenkaigen_worker.plugin.problems import Problem
from tenkaigen_worker.plugin.shelf import Shelf
from tenkaigen_worker.plugin.style_files import StyleFiles
from tenkaigen_worker.plugin.template_files import read_template
from tenkaigen_worker.plugin.types import AUTO, FinishedJob, PictureInfo, Prompt, Style, Template
from tenkaigen_worker.resources import shipped

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("tenkaigen.plugin")

T = TypeVar("T")

STANDARD = "Standard"
BUILT_IN = "built-in"
BUILT_IN_LORAS = "built-in LoRAs"

# Jobs ask for styles and templates again and again; they need not look at all files each time.
LOOK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class PluginDescription:
    """One plugin as ``tenkaigen plugins`` and the API show it; one that cannot be used has problems and no hooks.

    ``offers`` counts what it registered: ``{"styles": 9}``.
    """

    name: str
    origin: str
    hooks: tuple[str, ...]
    problems: tuple[Problem, ...]
    offers: Mapping[str, int] = field(default_factory=dict)


class Plugins:
    """The plugins in force, in load order: built-ins, installed packages, then the configured files.

    Python is loaded once; YAML files are read again when they change, whenever what they offer is looked at.
    ``found`` takes the place of all Python plugins that could be found.
    """

    def __init__(self, settings: PluginSettings, found: Iterable[Found] | None = None) -> None:
        self._looked = monotonic()
        own = shipped("plugins")
        sources = (own, *settings.paths)
        self._style_files = StyleFiles(lambda: yaml_files(sources, STYLES))
        self._templates = Shelf("template", Catalog(lambda: yaml_files(sources, TEMPLATES), read_template))
        self._lora_files = LoraFiles(lambda: yaml_files(sources, LORAS))
        self._caller = Caller(settings.hook_timeout_seconds)
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)

        built_in = [
            Found(STYLES, BUILT_IN, own, self._style_files),
            Found(LORAS, BUILT_IN_LORAS, own, self._lora_files),
            *_picture_plugins(settings, own),
        ]
        others = discover(own, settings.paths) if found is None else found
        yaml = (self._style_files, self._lora_files)  # what these offer may change, and is looked at anew
        self._members = [
            admit(self._manager, candidate, offers=candidate.plugin not in yaml) for candidate in (*built_in, *others)
        ]
        self._source_problems = tuple(
            problem
            for source in settings.paths
            if source.exists() or source not in PluginSettings().paths  # nobody must have a folder called plugins
            for problem in source_problems(source)
        )
        self._chains = {hook: self._in_load_order(hook) for hook in HOOKS}
        self._styles = Shelf("style", self._style_files, (style for m in self._members for style in m.styles))
        self._loras = Registered(self._lora_files, (lora for m in self._members for lora in m.loras))

    @classmethod
    def load(cls, settings: PluginSettings) -> Plugins:
        """Find and load everything. What is broken is left out and stands in :attr:`problems`.

        Raises :class:`~tenkaigen_worker.errors.PluginError` with all problems when ``settings.strict`` is set.
        """
        plugins = cls(settings)
        if settings.strict and plugins.problems:
            listed = "\n".join(f"  {problem}" for problem in plugins.problems)
            raise PluginError(f"plugins.strict is on, and something is wrong with the plugins:\n{listed}")
        _log_problems(plugins.problems)
        return plugins

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All that is wrong now."""
        loading = (problem for member in self._members for problem in member.problems)
        offers = (self._styles, self._templates, self._loras)
        return (*self._source_problems, *loading, *(problem for offer in offers for problem in offer.problems))

    def describe(self) -> tuple[PluginDescription, ...]:
        """Describe every plugin, in load order, after what is wrong with the configured paths."""
        self.refresh()
        paths = [PluginDescription("plugins.paths", p.file, (), (p,)) for p in self._source_problems]
        offers = {TEMPLATES: len(self._templates.items)}
        templates = PluginDescription(TEMPLATES, BUILT_IN, (), self._templates.problems, offers)
        styles, loras, *others = map(self._describe, self._members)
        return (*paths, styles, templates, loras, *others)

    # Styles and templates

    @property
    def styles(self) -> tuple[Style, ...]:
        """Every style, Standard first, the others by name."""
        self.refresh()
        standard = self._standard()
        return (standard, *(style for style in self._styles.items if style is not standard))

    @property
    def style_names(self) -> tuple[str, ...]:
        """The names of :attr:`styles`, as they are to be shown."""
        return tuple(style.name for style in self.styles)

    def style(self, name: str | None, *, prompt: str = "") -> Style:
        """Find a style; no name is Standard, ``auto`` the style that ``prompt`` names, or else Standard.

        Raises ``InputError`` that lists the names there are.
        """
        self.refresh()
        if name and fold(name) == AUTO:
            name = mentioned(prompt, self._styles.names)
        return self._styles.find(name) if name and fold(name) != fold(STANDARD) else self._standard()

    def _standard(self) -> Style:
        """Jobs that name no style must run even while somebody edits standard.yaml."""
        return self._styles.get(STANDARD) or Style(STANDARD, origin=BUILT_IN)

    @property
    def templates(self) -> tuple[Template, ...]:
        """Every template, by name."""
        self.refresh()
        return self._templates.items

    def template(self, name: str) -> Template:
        """Find a template. Raises ``InputError`` that lists the names there are."""
        self.refresh()
        return self._templates.find(name)

    @property
    def loras(self) -> Loras:
        """Every LoRA that jobs may name."""
        self.refresh()
        return self._loras.loras

    def refresh(self, *, at_once: bool = False) -> None:
        """Read YAML files that changed. A broken edit is reported, and the last good version stays in force.

        Unless it must be ``at_once``, nobody looks when somebody has looked within the last second.
        """
        if not at_once and monotonic() - self._looked < LOOK_AGAIN_SECONDS:
            return
        self._looked = monotonic()
        before = set(self.problems)
        if any([self._styles.refresh(), self._templates.refresh(), self._loras.refresh()]):
            counts = {
                STYLES: len(self._styles.items),
                TEMPLATES: len(self._templates.items),
                LORAS: len(self._loras.loras.names),
            }
            log.info("The YAML files of plugins were read again", extra={"action": "plugins_refreshed", **counts})
            _log_problems(problem for problem in self.problems if problem not in before)

    # Hooks

    async def transform_prompt(self, prompt: Prompt) -> Prompt:
        """Let every plugin change the words.

        Raises ``InputError`` with code ``refused`` when one refuses them, ``InfrastructureError`` with code
        ``plugin_failed`` when one fails.
        """
        return await self._ask("transform_prompt", prompt, PROMPTS)

    async def process_image(self, image: Image, info: PictureInfo) -> Image:
        """Let every plugin change a finished picture; raises as :meth:`transform_prompt` does."""
        return await self._ask("process_image", image, images(info))

    async def job_finished(self, job: FinishedJob) -> list[str]:
        """Tell every plugin. What goes wrong is logged, answered in words, and goes no further."""
        failures: list[str] = []
        waiting = self._chains["job_finished"]
        while waiting:
            try:
                await self._caller.call(waiting, None, news(job))
                break
            except HookFailed as failure:
                failures.append(self._log_failure(failure))
                waiting = waiting[waiting.index(failure.implementation) + 1 :]
        return failures

    async def _ask(self, hook: str, value: T, chain: Chain[T]) -> T:
        try:
            return await self._caller.call(self._chains[hook], value, chain)
        except HookRefused as refusal:
            text = str(refusal.__cause__) or f"The plugin {self._name_of(refusal.implementation)} refused this request."
            raise InputError(text, code=Code.REFUSED) from refusal.__cause__
        except HookFailed as failure:
            raise InfrastructureError(Code.PLUGIN_FAILED, self._log_failure(failure)) from failure.__cause__

    def _log_failure(self, failure: HookFailed) -> str:
        """Log what failed, and answer it in words for users: these have the plugin's name, not its place on disk."""
        implementation = failure.implementation
        text = f"The plugin {self._name_of(implementation)} failed in {implementation.function.__name__}: {failure}"
        extra = {"action": "plugin_failed", "plugin": implementation.plugin_name}
        log.error("%s", text, exc_info=failure.__cause__, extra=extra)
        return text

    def _name_of(self, implementation: HookImpl) -> str:
        return next(m.found.name for m in self._members if m.found.plugin is implementation.plugin)

    def _in_load_order(self, hook: str) -> list[HookImpl]:
        """List a hook's implementations, first loaded first (pluggy's own order is the reverse)."""
        order = {name: place for place, (name, _) in enumerate(self._manager.list_name_plugin())}
        found: list[HookImpl] = getattr(self._manager.hook, hook).get_hookimpls()
        return sorted(found, key=lambda impl: (not impl.tryfirst, impl.trylast, order[impl.plugin_name]))

    def _describe(self, member: Member) -> PluginDescription:
        found = member.found
        problems = [p for p in (*self._styles.problems, *self._loras.problems) if p.file == found.origin]
        offers = {STYLES: len(member.styles), LORAS: len(member.loras)}
        python = {m.found.origin for m in self._members}
        if found.plugin is self._style_files:
            problems = [p for p in self._styles.problems if p.file not in python]
            offers = {STYLES: len(self._style_files.items)}
        elif found.plugin is self._lora_files:
            problems = [p for p in self._loras.problems if p.file not in python]
            offers = {LORAS: len(self._lora_files.items)}
        hooks = [hook for hook in HOOKS if any(i.plugin is found.plugin for i in self._chains[hook])]
        offers = {kind: count for kind, count in offers.items() if count}
        return PluginDescription(found.name, found.origin, tuple(hooks), (*member.problems, *problems), offers)


def _picture_plugins(settings: PluginSettings, own: Path) -> list[Found]:
    """The built-in plugins that the settings switch on; they alone need Pillow here."""
    if not (settings.resize or settings.watermark):
        return []
    from tenkaigen_worker.plugin.pictures import picture_plugins

    return [Found(name, f"built-in, by plugins.{name}", own, plugin) for name, plugin in picture_plugins(settings)]


def _log_problems(problems: Iterable[Problem]) -> None:
    for problem in problems:
        extra = {"action": "plugin_problem", "file": problem.file, "line": problem.line}
        log.warning("Plugin problem: %s", problem, extra=extra)
