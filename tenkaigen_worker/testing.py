"""What a plugin's author needs to test it.

::

    from tenkaigen_worker.testing import load_plugin


    def test_ink_is_added():
        plugin = load_plugin("plugins/ink.py")
        assert plugin.transform_prompt("A fox").text == "A fox, black ink"

Everything goes the way it goes in a worker: found, checked, called with a time limit. What a worker would report as a
problem is an ``AssertionError`` here. The functions are plain ones: call them from tests that are not ``async``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from tenkaigen_worker.config import PluginSettings
from tenkaigen_worker.errors import JobError
from tenkaigen_worker.plugin.discovery import Found, import_file, python_files
from tenkaigen_worker.plugin.manager import BUILT_IN, Plugins
from tenkaigen_worker.plugin.template_files import Expanded, expand
from tenkaigen_worker.plugin.types import FinishedJob, PictureInfo, Prompt, Refused, Style
from tenkaigen_worker.recipe import apply_style

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LoadedPlugin", "load_plugin"]

T = TypeVar("T")


class LoadedPlugin:
    """One plugin, with the shipped styles and templates and no other plugin beside it."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks that it has."""
        plugins = [plugin for plugin in self._plugins.describe() if not plugin.origin.startswith(BUILT_IN)]
        return tuple(hook for plugin in plugins for hook in plugin.hooks)

    @property
    def styles(self) -> tuple[Style, ...]:
        """All styles: its own, and the shipped ones."""
        return self._plugins.styles

    def style(self, name: str) -> Style:
        """Find a style; raises ``AssertionError`` that lists those there are."""
        try:
            return self._plugins.style(name)
        except JobError as error:
            raise AssertionError(str(error)) from None

    def expand(self, template: str, *, prompt: str = "", **variables: str) -> Expanded:
        """Fill in a template; raises ``AssertionError`` with all that is wrong."""
        try:
            return expand(self._plugins.template(template), variables, prompt=prompt)
        except JobError as error:
            raise AssertionError(str(error)) from None

    def transform_prompt(self, text: str, *, style: str = "Standard", negative: str | None = None) -> Prompt:
        """Answer what the model gets for a user's words in a style.

        Raises :class:`~tenkaigen_worker.plugin.Refused` when the plugin refuses them.
        """
        return _run(self._plugins.transform_prompt(apply_style(self.style(style), text, negative)))

    def process_image(self, image: Image, *, index: int = 0, seed: int = 0, style: str = "Standard") -> Image:
        """Answer what is published in place of ``image``, which is RGB in a worker; raises as the above."""
        return _run(self._plugins.process_image(image, PictureInfo(index, seed, style)))

    def job_finished(self, job: FinishedJob) -> None:
        """Tell it of an outcome; raises ``AssertionError`` with what a worker would only log."""
        if failures := _run(self._plugins.job_finished(job)):
            raise AssertionError("\n".join(failures))


def load_plugin(source: Path | str | ModuleType | object, *, hook_timeout_seconds: float = 10) -> LoadedPlugin:
    """Load a file, a folder of them, a module, or an object with hooks.

    Raises ``AssertionError`` with file, line and cause when something is wrong with it.
    """
    paths = (Path(source),) if isinstance(source, Path | str) else ()
    found = map(import_file, python_files(paths)) if paths else [_found(source)]
    plugins = Plugins(PluginSettings(paths=paths, hook_timeout_seconds=hook_timeout_seconds), found)
    if plugins.problems:
        raise AssertionError("\n".join(map(str, plugins.problems)))
    return LoadedPlugin(plugins)


def _found(plugin: object) -> Found:
    module = plugin if isinstance(plugin, ModuleType) else inspect.getmodule(type(plugin))
    name = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__name__
    file = getattr(module, "__file__", None) or name
    return Found(name, file, Path(file), plugin)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a hook to its end; what a user would read as a failure is the author's to mend."""
    try:
        return asyncio.run(work)
    except JobError as error:
        if isinstance(error.__cause__, Refused):
            raise error.__cause__ from None
        raise AssertionError(str(error)) from error.__cause__
