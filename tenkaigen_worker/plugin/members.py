"""Takes plugins in: checked, registered, and asked for the styles and LoRAs they offer from Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pluggy

from tenkaigen_worker.plugin.discovery import Found, check_hooks
from tenkaigen_worker.plugin.lora_source import anchored
from tenkaigen_worker.plugin.problems import Problem, problem_of
from tenkaigen_worker.plugin.types import Lora, Style


@dataclass(frozen=True, slots=True)
class Member:
    """One plugin that was found, what it offered, and what was wrong with it when it was loaded."""

    found: Found
    styles: tuple[Style, ...] = ()
    loras: tuple[Lora, ...] = ()
    problems: tuple[Problem, ...] = ()


def admit(manager: pluggy.PluginManager, found: Found, *, offers: bool) -> Member:
    """Register a plugin, unless something is wrong with it; with ``offers``, take the styles and LoRAs it has."""
    problems = found.problems or check_hooks(manager, found)
    if problems:
        return Member(found, problems=tuple(problems))
    try:
        manager.register(found.plugin, found.origin)
    except (ValueError, pluggy.PluginValidationError) as error:
        return Member(found, problems=(problem_of(error, found.file, "cannot be registered"),))
    return _with_offers(manager, found) if offers else Member(found)


def _with_offers(manager: pluggy.PluginManager, found: Found) -> Member:
    offers: dict[type, tuple[Any, ...]] = {}
    for hook, kind in (("register_styles", Style), ("register_loras", Lora)):
        try:
            offers[kind] = tuple(_adopted(value, kind, found) for value in _offered(manager, found, hook))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return Member(found, problems=(problem_of(error, found.file, f"raised in {hook}"),))
    return Member(found, styles=offers[Style], loras=offers[Lora])


def _offered(manager: pluggy.PluginManager, found: Found, hook: str) -> Iterator[Any]:
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        if implementation.plugin is found.plugin:
            yield from implementation.function()


def _adopted(value: Any, kind: type, found: Found) -> Any:
    """Take what a plugin offers as its own; a relative path in it starts at the plugin's folder."""
    if not isinstance(value, kind):
        raise TypeError(f"it offered {type(value).__name__}, not a {kind.__name__}")
    if isinstance(value, Lora):
        value = replace(value, source=anchored(value.source, found.file.absolute().parent))
    return replace(value, origin=found.origin)
