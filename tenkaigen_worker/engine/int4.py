"""The ``nunchaku`` backend: Qwen-Image with a transformer in 4 bits, and a text encoder in 4 bits beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline
from transformers import BitsAndBytesConfig, Qwen2_5_VLForConditionalGeneration

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.checkpoints import Checkpoints
from tenkaigen_worker.engine.devices import choose_device, choose_dtype, limit_threads
from tenkaigen_worker.engine.edit import load_processor
from tenkaigen_worker.engine.int4_transformer import LOADERS, Placement, check_file
from tenkaigen_worker.engine.loaders import load_errors, lock_gpu, quiet_libraries
from tenkaigen_worker.engine.machine import Machine, inspect_here
from tenkaigen_worker.engine.plan import Plan, Sizes, make_plan, published
from tenkaigen_worker.engine.qwen import QwenBackend
from tenkaigen_worker.engine.readiness import loader, missing
from tenkaigen_worker.engine.stages import Stages, make_warm
from tenkaigen_worker.engine.weights import Weights, find_checkpoint, find_edit_weights, find_weights
from tenkaigen_worker.errors import Code, EngineError
from tenkaigen_worker.offers import NO_LIMITS
from tenkaigen_worker.recipe import Model

# The checkpoint's file has it instead, in 4 bits: the pipeline's own takes 41 GB.
WITHOUT = ("transformer",)

log = logging.getLogger("tenkaigen.engine")


def nunchaku_is_ready(settings: EngineSettings) -> bool:
    """Whether ``backend: auto`` should take this one: nothing is missing here, and all files are present."""
    problems: list[object] = list(missing("nunchaku", inspect_here(settings.device), settings))
    if not problems:
        try:
            _find_files(settings, download=False, alive=lambda: None)
        except EngineError as error:
            problems.append(error)
    if problems:
        log.info("Not on nunchaku, because of %s", problems[0], extra={"action": "engine_auto"})
    return not problems


def load_nunchaku(settings: EngineSettings, *, alive: Callable[[], None]) -> QwenBackend:
    """Load the pipeline with its first checkpoint, and draw once. Raises ``EngineError`` with what is wrong."""
    quiet_libraries()
    limit_threads(settings)
    _check_offload(settings)
    machine = inspect_here(settings.device)
    _check(machine, settings, published(settings))
    device = choose_device(settings.device)
    dtype = _choose_dtype(settings)
    lock_gpu(device)
    if device.type == "cuda":
        # nunchaku's kernels run on the current device, wherever their tensors are: its C++ has no guard for it.
        torch.cuda.set_device(device)

    stages = Stages(alive)
    with stages("files"):
        download = settings.backend != "auto"
        weights, files = _find_files(settings, download=download, alive=alive)
        editing = find_edit_weights(settings, download=download, alive=alive, without=WITHOUT)
    plan = _plan(settings, machine, weights, files)
    placement = Placement(device, dtype, plan.blocks_on_gpu if plan and plan.transformer == "blocks" else None)
    load = LOADERS[_loader(machine, settings)]
    checkpoints = Checkpoints(files, lambda file: load(file, weights.folder, placement), device)
    with load_errors(weights.folder, weights.name):
        processor = load_processor(editing.folder) if editing else None
        with stages("transformer"):
            transformer = checkpoints.first()
        with stages("text_encoder"):
            text_encoder = _load_text_encoder(weights.folder, device, dtype, _text_encoder_as(settings, plan))
        with stages("vae"):
            vae = AutoencoderKLQwenImage.from_pretrained(
                weights.folder,
                subfolder="vae",
                dtype=choose_dtype("auto", device),
                use_safetensors=True,
                local_files_only=True,
            )
        with stages("place"):
            pipe = QwenImagePipeline.from_pretrained(
                weights.folder,
                transformer=transformer,
                text_encoder=text_encoder,
                vae=vae.to(device),
                dtype=dtype,
                local_files_only=True,
            )

    side = pipe.default_sample_size * pipe.vae_scale_factor
    names = {name: checkpoint.identity for name, checkpoint in settings.checkpoints.items()}
    model = Model(
        "nunchaku", weights.name, weights.revision, default_width=side, default_height=side, checkpoints=names
    )
    if editing:
        model = replace(model, edit_model=editing.name, edit_revision=editing.revision)
    backend = QwenBackend(
        pipe,
        model,
        device,
        dtype,
        settings,
        checkpoints=checkpoints,
        tiles_above=plan.tile_above_pixels if plan else None,
        limits=plan.limits if plan else NO_LIMITS,
        processor=processor,
    )
    with stages("warm_up"):
        make_warm(backend, alive)
    backend.stages_ms |= stages.ms
    return backend


def _check(machine: Machine, settings: EngineSettings, sizes: Sizes) -> None:
    """Raise what is missing here, all of it at once. The CPU is only for who asks for it by name."""
    if settings.device != "cpu" and (problems := missing("nunchaku", machine, settings, sizes)):
        text = "; ".join(map(str, problems))
        raise EngineError(Code.ENGINE_FAILED, f"engine.backend: nunchaku cannot be used here: {text}")


def _loader(machine: Machine, settings: EngineSettings) -> str:
    """The package to load with; where none is installed the import will say so."""
    wanted = settings.nunchaku.loader
    return loader(machine, settings) or ("nunchaku" if wanted == "auto" else wanted)


def _choose_dtype(settings: EngineSettings) -> torch.dtype:
    """What is calculated in beside the 4 bits: the type that the checkpoints are written in."""
    if settings.dtype == "float32":
        raise EngineError(
            Code.ENGINE_FAILED, "engine.dtype: float32 is nothing for engine.backend: nunchaku; use bfloat16 or auto"
        )
    return torch.bfloat16


def _check_offload(settings: EngineSettings) -> None:
    if settings.offload not in ("auto", "none"):
        raise EngineError(
            Code.ENGINE_FAILED,
            f"engine.offload: {settings.offload} is nothing for engine.backend: nunchaku, which has a plan of its own; "
            "use auto",
        )


def _find_files(
    settings: EngineSettings, *, download: bool, alive: Callable[[], None]
) -> tuple[Weights, dict[str, Path]]:
    """Find the pipeline's folder and every checkpoint's file, and look at each before anything is loaded."""
    weights = find_weights(settings, download=download, alive=alive, without=WITHOUT)
    files: dict[str, Path] = {}
    for checkpoint in settings.checkpoints.values():
        file = find_checkpoint(checkpoint, download=download, alive=alive)
        if files.setdefault(checkpoint.identity, file) != file:
            raise EngineError(
                Code.ENGINE_FAILED,
                f"engine.checkpoints: two different files are called {checkpoint.identity}; recipes could not tell "
                "them apart: rename one",
            )
        check_file(file, checkpoint)
    return weights, files


def _plan(settings: EngineSettings, machine: Machine, weights: Weights, files: dict[str, Path]) -> Plan | None:
    """Plan by the sizes of the files that are here; the CPU needs no plan."""
    if settings.device == "cpu":
        return None
    sizes = Sizes.of(files.values(), weights.folder)
    _check(machine, settings, sizes)
    plan = make_plan(settings, machine, sizes)
    for line in plan.lines():
        log.info("%s", line, extra={"action": "engine_plan"})
    return plan


def _text_encoder_as(settings: EngineSettings, plan: Plan | None) -> str:
    wanted = settings.nunchaku.text_encoder
    return (plan.text_encoder if plan else "full") if wanted == "auto" else wanted


def _load_text_encoder(folder: Path, device: torch.device, dtype: torch.dtype, kept_as: str) -> Any:
    """Load the text encoder straight to its device: whole, or in NF4 (QLoRA, Dettmers et al. 2023)."""
    how: dict[str, Any] = {"device_map": {"": device}} if device.type == "cuda" else {}
    if kept_as == "nf4":
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    try:
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / "text_encoder", dtype=dtype, use_safetensors=True, local_files_only=True, **how
        )
    except ImportError as error:
        raise EngineError(
            Code.ENGINE_FAILED,
            "engine.nunchaku.text_encoder: nf4 needs bitsandbytes, which cannot be imported: pip install bitsandbytes, "
            "or use text_encoder: full",
        ) from error
