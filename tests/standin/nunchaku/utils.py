"""What the wheel knows about files and GPUs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

# The stand-in's own: what get_precision answers, where the wheel asks the GPU. "int4" unless set.
PRECISION = "NUNCHAKU_STANDIN_PRECISION"


def load_state_dict_in_safetensors(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    filter_prefix: str = "",
    return_metadata: bool = False,
) -> Any:
    """Read a local file: its tensors, and its metadata where asked for. The wheel would also download."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: the stand-in downloads nothing")
    tensors: dict[str, Tensor] = {}
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118 - it is no dict
            if key.startswith(filter_prefix):
                tensors[key.removeprefix(filter_prefix)] = file.get_tensor(key)
    return (tensors, metadata) if return_metadata else tensors


def get_precision(
    precision: str = "auto",
    device: str | torch.device = "cuda",
    pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
) -> str:
    """Answer ``int4`` or ``fp4``; warns where a file's name says the other."""
    assert precision in ("auto", "int4", "fp4")
    if precision == "auto":
        precision = os.environ.get(PRECISION, "int4")
    other = {"int4": "fp4", "fp4": "int4"}[precision]
    if pretrained_model_name_or_path is not None and other in str(pretrained_model_name_or_path):
        warnings.warn(
            f"The model may be quantized to {other}, but you are loading it with {precision} precision.", stacklevel=2
        )
    return precision


def is_turing(device: str | torch.device = "cuda") -> bool:
    """Whether this is a GPU of 2018, such as a T4."""
    return torch.cuda.get_device_capability(torch.device(device).index or 0) == (7, 5)


def get_gpu_memory(device: str | torch.device = "cuda", unit: str = "GiB") -> int:
    """All memory of a GPU, rounded down."""
    assert unit in ("GiB", "MiB", "B")
    return (
        int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
        // {
            "GiB": 2**30,
            "MiB": 2**20,
            "B": 1,
        }[unit]
    )
