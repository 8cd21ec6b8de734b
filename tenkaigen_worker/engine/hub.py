"""What the Hugging Face hub's client raises, as one sentence each."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants
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

from tenkaigen_worker.errors import Code, EngineError


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of the hub: the setting that names it, and how people call its file when it is not there."""

    setting: str
    repo: str
    revision: str | None
    file: str
    otherwise: str = ""

    @property
    def revision_setting(self) -> str:
        """The setting that names the revision."""
        return "engine.revision" if self.setting == "engine.model" else f"{self.setting}.revision"


@contextmanager
def hub_errors(wanted: Wanted, *, download: bool) -> Iterator[None]:
    """Turn what the hub's client raises in here into an ``EngineError`` with one sentence."""
    repo, setting = wanted.repo, wanted.setting
    try:
        yield
    except GatedRepoError as error:
        raise engine_error(
            f"{setting}: {repo} wants its licence accepted on the hub, and HF_TOKEN to be set"
        ) from error
    except RepositoryNotFoundError as error:
        raise engine_error(
            f"{setting}: the hub has no model {repo} (or it is private and HF_TOKEN is not set); folders are found "
            "from the current directory"
        ) from error
    except RevisionNotFoundError as error:
        raise engine_error(f"{wanted.revision_setting}: {repo} has no revision {wanted.revision}") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        if not download:
            raise engine_error(
                f"{setting}: {repo} is not on this machine, and engine.backend: auto does not download; give its "
                "folder, or use engine.backend: diffusers to download it, or engine.backend: tiny for the demo model"
            ) from error
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} cannot be reached"
        raise engine_error(
            f"{setting}: {repo} is not on this machine, and {why}; download it first, or give the folder it is in"
        ) from error
    except EntryNotFoundError as error:
        raise engine_error(f"{setting}: {repo} has no {wanted.file}{wanted.otherwise}") from error
    except (HfHubHTTPError, HFValidationError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise engine_error(f"{setting}: the hub answered for {repo}: {first_line}") from error
    except EngineError:
        raise
    except Exception as error:
        # The client lets through what its network and transfer libraries raise, and those change with its versions.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise engine_error(
                f"the disk is full: {repo} does not fit into {constants.HF_HUB_CACHE}; make room there, or set HF_HOME"
            ) from error
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise engine_error(f"{setting}: {repo} cannot be downloaded to {constants.HF_HUB_CACHE}: {cause}") from error


def pulse(alive: Callable[[], None]) -> type[tqdm]:
    """Make a progress bar that shows nothing but calls ``alive``."""

    class Pulse(tqdm):
        def update(self, n: float | None = 1) -> Any:
            alive()
            return super().update(n)

    return Pulse


def engine_error(text: str) -> EngineError:
    """Make the error of an engine that cannot load."""
    return EngineError(Code.ENGINE_FAILED, text)
