"""What the Hugging Face hub's client raises, as one sentence each."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, logging  # type: ignore[attr-defined]

from tenkaigen_worker.engine.needs import INDEX, Source, engine_error
from tenkaigen_worker.errors import Code, EngineError


class CannotFetch(EngineError):
    """Nothing can be fetched now: the hub is away, may not be asked, or its cache cannot be written to."""


@contextmanager
def hub_errors(source: Source, *, download: bool) -> Iterator[None]:
    """Turn what the hub's client raises in here into an ``EngineError`` with one sentence."""
    repo, setting, cache = source.place, source.setting, constants.HF_HUB_CACHE
    try:
        yield
    except EngineError:
        raise
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
        raise engine_error(f"{source.revision_setting}: {repo} has no revision {source.revision}") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise _not_here(source, error, download=download) from error
    except EntryNotFoundError as error:
        lacks = f"{source.file}" if source.file else f"{INDEX}: not a diffusers pipeline"
        raise engine_error(f"{setting}: {repo} has no {lacks}") from error
    except (HfHubHTTPError, HFValidationError) as error:
        first_line = str(error).strip().partition("\n")[0]
        kind = CannotFetch if isinstance(error, HfHubHTTPError) and error.response.status_code >= 500 else EngineError
        raise kind(Code.ENGINE_FAILED, f"{setting}: the hub answered for {repo}: {first_line}") from error
    except Exception as error:
        # The client lets through what its network and transfer libraries raise, and those change with its versions.
        code = error.errno if isinstance(error, OSError) else None
        if code == errno.ENOSPC:
            raise engine_error(
                f"the disk is full: {repo} does not fit into {cache}; make room there, or set HF_HOME"
            ) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CannotFetch(
                Code.ENGINE_FAILED,
                f"{setting}: the newest files of {repo} are not on this machine, and {cache} cannot be written to; "
                "download them as the user who may, or set HF_HOME",
            ) from error
        kind = CannotFetch if is_network_error(error) else EngineError
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise kind(Code.ENGINE_FAILED, f"{setting}: {repo} cannot be downloaded to {cache}: {cause}") from error


def _not_here(source: Source, error: Exception, *, download: bool) -> EngineError:
    part = "not complete" if isinstance(error, IncompleteSnapshotError) else "not"
    here = f"{source.setting}: {source.name} is {part} on this machine"
    if not download:
        return engine_error(
            f"{here}, and engine.backend: auto does not download; run: tenkaigen models pull, or give its path, or use "
            "engine.backend: tiny for the demo model"
        )
    why = f"{constants.ENDPOINT} cannot be reached; once it can, run: tenkaigen models pull"
    if constants.is_offline_mode():
        why = "HF_HUB_OFFLINE is set; without that, run: tenkaigen models pull"
    return CannotFetch(Code.ENGINE_FAILED, f"{here}, and {why}, or give its path")


def is_network_error(error: BaseException) -> bool:
    """Whether a connection could not be made, or was lost; by name, as the client changed its HTTP library before."""
    return "TransportError" in {base.__name__ for base in type(error).__mro__}


def keep_quiet() -> None:
    """Let the client print neither bars nor warnings of its own."""
    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
