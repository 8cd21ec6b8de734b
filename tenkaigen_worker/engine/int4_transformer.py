"""From the file of a quantised checkpoint to a transformer on its device."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImagePipeline
from safetensors import SafetensorError, safe_open

from tenkaigen_worker.config_engine import CheckpointSettings
from tenkaigen_worker.engine.int4_forward import bind_forward
from tenkaigen_worker.errors import Code, EngineError

# A tensor that no other model's quantised file has.
BLOCK_KEY = "transformer_blocks.0.txt_mod.1.qweight"

# Of the transformer's configuration: what makes it a variant that the quantised blocks cannot draw.
VARIANTS = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope", "guidance_embeds")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a transformer goes: all of it on ``device``, or, when ``blocks`` is set, only so many of its blocks."""

    device: torch.device
    dtype: torch.dtype
    blocks: int | None = None


def check_file(file: Path, checkpoint: CheckpointSettings) -> None:
    """Check by its header that a file is the quantised Qwen-Image transformer that the settings speak of.

    Raises ``EngineError``. The metadata is what nunchaku's ``merge_safetensors.py`` writes.
    """
    name = checkpoint.identity
    try:
        with safe_open(file, framework="pt") as opened:
            metadata: Mapping[str, str] = opened.metadata() or {}
            has_qwens_blocks = BLOCK_KEY in opened.keys()  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise _error(f"{name} is no safetensors file, or cut short ({error}); get it anew") from error
    except OSError as error:
        raise _error(f"{name} cannot be read: {error}") from error

    try:
        config, quantisation = json.loads(metadata["config"]), json.loads(metadata["quantization_config"])
        dtype, rank = quantisation["weight"]["dtype"], quantisation.get("rank", 32)
        kind = config.get("_class_name") or metadata.get("model_class") or "model without a name"
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _error(
            f"{name} does not say how it was quantised: not a file for nunchaku, such as svdq-int4_r32-qwen-image"
        ) from error
    if not has_qwens_blocks:
        raise _error(f"{name} is a {kind}; only the transformer of Qwen-Image can be used")
    if variant := [name for name in VARIANTS if config.get(name)]:
        raise _error(f"{name} is a variant of Qwen-Image that cannot be drawn quantised ({', '.join(variant)})")
    if dtype != "int4":
        raise _error(f"{name} is quantised to {dtype}, for Blackwell GPUs; take the file whose name has int4")
    if rank != checkpoint.rank:
        raise _error(f"{name} has a branch of rank {rank}, but its rank is set to {checkpoint.rank}")


def load_with_nunchaku(file: Path, pipeline: Path, placement: Placement) -> Any:
    """Load a transformer with the package nunchaku, and make it draw with our own forward pass."""
    with _foreign("nunchaku"):
        from nunchaku import NunchakuQwenImageTransformer2DModel

    with _load_errors(file, placement.device):
        start = placement.device if placement.blocks is None else torch.device("cpu")
        transformer = NunchakuQwenImageTransformer2DModel.from_pretrained(
            file, device=start, torch_dtype=placement.dtype
        )
        if placement.blocks is not None:
            transformer.set_offload(True, use_pin_memory=False, num_blocks_on_gpu=placement.blocks)
    bind_forward(transformer)
    return transformer.eval()


def load_with_lite(file: Path, pipeline: Path, placement: Placement) -> Any:
    """Load a transformer with nunchaku_lite, whose own forward pass is that of current diffusers.

    It takes the transformer's configuration from the ``pipeline``'s folder, and would load the rest of the pipeline
    too, which is left out here.
    """
    with _foreign("nunchaku_lite"):
        from nunchaku_lite import load_nunchaku_pipeline

    with _load_errors(file, placement.device):
        pipe = load_nunchaku_pipeline(
            str(pipeline),
            pipeline_cls=QwenImagePipeline,
            checkpoint=file,
            target="qwen_image",
            component="transformer",
            precision="int4",
            torch_dtype=placement.dtype,
            device=placement.device,
            scheduler=None,
            vae=None,
            text_encoder=None,
            tokenizer=None,
            local_files_only=True,
        )
    return pipe.transformer.eval()


LOADERS: Mapping[str, Callable[[Path, Path, Placement], Any]] = {
    "nunchaku": load_with_nunchaku,
    "nunchaku_lite": load_with_lite,
}


@contextmanager
def _foreign(package: str) -> Iterator[None]:
    """Import a package in here: what it does to the root logger is undone, what it lacks becomes an ``EngineError``."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        cause = " ".join(str(error).split())[:300]
        raise _error(
            f"the package {package} cannot be used ({cause}); PyPI's nunchaku is another project: `tenkaigen doctor` "
            "says what to install",
            setting="engine.backend: nunchaku",
        ) from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def _load_errors(file: Path, device: torch.device) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        if isinstance(error, RuntimeError) and "CUDA" in str(error):
            raise  # the device's fault, not the file's
        cause = " ".join(str(error).split())[:300]
        raise _error(f"{file.name} cannot be loaded on {device} ({cause}); get it anew") from error


def _error(text: str, *, setting: str = "engine.checkpoints") -> EngineError:
    return EngineError(Code.ENGINE_FAILED, f"{setting}: {text}")
