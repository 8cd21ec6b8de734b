"""Which model files a configuration needs, and what each is called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenkaigen_worker.config_engine import CheckpointSettings, EngineSettings
from tenkaigen_worker.errors import Code, EngineError

INDEX = "model_index.json"
PIPELINE = "QwenImagePipeline"
EDIT_PIPELINE = "QwenImageEditPlusPipeline"
# What edits take from the usual pipeline: both models share it.
SHARED_WITH_EDITS = ("scheduler", "text_encoder", "tokenizer", "vae")

_EXAMPLES = {PIPELINE: "Qwen/Qwen-Image", EDIT_PIPELINE: "Qwen/Qwen-Image-Edit-2509"}

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Source:
    """A pipeline or a checkpoint: of the repository ``place`` on the hub, or of this machine at ``place``.

    ``setting`` is where the configuration names it, ``file`` a checkpoint's file in its repository. Of a pipeline's
    components ``without`` only the configuration is needed; ``kind`` is what diffusers calls it.
    """

    setting: str
    place: str
    revision: str | None = None
    is_pipeline: bool = True
    file: str | None = None
    without: tuple[str, ...] = ()
    kind: str = PIPELINE

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.place}/{self.file}" if self.file else self.place

    @property
    def on_hub(self) -> bool:
        """Whether it is of the hub; a folder that is here goes first."""
        if not self.is_pipeline:
            return self.file is not None
        return not self.path.is_dir() and _HUB_ID.fullmatch(self.place) is not None and self.place[0] not in ".~"

    @property
    def path(self) -> Path:
        """The pipeline's folder, or the checkpoint's file, if it is of this machine."""
        return Path(self.place).expanduser()

    @property
    def revision_setting(self) -> str:
        """The setting that names its revision."""
        if self.is_pipeline:
            return "engine.revision" if self.kind == PIPELINE else "engine.edit_revision"
        return f"{self.setting}.revision"

    @property
    def pinned(self) -> bool:
        """Whether its revision is a commit, which cannot move."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def patterns(self, components: list[str]) -> list[str]:
        """Say which of its repository's files are loaded, as ``fnmatch`` does."""
        if self.file is not None:
            return [self.file]
        kinds = ("*.json", "*.txt", "*.safetensors")
        loaded = [f"{name}/{kind}" for name in components if name not in self.without for kind in kinds]
        return [INDEX, *loaded, *(f"{name}/config.json" for name in components if name in self.without)]


def pipeline(settings: EngineSettings, *, without: tuple[str, ...] = ()) -> Source:
    """Name the configured model."""
    return Source("engine.model", settings.model, settings.revision, without=without)


def edit_pipeline(settings: EngineSettings, *, without: tuple[str, ...] = ()) -> Iterator[Source]:
    """Name the model for edits, if one is configured."""
    if settings.edit_model is not None:
        without = (*SHARED_WITH_EDITS, *without)
        yield Source(
            "engine.edit_model", settings.edit_model, settings.edit_revision, without=without, kind=EDIT_PIPELINE
        )


def checkpoint(settings: CheckpointSettings, name: str | None = None) -> Source:
    """Name a checkpoint."""
    setting = f"engine.checkpoints.{name}" if name else "engine.checkpoints"
    if settings.repo is None:
        return Source(setting, settings.filename, is_pipeline=False)
    return Source(setting, settings.repo, settings.revision, is_pipeline=False, file=settings.filename)


def needed(settings: EngineSettings) -> list[Source]:
    """List what must be there for the configured backend to load; LoRAs are not part of it."""
    match settings.backend:
        case "tiny" | "blank":
            return []
        case "auto" | "diffusers":
            return [pipeline(settings), *edit_pipeline(settings)]
        case "nunchaku":
            without = ("transformer",)
            checkpoints = [checkpoint(one, name) for name, one in settings.checkpoints.items()]
            return [pipeline(settings, without=without), *edit_pipeline(settings, without=without), *checkpoints]


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
    if kind != source.kind:
        raise engine_error(f"{named} is a {kind}; only a {source.kind} can be used, such as {_EXAMPLES[source.kind]}")
    return [name for name in content if not name.startswith("_")]


def engine_error(text: str) -> EngineError:
    """Make the error of an engine that cannot load."""
    return EngineError(Code.ENGINE_FAILED, text)
