"""Which model files are on this machine, and whether they are what they should be: without the network."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import get_cached_repo_tree, try_to_load_from_cache
from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from tenkaigen_worker.engine.needs import INDEX, Source, read_index
from tenkaigen_worker.engine.pull import digest_of, size_of
from tenkaigen_worker.errors import EngineError
from tenkaigen_worker.loras.header import BadFile, read_structure

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is here of a source: the pipeline's folder or the checkpoint's file, its commit, its files by name.

    ``missing`` has the names of files that should be here; ``problem`` says why the source cannot be read at all.
    """

    source: Source
    path: Path | None = None
    commit: str | None = None
    files: dict[str, Path] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def complete(self) -> bool:
        """Whether everything is here that is known to be needed."""
        return self.path is not None and not self.missing and self.problem is None

    @property
    def pinned(self) -> bool:
        """Whether it cannot change unless the configuration does."""
        return self.source.pinned or self.commit is None

    @property
    def bytes(self) -> int:
        """What is here, in bytes."""
        return sum(size_of(path) or 0 for path in self.files.values())


def look(source: Source) -> Inventory:
    """Find what is here of a source."""
    if source.on_hub:
        try:
            first = try_to_load_from_cache(source.place, source.file or INDEX, revision=source.revision)
        except HFValidationError as error:
            return Inventory(source, problem=f"{source.setting}: {source.place} is no name on the hub: {error}")
        if not isinstance(first, str):
            return Inventory(source, missing=(source.file or INDEX,))
        depth = len(Path(source.file or INDEX).parts)
        folder = Path(first).parents[depth - 1]
        if source.file is not None:
            return Inventory(source, Path(first), folder.name, {source.file: Path(first)})
        return _look_at_pipeline(source, folder, folder.name)
    if source.is_pipeline:
        return _look_at_pipeline(source, source.path, None)
    if not source.path.is_file():
        return Inventory(source, missing=(source.place,))
    return Inventory(source, source.path, None, {source.path.name: source.path})


def _look_at_pipeline(source: Source, folder: Path, commit: str | None) -> Inventory:
    if not (folder / INDEX).is_file():
        return Inventory(source, missing=(str(Path(source.place) / INDEX),))
    try:
        components = read_index(folder / INDEX, source)
    except EngineError as error:
        return Inventory(source, folder, commit, {INDEX: folder / INDEX}, problem=str(error))
    patterns = source.patterns(components)
    here = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = {name: here[name] for name in filter_repo_objects(sorted(here), allow_patterns=patterns)}
    wanted = set(_listed(source, commit, patterns)) or {
        *_shards(files),
        *(f"{name}/" for name in components if name not in source.without and not _any_below(name, files)),
    }
    return Inventory(source, folder, commit, files, tuple(sorted(wanted - files.keys())))


def _listed(source: Source, commit: str | None, patterns: list[str]) -> Iterator[str]:
    """Yield the files that the hub listed when they were downloaded, if that was kept."""
    if commit is None:
        return
    try:
        tree = get_cached_repo_tree(source.place, revision=commit)
    except CachedRepoTreeNotFoundError:
        return
    yield from filter_repo_objects((file.path for file in tree), allow_patterns=patterns)


def _shards(files: dict[str, Path]) -> Iterator[str]:
    """Yield the files over which a large component is spread, as their index names them."""
    for name, path in files.items():
        if name.endswith(".safetensors.index.json"):
            try:
                shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # verifying finds it
            yield from {str(Path(name).parent / str(shard)) for shard in shards}


def _any_below(component: str, files: dict[str, Path]) -> bool:
    return any(name.startswith(f"{component}/") for name in files)


def problem_of(path: Path, report: Callable[[int], None]) -> str | None:
    """Say what is wrong with a file: its content is not what its name in the cache says, or it is cut short.

    ``report`` is called with the bytes read so far.
    """
    try:
        wanted = _digest_named(path)
        if wanted is None:
            if path.suffix == ".safetensors":
                read_structure(path)
            return None
        found = digest_of(path, wanted, report)
    except BadFile as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    if found == wanted:
        return None
    return f"its {'SHA-256' if len(wanted) == 64 else 'SHA-1'} is {found}, and should be {wanted}"


def _digest_named(path: Path) -> str | None:
    """Read from where a file of the cache points what its content should be; others do not tell."""
    if not path.is_symlink():
        return None
    name = Path(os.readlink(path)).name
    return name if _DIGEST.fullmatch(name) else None
