"""All plugins of a process: found, checked, and called in isolation from each other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import pluggy
from pluggy import HookImpl

from tenkaigen_worker.config import PluginSettings
from tenkaigen_worker.errors import Code, FieldProblem, InfrastructureError, InputError, PluginError
from tenkaigen_worker.names import fold, unknown
from tenkaigen_worker.plugin import hookspecs
from tenkaigen_worker.plugin.calls import Caller, HookFailed
from tenkaigen_worker.plugin.catalog import Catalog
from tenkaigen_worker.plugin.discovery import (
    HOOKS,
    Found,
    check_hooks,
    discover,
    lora_files,
    source_problems,
    style_files,
)
from tenkaigen_worker.plugin.lora_files import LoraCatalog, read_lora
from tenkaigen_worker.plugin.lora_source import anchored
from tenkaigen_worker.plugin.loras import Loras, Registered
from tenkaigen_worker.plugin.problems import Problem, describe_error, problem_of
from tenkaigen_worker.plugin.types import FinishedJob, Lora, PictureInfo, Prompt, Refused, Style
from tenkaigen_worker.resources import shipped

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("tenkaigen.plugin")

STANDARD = "Standard"


@dataclass(frozen=True, slots=True)
class PluginDescription:
    """One plugin as ``tenkaigen plugins`` and the API show it; one that cannot be used has problems and no hooks."""

    name: str
    origin: str
    hooks: tuple[str, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Member:
    """One plugin that was found, what it offered, and what was wrong with it when it was loaded."""

    found: Found
    styles: tuple[Style, ...] = ()
    loras: tuple[Lora, ...] = ()
    problems: tuple[Problem, ...] = ()


class Plugins:
    """The plugins in force, in load order: built-ins, installed packages, then the configured files.

    Python is loaded once; YAML files are read again when they change, whenever styles or LoRAs are looked at.
    """

    def __init__(self, settings: PluginSettings) -> None:
        own = shipped("plugins")
        sources = (own, *settings.paths)
        self._catalog = Catalog(lambda: style_files(sources))
        self._lora_files = LoraCatalog(lambda: lora_files(sources), read_lora)
        self._caller = Caller(settings.hook_timeout_seconds)
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)

        catalogs = (
            Found("styles", "built-in", own, self._catalog),
            Found("loras", "built-in LoRAs", own, self._lora_files),
        )
        self._members = [self._admit(found) for found in (*catalogs, *discover(own, settings.paths))]
        self._source_problems = tuple(
            problem
            for source in settings.paths
            if source.exists() or source not in PluginSettings().paths  # nobody must have a folder called plugins
            for problem in source_problems(source)
        )
        self._chains = {hook: self._in_load_order(hook) for hook in HOOKS}
        self._styles: dict[str, Style] = {}
        self._conflicts: tuple[Problem, ...] = ()
        self._settle_styles()
        self._loras = Registered(self._lora_files, (lora for member in self._members for lora in member.loras))

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
        return (*self._source_problems, *loading, *self._catalog.problems, *self._conflicts, *self._loras.problems)

    def describe(self) -> tuple[PluginDescription, ...]:
        """Describe every plugin, in load order, after what is wrong with the configured paths."""
        self.refresh()
        paths = [PluginDescription("plugins.paths", p.file, (), (p,)) for p in self._source_problems]
        return (*paths, *map(self._describe, self._members))

    # Styles

    @property
    def styles(self) -> tuple[Style, ...]:
        """Every style, Standard first, the others by name."""
        self.refresh()
        return tuple(self._styles.values())

    @property
    def style_names(self) -> tuple[str, ...]:
        """The names of :attr:`styles`, as they are to be shown."""
        return tuple(style.name for style in self.styles)

    def style(self, name: str | None) -> Style:
        """Find a style; no name is Standard. Raises ``InputError`` that lists the names there are."""
        self.refresh()
        known = self._styles.get(fold(name or STANDARD))
        if known is None:
            raise InputError.of([FieldProblem("style", unknown("style", str(name), self.style_names))])
        return known

    # LoRAs

    @property
    def loras(self) -> Loras:
        """Every LoRA that jobs may name."""
        self.refresh()
        return self._loras.loras

    def refresh(self) -> None:
        """Read YAML files that changed. A broken edit is reported, and the last good version stays in force."""
        before = set(self.problems)
        styles, loras = self._catalog.refresh(), self._loras.refresh()
        if styles:
            self._settle_styles()
            log.info("Styles were read again", extra={"action": "styles_refreshed", "styles": len(self._styles)})
        if loras:
            count = len(self._loras.loras.names)
            log.info("LoRAs were read again", extra={"action": "loras_refreshed", "loras": count})
        if styles or loras:
            _log_problems(problem for problem in self.problems if problem not in before)

    # Hooks

    async def transform_prompt(self, prompt: Prompt) -> Prompt:
        """Let every plugin change the words.

        Raises ``InputError`` with code ``refused`` when one refuses them, ``InfrastructureError`` with code
        ``plugin_failed`` when one fails.
        """
        for implementation in self._chains["transform_prompt"]:
            answer = await self._ask(implementation, prompt=prompt)
            if isinstance(answer, Prompt):
                prompt = answer
            elif answer is not None:
                self._fail(implementation, f"it answered {type(answer).__name__}, not a Prompt or None")
        return prompt

    async def process_image(self, image: Image, info: PictureInfo) -> Image:
        """Let every plugin change a finished picture; raises as :meth:`transform_prompt` does."""
        for implementation in self._chains["process_image"]:
            answer = await self._ask(implementation, image=image, info=info)
            if answer is not None and not _is_image(answer):
                self._fail(implementation, f"it answered {type(answer).__name__}, not a PIL image or None")
            image = image if answer is None else answer
        return image

    async def job_finished(self, job: FinishedJob) -> None:
        """Tell every plugin; what goes wrong is logged and goes no further."""
        for implementation in self._chains["job_finished"]:
            try:
                await self._caller.call(implementation, job=job)
            except Refused as refusal:
                self._log_failure(implementation, describe_error(refusal), refusal)
            except HookFailed as failure:
                self._log_failure(implementation, str(failure), failure.__cause__)

    async def _ask(self, implementation: HookImpl, **arguments: Any) -> Any:
        try:
            return await self._caller.call(implementation, **arguments)
        except Refused as refusal:
            text = str(refusal) or f"The plugin {self._name_of(implementation)} refused this request."
            raise InputError(text, code=Code.REFUSED) from refusal
        except HookFailed as failure:
            self._fail(implementation, str(failure), failure.__cause__)

    def _fail(self, implementation: HookImpl, why: str, cause: BaseException | None = None) -> NoReturn:
        """End the job's attempt."""
        raise InfrastructureError(Code.PLUGIN_FAILED, self._log_failure(implementation, why, cause)) from cause

    def _log_failure(self, implementation: HookImpl, why: str, cause: BaseException | None) -> str:
        """Log what failed, and answer it in words for users: these have the plugin's name, not its place on disk."""
        text = f"The plugin {self._name_of(implementation)} failed in {implementation.function.__name__}: {why}"
        extra = {"action": "plugin_failed", "plugin": implementation.plugin_name}
        log.error("%s", text, exc_info=cause, extra=extra)
        return text

    def _name_of(self, implementation: HookImpl) -> str:
        return next(m.found.name for m in self._members if m.found.plugin is implementation.plugin)

    # Loading

    def _admit(self, found: Found) -> _Member:
        """Register a plugin, unless something is wrong with it, and take the styles and LoRAs it offers."""
        problems = found.problems or check_hooks(self._manager, found)
        if problems:
            return _Member(found, problems=tuple(problems))
        try:
            self._manager.register(found.plugin, found.origin)
        except (ValueError, pluggy.PluginValidationError) as error:
            return _Member(found, problems=(problem_of(error, found.file, "cannot be registered"),))
        if found.plugin in (self._catalog, self._lora_files):
            return _Member(found)
        return self._with_offers(found)

    def _with_offers(self, found: Found) -> _Member:
        offers: dict[type, tuple[Any, ...]] = {}
        for hook, kind in (("register_styles", Style), ("register_loras", Lora)):
            try:
                offers[kind] = tuple(_adopted(value, kind, found) for value in self._offered(found, hook))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                return _Member(found, problems=(problem_of(error, found.file, f"raised in {hook}"),))
        return _Member(found, styles=offers[Style], loras=offers[Lora])

    def _offered(self, found: Found, hook: str) -> Iterator[Any]:
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            if implementation.plugin is found.plugin:
                yield from implementation.function()

    def _in_load_order(self, hook: str) -> list[HookImpl]:
        """List a hook's implementations, first loaded first (pluggy's own order is the reverse)."""
        order = {name: place for place, (name, _) in enumerate(self._manager.list_name_plugin())}
        found: list[HookImpl] = getattr(self._manager.hook, hook).get_hookimpls()
        return sorted(found, key=lambda impl: (not impl.tryfirst, impl.trylast, order[impl.plugin_name]))

    def _settle_styles(self) -> None:
        """Give every name to one style. Those that replace others come last, whatever the load order."""
        offered = [*self._catalog.register_styles(), *(style for member in self._members for style in member.styles)]
        settled: dict[str, Style] = {}
        conflicts: list[Problem] = []
        for style in sorted(offered, key=lambda style: style.replaces):
            holder = settled.get(fold(style.name))
            if holder and not style.replaces:
                text = f"{holder.origin} already has a style {holder.name!r}: rename one, or say 'replaces: true' here"
                conflicts.append(Problem(style.origin, None, text))
            else:
                settled[fold(style.name)] = style

        # Jobs that name no style must run even while somebody edits standard.yaml.
        standard = settled.pop(fold(STANDARD), None) or Style(STANDARD, origin="built-in")
        others = sorted(settled.values(), key=lambda style: style.name.casefold())
        self._styles = {fold(style.name): style for style in (standard, *others)}
        self._conflicts = tuple(conflicts)

    def _describe(self, member: _Member) -> PluginDescription:
        found = member.found
        conflicts = (*self._conflicts, *self._loras.problems)
        problems = [*member.problems, *(p for p in conflicts if p.file == found.origin)]
        python = {m.found.origin for m in self._members}
        if found.plugin is self._catalog:
            problems += [*self._catalog.problems, *(p for p in self._conflicts if p.file not in python)]
        if found.plugin is self._lora_files:
            problems += [problem for problem in self._loras.problems if problem.file not in python]
        hooks = [hook for hook in HOOKS if any(i.plugin is found.plugin for i in self._chains[hook])]
        return PluginDescription(found.name, found.origin, tuple(hooks), tuple(problems))


def _adopted(value: Any, kind: type, found: Found) -> Any:
    """Take what a plugin offers as its own; a relative path in it starts at the plugin's folder."""
    if not isinstance(value, kind):
        raise TypeError(f"it offered {type(value).__name__}, not a {kind.__name__}")
    if isinstance(value, Lora):
        value = replace(value, source=anchored(value.source, found.file.absolute().parent))
    return replace(value, origin=found.origin)


def _log_problems(problems: Iterable[Problem]) -> None:
    for problem in problems:
        extra = {"action": "plugin_problem", "file": problem.file, "line": problem.line}
        log.warning("Plugin problem: %s", problem, extra=extra)


def _is_image(value: object) -> bool:
    from PIL.Image import Image

    return isinstance(value, Image)
