"""Finding a model's files: a folder, or a repository of the Hugging Face hub, checked before anything large moves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download

from tenkaigen_worker.config_engine import CheckpointSettings, EngineSettings
from tenkaigen_worker.engine.hub import engine_error, hub_errors, pulse
from tenkaigen_worker.engine.needs import INDEX, Source, checkpoint, pipeline

log = logging.getLogger("tenkaigen.engine")

PIPELINE = "QwenImagePipeline"


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
    source = pipeline(settings, without=tuple(without))
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
    with hub_errors(source, download=download):
        first = Path(
            hf_hub_download(
                source.place,
                source.file or INDEX,
                revision=source.revision,
                local_files_only=not download,
                tqdm_class=pulse(alive),
            )
        )
        if source.file is not None:
            return first
        patterns = source.patterns(read_index(first, source))
        revision = first.parent.name
        log.info("Looking for the files of %s at %s", source.place, revision, extra={"action": "model_files"})
        return Path(
            snapshot_download(
                source.place,
                revision=revision,
                allow_patterns=patterns,
                local_files_only=not download,
                tqdm_class=pulse(alive),
            )
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


def read_index(index: Path, source: Source) -> list[str]:
    """Check that this is a Qwen-Image pipeline, and answer the names of its components."""
    named = f"{source.setting}: {source.place}"
    try:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        kind = content["_class_name"]
    except FileNotFoundError:
        raise engine_error(f"{named} has no {INDEX}: not a folder that a diffusers pipeline was saved to") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise engine_error(f"{named}: its {INDEX} cannot be read: {error}") from error
    if kind != PIPELINE:
        raise engine_error(f"{named} is a {kind}; only a {PIPELINE} can be used, such as Qwen/Qwen-Image")
    return [name for name in content if not name.startswith("_")]
