"""Finding a model's files: a folder, or a repository of the Hugging Face hub, checked before anything large moves."""

from __future__ import annotations

import errno
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.errors import Code, EngineError

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


def find_weights(settings: EngineSettings, *, download: bool, alive: Callable[[], None]) -> Weights:
    """Find the configured model's folder; a hub model that is not here yet may be downloaded.

    ``alive`` is called as bytes arrive. Raises ``EngineError``.
    """
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        _check_index(folder / INDEX, settings.model)
        return Weights(folder, folder.resolve().name, None)
    if not looks_like_hub_id(settings.model):
        raise _error(
            f"engine.model: there is no folder {settings.model}; give a folder or a hub id like Qwen/Qwen-Image"
        )

    with _hub_errors(settings.model, settings.revision, download=download):
        index = Path(hf_hub_download(settings.model, INDEX, revision=settings.revision, local_files_only=not download))
        components = _check_index(index, settings.model)
        revision = index.parent.name
        log.info("Looking for the files of %s at %s", settings.model, revision, extra={"action": "model_files"})
        found = snapshot_download(
            settings.model,
            revision=revision,
            allow_patterns=[
                INDEX,
                *(f"{name}/{kind}" for name in components for kind in ("*.json", "*.txt", "*.safetensors")),
            ],
            local_files_only=not download,
            tqdm_class=_pulse(alive),
        )
    return Weights(Path(found), settings.model, revision)


def looks_like_hub_id(model: str) -> bool:
    """Tell a hub's ``owner/name`` from a path that is written as one."""
    return _HUB_ID.fullmatch(model) is not None and not model.startswith((".", "~"))


def _check_index(index: Path, model: str) -> list[str]:
    """Check that this is a Qwen-Image pipeline, and answer the names of its components."""
    try:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        kind = content["_class_name"]
    except FileNotFoundError:
        raise _error(
            f"engine.model: {model} has no {INDEX}: not a folder that a diffusers pipeline was saved to"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _error(f"engine.model: {model}: its {INDEX} cannot be read: {error}") from error
    if kind != PIPELINE:
        raise _error(f"engine.model: {model} is a {kind}; only a {PIPELINE} can be used, such as Qwen/Qwen-Image")
    return [name for name in content if not name.startswith("_")]


@contextmanager
def _hub_errors(model: str, revision: str | None, *, download: bool) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence each."""
    try:
        yield
    except GatedRepoError as error:
        raise _error(f"engine.model: {model} wants its licence accepted on the hub, and HF_TOKEN to be set") from error
    except RepositoryNotFoundError as error:
        raise _error(
            f"engine.model: the hub has no model {model} (or it is private and HF_TOKEN is not set); folders are found "
            "from the current directory"
        ) from error
    except RevisionNotFoundError as error:
        raise _error(f"engine.revision: {model} has no revision {revision}") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        if not download:
            raise _error(
                f"engine.model: {model} is not on this machine, and engine.backend: auto does not download; give its "
                "folder, or use engine.backend: diffusers to download it, or engine.backend: tiny for the demo model"
            ) from error
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} cannot be reached"
        raise _error(
            f"engine.model: {model} is not on this machine, and {why}; download it first, or give the folder it is in"
        ) from error
    except EntryNotFoundError as error:
        raise _error(f"engine.model: {model} has no {INDEX}: not a diffusers pipeline") from error
    except (HfHubHTTPError, HFValidationError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise _error(f"engine.model: the hub answered for {model}: {first_line}") from error
    except EngineError:
        raise
    except Exception as error:
        # The client lets through what its network and transfer libraries raise, and those change with its versions.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise _error(
                f"the disk is full: {model} does not fit into {constants.HF_HUB_CACHE}; make room there, or set HF_HOME"
            ) from error
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise _error(f"engine.model: {model} cannot be downloaded to {constants.HF_HUB_CACHE}: {cause}") from error


def _pulse(alive: Callable[[], None]) -> type[tqdm]:
    """Make a progress bar that shows nothing but calls ``alive``."""

    class Pulse(tqdm):
        def update(self, n: float | None = 1) -> Any:
            alive()
            return super().update(n)

    return Pulse


def _error(text: str) -> EngineError:
    return EngineError(Code.ENGINE_FAILED, text)
