"""Finding a model's files: a folder, or a repository of the Hugging Face hub, checked before anything large moves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

from tenkaigen_worker.config_engine import CheckpointSettings, EngineSettings
from tenkaigen_worker.engine.hub import CannotFetch, hub_errors, keep_quiet
from tenkaigen_worker.engine.needs import INDEX, Source, checkpoint, edit_pipeline, engine_error, pipeline, read_index
from tenkaigen_worker.engine.pull import check_room, fetch, survey
from tenkaigen_worker.errors import EngineError

log = logging.getLogger("tenkaigen.engine")


@dataclass(frozen=True, slots=True)
class Weights:
    """A pipeline's folder on this machine, and what its model is called: never a path."""

    folder: Path
    name: str
    revision: str | None


def find_weights(
    settings: EngineSettings, *, download: bool, alive: Callable[[], None], without: Collection[str] = ()
) -> Weights:
    """Find the configured model's folder; a hub model that is not here yet may be downloaded.

    Of the components named in ``without`` only the configuration is wanted. ``alive`` is called as bytes arrive. Raises
    ``EngineError``.
    """
    return _find_pipeline(pipeline(settings, without=tuple(without)), download=download, alive=alive)


def find_edit_weights(
    settings: EngineSettings, *, download: bool, alive: Callable[[], None], without: Collection[str] = ()
) -> Weights | None:
    """Find the folder of the model for edits as :func:`find_weights` does; ``None`` where none is configured.

    Only its processor and its transformer are wanted: the other components are those of the usual model.
    """
    for source in edit_pipeline(settings, without=tuple(without)):
        return _find_pipeline(source, download=download, alive=alive)
    return None


def _find_pipeline(source: Source, *, download: bool, alive: Callable[[], None]) -> Weights:
    folder = find(source, download=download, alive=alive)
    if source.on_hub:
        return Weights(folder, source.place, folder.name)
    return Weights(folder, folder.resolve().name, None)


def find_checkpoint(settings: CheckpointSettings, *, download: bool, alive: Callable[[], None]) -> Path:
    """Find a quantised transformer's file; one of the hub that is not here yet may be downloaded.

    ``alive`` is called as bytes arrive. Raises ``EngineError``.
    """
    return find(checkpoint(settings), download=download, alive=alive)


def find(source: Source, *, download: bool, alive: Callable[[], None]) -> Path:
    """Find a pipeline's folder or a checkpoint's file, as the two functions above do for the settings."""
    if not source.on_hub:
        return find_here(source)
    if not download:
        return find_in_cache(source, download=False)
    keep_quiet()
    try:
        files = survey(source)
        if missing := check_room(files):
            log.info("Downloading %.1f GB of %s", missing / 1e9, source.name, extra={"action": "model_download"})
        fetch(files, lambda *_: alive(), threading.Event())
        return find_in_cache(source, download=True)
    except CannotFetch as error:
        try:
            found = find_in_cache(source, download=False)
        except EngineError:
            raise error from None
        log.info("Taking the files that are here: %s", error, extra={"action": "model_not_refreshed"})
        return found


def find_in_cache(source: Source, *, download: bool) -> Path:
    """Find what has been fetched from the hub; with ``download`` also name and link it for its revision."""
    with hub_errors(source, download=download):
        first = Path(
            hf_hub_download(source.place, source.file or INDEX, revision=source.revision, local_files_only=not download)
        )
        if source.file is not None:
            return first
        patterns = source.patterns(read_index(first, source))
        revision = first.parent.name
        log.info("Looking for the files of %s at %s", source.place, revision, extra={"action": "model_files"})
        return Path(
            snapshot_download(source.place, revision=revision, allow_patterns=patterns, local_files_only=not download)
        )


def find_here(source: Source) -> Path:
    """Find what the settings name by a path. Raises ``EngineError`` when it is not there, or no pipeline."""
    path = source.path
    if not source.is_pipeline:
        if not path.is_file():
            raise engine_error(
                f"{source.setting}: there is no file {source.place}; give a safetensors file of this machine, or name "
                "its repository on the hub in repo"
            )
        return path
    if not path.is_dir():
        raise engine_error(
            f"{source.setting}: there is no folder {source.place}; give a folder or a hub id like Qwen/Qwen-Image"
        )
    read_index(path / INDEX, source)
    return path
