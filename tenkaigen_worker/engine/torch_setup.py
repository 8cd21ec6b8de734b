"""What every backend with torch needs first: the libraries, a device, a number type, threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tenkaigen_worker.errors import Code, EngineError

if TYPE_CHECKING:
    import torch

    from tenkaigen_worker.config import EngineSettings

INSTALL = 'pip install "tenkaigen-worker[inference]"'


@contextmanager
def inference_libraries(backend: str) -> Iterator[None]:
    """Import torch and its companions in here: what is missing or broken becomes an ``EngineError``."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise EngineError(
            Code.ENGINE_FAILED, f"engine.backend: {backend} needs {error.name}, which is not installed: {INSTALL}"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        # diffusers imports lazily and hides a missing module behind a RuntimeError of its own.
        raise EngineError(
            Code.ENGINE_FAILED,
            f"engine.backend: {backend} cannot import its libraries ({' '.join(str(error).split())[:300]}); "
            f"install them anew: {INSTALL}",
        ) from error


def choose_device(wanted: str) -> torch.device:
    """Find the device that the setting names; ``auto`` is CUDA where there is one."""
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        build = f"torch {torch.__version__}"
        raise EngineError(
            Code.ENGINE_FAILED,
            f"engine.device: {wanted}, but {build} sees no CUDA GPU; check nvidia-smi and that torch is a CUDA build, "
            "or use engine.device: cpu",
        )

    index = torch.device(wanted).index if wanted != "auto" else 0
    if index is not None and index >= torch.cuda.device_count():
        raise EngineError(
            Code.ENGINE_FAILED,
            f"engine.device: {wanted}, but there are only {torch.cuda.device_count()} CUDA GPUs, counted from cuda:0",
        )
    return torch.device("cuda", index or 0)


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Find the number type that the setting names; ``auto`` is bfloat16 where the GPU has it, else float32."""
    import torch

    if wanted == "auto":
        bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bfloat16 else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def limit_threads(settings: EngineSettings) -> None:
    """Hold torch to the configured number of CPU threads."""
    import torch

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
