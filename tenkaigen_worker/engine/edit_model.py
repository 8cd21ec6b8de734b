"""Finding the model for edits, and the transformer that only edits are drawn with."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.weights import Weights
from tenkaigen_worker.errors import Code, EngineError

# What shows that a part of a saved pipeline is there.
_SHOWN_BY = {"processor": "preprocessor_config.json", "transformer": "config.json"}


def find_edit_model(settings: EngineSettings, parts: Collection[str]) -> Weights | None:
    """Find ``parts`` of the configured model for edits on this machine; ``None`` where none is configured.

    Nothing is downloaded. Raises ``EngineError``.
    """
    if settings.edit_model is None:
        return None
    folder = Path(settings.edit_model).expanduser()
    if folder.is_dir():
        found = Weights(folder, folder.resolve().name, None)
    else:
        folder = _in_cache(settings.edit_model, settings.edit_revision, parts)
        found = Weights(folder, settings.edit_model, folder.name)
    for part in parts:
        if not (found.folder / part / _SHOWN_BY[part]).is_file():
            raise _error(f"{settings.edit_model} has no {part} here. {_how_to_get(settings.edit_model, parts)}")
    return found


def _in_cache(model: str, revision: str | None, parts: Collection[str]) -> Path:
    try:
        patterns = [f"{part}/*" for part in parts]
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise _error(f"there is no {model} on this machine. {_how_to_get(model, parts)}") from None


def _how_to_get(model: str, parts: Collection[str]) -> str:
    wanted = " ".join(f"--include '{part}/*'" for part in parts)
    return f"Name the folder of an Edit pipeline, or download it: hf download {model} {wanted}"


def _error(text: str) -> EngineError:
    return EngineError(Code.ENGINE_FAILED, f"engine.edit_model: {text}")
