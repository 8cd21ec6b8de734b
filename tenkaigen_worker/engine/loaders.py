"""The ``diffusers`` backend: any Qwen-Image pipeline from a folder or the hub, placed on the device it fits on."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from diffusers.utils.logging import disable_progress_bar as hide_diffusers_bars
from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar as hide_transformers_bars

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.checkpoints import Checkpoints
from tenkaigen_worker.engine.devices import Footprint, choose_device, choose_dtype, choose_offload, limit_threads
from tenkaigen_worker.engine.edit import load_processor
from tenkaigen_worker.engine.lock import lock_device
from tenkaigen_worker.engine.qwen import QwenBackend
from tenkaigen_worker.engine.stages import Stages, make_warm
from tenkaigen_worker.engine.weights import Weights, find_edit_weights, find_weights
from tenkaigen_worker.errors import Code, EngineError
from tenkaigen_worker.recipe import Model

log = logging.getLogger("tenkaigen.engine")


def check_auto() -> None:
    """Raise ``EngineError`` when ``backend: auto`` finds no GPU: it takes what is ready here, or nothing."""
    if not torch.cuda.is_available():
        raise EngineError(
            Code.ENGINE_FAILED,
            f"engine.backend: auto found no CUDA GPU (torch {torch.__version__}); use engine.backend: tiny for "
            "the demo model, or engine.backend: diffusers with engine.device: cpu for the real one (slow)",
        )


def load_diffusers(settings: EngineSettings, *, alive: Callable[[], None]) -> QwenBackend:
    """Load the configured pipeline. Raises ``EngineError`` that says what is wrong with which setting."""
    quiet_libraries()
    limit_threads(settings)
    stages = Stages(alive)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    if device.type == "cpu" and settings.offload in ("model", "sequential"):
        raise EngineError(
            Code.ENGINE_FAILED,
            f"engine.offload: {settings.offload} is for a CUDA GPU, but the device is the CPU; use auto or none",
        )
    lock_gpu(device)

    with stages("files"):
        download = settings.backend != "auto"
        weights = find_weights(settings, download=download, alive=alive)
        editing = find_edit_weights(settings, download=download, alive=alive)
    with stages("weights"), load_errors(weights.folder, weights.name):
        pipe = QwenImagePipeline.from_pretrained(
            weights.folder, dtype=dtype, use_safetensors=True, local_files_only=True
        )
        processor = load_processor(editing.folder) if editing else None
    with stages("place"):
        offload = _choose_offload(pipe, device, settings)
        _place(pipe, device, offload)

    side = pipe.default_sample_size * pipe.vae_scale_factor
    model = Model("diffusers", weights.name, weights.revision, default_width=side, default_height=side)
    if editing:
        model = replace(model, edit_model=editing.name, edit_revision=editing.revision)
    checkpoints = _with_edits(pipe, weights, editing, device, offload) if editing else None
    backend = QwenBackend(pipe, model, device, dtype, settings, checkpoints=checkpoints, processor=processor)
    if device.type == "cuda":
        with stages("warm_up"):
            make_warm(backend, alive)
    backend.stages_ms |= stages.ms
    return backend


def quiet_libraries() -> None:
    """Show no progress bars: they would be lines of the log."""
    hide_diffusers_bars()
    hide_transformers_bars()


def lock_gpu(device: torch.device) -> None:
    """Take a GPU for this worker alone, for as long as this process lives; other devices are shared."""
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        lock_device(f"gpu-{gpu.uuid}", name=f"{device} ({gpu.name})", owner=os.getppid())


def _with_edits(pipe: Any, weights: Weights, editing: Weights, device: torch.device, offload: str) -> Checkpoints:
    """Let the pipeline change between its own transformer, which is loaded, and the one for edits."""
    if editing.name == weights.name:
        text = f"engine.edit_model: {editing.name} is called as engine.model is; recipes could not tell them apart"
        raise EngineError(Code.ENGINE_FAILED, text)

    def load(folder: Path) -> Any:
        pipe.remove_all_hooks()  # those for offload hold the transformer before
        with load_errors(folder, folder.name):
            transformer = QwenImageTransformer2DModel.from_pretrained(
                folder, subfolder="transformer", dtype=pipe.vae.dtype, use_safetensors=True, local_files_only=True
            )
        pipe.transformer = transformer
        _place(pipe, device, offload)
        return transformer

    files = {weights.name: weights.folder, editing.name: editing.folder}
    return Checkpoints(files, load, device, there=pipe.transformer)


def _choose_offload(pipe: Any, device: torch.device, settings: EngineSettings) -> str:
    if device.type == "cpu":
        return "none"
    free_bytes, _ = torch.cuda.mem_get_info(device)
    offload, why = choose_offload(settings.offload, footprint(pipe), free_bytes)
    log.info("Offload to the CPU: %s (%s)", offload, why, extra={"action": "engine_offload"})
    return offload


def _place(pipe: Any, device: torch.device, offload: str) -> None:
    """Move the pipeline to its device, all of it or piece by piece."""
    if device.type == "cpu":
        return
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        try:
            pipe.to(device)
        except torch.OutOfMemoryError:
            raise EngineError(
                Code.ENGINE_FAILED, f"engine.offload: {offload}, but the weights do not fit into {device}; use auto"
            ) from None


def footprint(pipe: Any) -> Footprint:
    """Add up what the pipeline's weights take."""
    sizes = [
        sum(tensor.numel() * tensor.element_size() for tensor in (*part.parameters(), *part.buffers()))
        for part in pipe.components.values()
        if isinstance(part, torch.nn.Module)
    ]
    return Footprint(total=sum(sizes), largest=max(sizes))


@contextmanager
def load_errors(folder: Path, name: str, *, setting: str = "engine.model", advice: str | None = None) -> Iterator[None]:
    """Turn what libraries raise over a model's files into an ``EngineError`` that names a setting and what to do."""
    advice = advice or f"get them anew to {folder}"
    try:
        yield
    except MemoryError as error:
        raise EngineError(Code.ENGINE_FAILED, f"the weights of {name} do not fit into this machine's memory") from error
    except torch.OutOfMemoryError as error:
        raise EngineError(Code.ENGINE_FAILED, f"the weights of {name} do not fit into the GPU's free memory") from error
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise EngineError(Code.ENGINE_FAILED, f"the disk is full while loading {name}") from error
        if isinstance(error, RuntimeError) and "CUDA" in str(error):
            raise  # the device's fault, not the files'
        cause = " ".join(str(error).split())[:300]
        raise EngineError(
            Code.ENGINE_FAILED,
            f"{setting}: the files of {name} are incomplete or damaged ({cause}); {advice}",
        ) from error
