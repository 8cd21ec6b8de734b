"""Finding plugins: files in folders, installed entry points; importing them, and checking their hooks."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pluggy

from tenkaigen_worker.names import suggest
from tenkaigen_worker.plugin import hookspecs
from tenkaigen_worker.plugin.problems import Problem, problem_of

YAML_SUFFIXES = (".yaml", ".yml")

# What YAML files may be, which is the name of their folder.
STYLES, TEMPLATES, LORAS = KINDS = ("styles", "templates", "loras")

# Each hook with the names of its arguments.
HOOKS = {
    name: tuple(inspect.signature(spec).parameters)
    for name, spec in vars(hookspecs).items()
    if hasattr(spec, f"{hookspecs.PROJECT}_spec")
}


@dataclass(frozen=True, slots=True)
class Found:
    """A plugin: ``name`` is short, for users; ``origin`` says where it is, for operators.

    ``plugin`` is ``None`` when it could not be imported; ``problems`` says why.
    """

    name: str
    origin: str
    file: Path
    plugin: object | None
    problems: tuple[Problem, ...] = ()


def kind_of(place: Path) -> str:
    """Say what a YAML file, or what is in a folder, is by its folder's name: everything is a style elsewhere."""
    folder = place.parent if place.suffix in YAML_SUFFIXES else place
    name = folder.name or folder.absolute().name
    return name if name in KINDS else STYLES


def yaml_files(sources: Sequence[Path], kind: str) -> dict[str, os.stat_result | None]:
    """Find what single files and folders (at the top, and in one named ``kind``) have of a kind, each file once.

    Answers how each looks on disk, ``None`` where that cannot be seen. This runs for every job: one ``stat`` a file.
    """
    places = [place for source in sources for place in (source, source / kind) if kind_of(place) == kind]
    return _each_once([file for place in places for file in _files(place, YAML_SUFFIXES)])


def python_files(sources: Sequence[Path]) -> list[Path]:
    """List the Python files of folders (at the top) and single files, each file once."""
    return list(map(Path, _each_once([file for source in sources for file in _files(source, (".py",))])))


def _files(source: Path, suffixes: tuple[str, ...]) -> list[str]:
    """List a folder, or the single file itself. Names that begin with ``.`` or ``_`` are nobody's plugin."""
    if source.suffix in suffixes and source.is_file():
        return [str(source)]
    try:
        with os.scandir(source) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.endswith(suffixes) and entry.name[0] not in "._" and not entry.is_dir()
            ]
    except OSError:  # no folder, which is fine for styles/, or one that source_problems reports
        return []
    return [f"{source}{os.sep}{name}" for name in sorted(names)] if source.name else sorted(names)


def _each_once(files: Sequence[str]) -> dict[str, os.stat_result | None]:
    """Keep the first of several paths to one file: a folder may be named twice, or through a link."""
    kept: dict[object, tuple[str, os.stat_result | None]] = {}
    for file in files:
        try:
            status = os.stat(file)
        except OSError:  # a dangling link: reading it says what is wrong
            kept[file] = file, None
        else:
            kept.setdefault((status.st_dev, status.st_ino), (file, status))
    return dict(kept.values())


def source_problems(source: Path) -> list[Problem]:
    """Say why a configured path is no source of plugins."""
    if source.is_dir():
        readable = os.access(source, os.R_OK | os.X_OK)
        return [] if readable else [Problem(str(source), None, "this folder may not be read")]
    if not source.exists():
        return [Problem(str(source), None, "there is no such file or folder; plugins.paths names it")]
    if source.suffix not in {".py", *YAML_SUFFIXES}:
        return [Problem(str(source), None, "a plugin is a .py or a .yaml file, or a folder of them")]
    return []


def discover(own: Path, sources: Sequence[Path]) -> Iterator[Found]:
    """Import all Python plugins, one by one in load order: our own, installed packages', the configured files."""
    built_in = python_files([own])
    yield from map(import_file, built_in)
    for entry in sorted(importlib.metadata.entry_points(group=hookspecs.PROJECT), key=lambda entry: entry.name):
        yield _import_entry_point(entry)
    yield from (import_file(file) for file in python_files([own, *sources]) if file not in built_in)


def import_file(file: Path) -> Found:
    """Import one drop-in, under a name that no other file has."""
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]
    name = f"tenkaigen_plugin_{file.stem}_{digest}"
    try:
        loader = SourceFileLoader(name, str(file))
        module = importlib.util.module_from_spec(ModuleSpec(name, loader, origin=str(file)))
        module.__file__ = str(file)
        sys.modules[name] = module  # dataclasses and typing look their module up
        loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin that calls sys.exit() must not end the worker
        sys.modules.pop(name, None)
        return Found(file.name, str(file), file, None, (problem_of(error, file, "raised when it was imported"),))
    return Found(file.name, str(file), file, module)


def _import_entry_point(entry: EntryPoint) -> Found:
    """Import the plugin of an installed package."""
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    origin = f"entry point {entry.name} of {package}"
    try:
        plugin = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        problem = problem_of(error, Path(origin), "raised when it was imported")
        return Found(entry.name, origin, Path(origin), None, (problem,))
    module = plugin if isinstance(plugin, ModuleType) else inspect.getmodule(type(plugin))
    return Found(entry.name, origin, Path(getattr(module, "__file__", None) or origin), plugin)


def check_hooks(manager: pluggy.PluginManager, found: Found) -> list[Problem]:
    """Say what is wrong with a plugin's hooks: pluggy passes a misspelt name in silence."""
    problems: list[Problem] = []
    marked = False
    for name in dir(found.plugin):
        options = manager.parse_hookimpl_opts(found.plugin, name)
        if options is not None:
            marked = True
            function = getattr(found.plugin, name)
            line = inspect.unwrap(function).__code__.co_firstlineno
            hook = options.get("specname") or name
            wraps = bool(options.get("wrapper") or options.get("hookwrapper"))
            problems += [Problem(str(found.file), line, text) for text in _hook_problems(hook, function, wraps=wraps)]

    if not marked:
        forgotten = next((name for name in HOOKS if callable(getattr(found.plugin, name, None))), None)
        text = f"{forgotten} is not marked" if forgotten else "this file has no hook"
        problems.append(Problem(str(found.file), None, f"{text}: write @hookimpl above each hook"))
    return problems


def _hook_problems(hook: str, function: Callable[..., object], *, wraps: bool) -> Iterator[str]:
    if hook not in HOOKS:
        near = suggest(hook, HOOKS)
        yield f"there is no hook {hook!r}{';' if near else '.'}{near} The hooks are: {', '.join(HOOKS)}"
        return
    if wraps:
        yield f"{hook} may not be a wrapper: it gets a value and answers one"
    if hook.startswith("register_") and inspect.iscoroutinefunction(function):
        yield f"{hook} must be a plain function, not async"

    for argument in inspect.signature(function).parameters:
        if argument not in HOOKS[hook]:
            near = suggest(argument, HOOKS[hook])
            takes = f"It may take: {', '.join(HOOKS[hook])}" if HOOKS[hook] else "It takes none"
            yield f"{hook} has no argument {argument!r}{';' if near else '.'}{near} {takes}"
