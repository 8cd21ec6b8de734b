"""Finding a model's files: a folder, or a repository of the Hugging Face hub, checked before anything large moves."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download

from tenkaigen_worker.config_engine import CheckpointSettings, EngineSettings
from tenkaigen_worker.engine.hub import Wanted, engine_error, hub_errors, pulse

log = logging.getLogger("tenkaigen.engine")

INDEX = "model_index.json"
PIPELINE = "QwenImagePipeline"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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

    Components named in ``without`` need not be there. ``alive`` is called as bytes arrive. Raises ``EngineError``.
    """
    model = settings.model
    folder = Path(model).expanduser()
    if folder.is_dir():
        read_index(folder / INDEX, model)
        return Weights(folder, folder.resolve().name, None)
    if not looks_like_hub_id(model):
        raise engine_error(f"engine.model: there is no folder {model}; give a folder or a hub id like Qwen/Qwen-Image")

    with hub_errors(wanted_pipeline(settings), download=download):
        index = Path(hf_hub_download(model, INDEX, revision=settings.revision, local_files_only=not download))
        patterns = file_patterns(read_index(index, model), without=without)
        revision = index.parent.name
        log.info("Looking for the files of %s at %s", model, revision, extra={"action": "model_files"})
        found = snapshot_download(
            model,
            revision=revision,
            allow_patterns=patterns,
            local_files_only=not download,
            tqdm_class=pulse(alive),
        )
    return Weights(Path(found), model, revision)


def find_checkpoint(checkpoint: CheckpointSettings, *, download: bool, alive: Callable[[], None]) -> Path:
    """Find a quantised transformer's file; one of the hub that is not here yet may be downloaded.

    ``alive`` is called as bytes arrive. Raises ``EngineError``.
    """
    if checkpoint.repo is None:
        file = Path(checkpoint.filename).expanduser()
        if not file.is_file():
            raise engine_error(
                f"engine.checkpoints: there is no file {checkpoint.filename}; give a file of this machine, or name its "
                "repository on the hub in repo"
            )
        return file

    with hub_errors(wanted_checkpoint(checkpoint), download=download):
        return Path(
            hf_hub_download(
                checkpoint.repo,
                checkpoint.filename,
                revision=checkpoint.revision,
                local_files_only=not download,
                tqdm_class=pulse(alive),
            )
        )


def looks_like_hub_id(model: str) -> bool:
    """Tell a hub's ``owner/name`` from a path that is written as one."""
    return _HUB_ID.fullmatch(model) is not None and not model.startswith((".", "~"))


def wanted_pipeline(settings: EngineSettings) -> Wanted:
    """Name the configured pipeline as errors do."""
    return Wanted("engine.model", settings.model, settings.revision, INDEX, ": not a diffusers pipeline")


def wanted_checkpoint(checkpoint: CheckpointSettings) -> Wanted:
    """Name a checkpoint of the hub as errors do."""
    return Wanted("engine.checkpoints", checkpoint.repo or "", checkpoint.revision, checkpoint.filename)


def file_patterns(components: Collection[str], *, without: Collection[str] = ()) -> list[str]:
    """Say which files of a pipeline's repository are loaded."""
    kinds = ("*.json", "*.txt", "*.safetensors")
    return [INDEX, *(f"{name}/{kind}" for name in components if name not in without for kind in kinds)]


def read_index(index: Path, model: str) -> list[str]:
    """Check that this is a Qwen-Image pipeline, and answer the names of its components."""
    try:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        kind = content["_class_name"]
    except FileNotFoundError:
        raise engine_error(
            f"engine.model: {model} has no {INDEX}: not a folder that a diffusers pipeline was saved to"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise engine_error(f"engine.model: {model}: its {INDEX} cannot be read: {error}") from error
    if kind != PIPELINE:
        raise engine_error(f"engine.model: {model} is a {kind}; only a {PIPELINE} can be used, such as Qwen/Qwen-Image")
    return [name for name in content if not name.startswith("_")]
