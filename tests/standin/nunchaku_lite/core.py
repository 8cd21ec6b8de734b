"""Choosing an adapter, and loading with it."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj
from safetensors import safe_open
from torch import Tensor, nn

CONFIG_KEYS = "cache_dir force_download proxies local_files_only token revision user_agent mirror"
PRECISIONS = {"int4": "int4", "fp4_e2m1_all": "nvfp4"}


@dataclass
class PatchOptions:
    """How a transformer is to be patched."""

    precision: str
    torch_dtype: torch.dtype | None = None
    device: str | torch.device | None = None
    strict: bool = True
    adapter_options: dict[str, Any] = field(default_factory=dict)


class TransformerAdapter(Protocol):
    """Knows one kind of transformer."""

    target: str

    def matches(self, transformer: nn.Module) -> bool:
        """Whether this is its kind."""

    def patch(
        self,
        transformer: nn.Module,
        checkpoint_state: dict[str, Tensor],
        quantization_config: dict[str, Any],
        options: PatchOptions,
    ) -> dict[str, Tensor] | None:
        """Put quantised modules in place of dense ones, and answer the tensors to load."""


_ADAPTERS: dict[str, TransformerAdapter] = {}


def register_adapter(adapter: TransformerAdapter) -> None:
    """Make an adapter known under its target."""
    _ADAPTERS[adapter.target] = adapter


def list_adapters() -> list[str]:
    """Answer the known targets; the built-in ones are imported first."""
    importlib.import_module("nunchaku_lite.adapters.qwen_image")
    return sorted(_ADAPTERS)


def patch_transformer(
    transformer: Any,
    checkpoint: str | Path,
    *,
    target: str = "auto",
    precision: str = "auto",
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    strict: bool = True,
    adapter_options: dict[str, Any] | None = None,
) -> Any:
    """Quantise a diffusers transformer in place from a checkpoint, and answer the same object."""
    return _patched(transformer, checkpoint, target, precision, torch_dtype, device, strict, adapter_options, False)


def load_nunchaku_pipeline(
    pretrained_model_name_or_path: str | os.PathLike[str],
    *,
    pipeline_cls: Any,
    checkpoint: str | Path,
    target: str = "auto",
    component: str | None = None,
    precision: str = "auto",
    torch_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
    device: str | torch.device | None = None,
    strict: bool = True,
    adapter_options: dict[str, Any] | None = None,
    **pipeline_kwargs: Any,
) -> Any:
    """Load a pipeline whose transformer comes from the checkpoint; the dense one's weights are not read."""
    name = component or "transformer"
    if name in pipeline_kwargs:
        raise ValueError(f"pipeline_kwargs already contains {name!r}")
    about = {key: value for key, value in pipeline_kwargs.items() if key in CONFIG_KEYS.split()}
    library, class_name = pipeline_cls.load_config(pretrained_model_name_or_path, **about)[name][:2]
    component_cls = simple_get_class_obj(library, class_name)
    config = component_cls.load_config(pretrained_model_name_or_path, subfolder=name, **about)
    with torch.device("meta"):
        transformer = component_cls.from_config(config)
    dtype = torch_dtype.get(name, torch_dtype.get("default")) if isinstance(torch_dtype, dict) else torch_dtype
    transformer = _patched(transformer, checkpoint, target, precision, dtype, device, strict, adapter_options, True)
    return pipeline_cls.from_pretrained(
        pretrained_model_name_or_path, torch_dtype=torch_dtype, **pipeline_kwargs, **{name: transformer}
    )


def _patched(
    transformer: Any,
    checkpoint: str | Path,
    target: str,
    precision: str,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    strict: bool,
    adapter_options: dict[str, Any] | None,
    assign: bool,
) -> Any:
    adapter = _select(transformer, target)
    if getattr(transformer, "_nunchaku_lite_patched", False):
        return transformer
    with safe_open(checkpoint, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        metadata = file.metadata() or {}
    quantization = json.loads(metadata.get("quantization_config", "{}"))
    options = PatchOptions(_precision(precision, device), dtype, device, strict, adapter_options or {})
    written = PRECISIONS.get(quantization.get("weight", {}).get("dtype"), options.precision)
    if written != options.precision:
        raise ValueError(f"Checkpoint {checkpoint!s} is {written}, but precision={options.precision!r} was selected.")
    tensors = adapter.patch(transformer, tensors, quantization, options) or tensors
    if assign:
        expected = transformer.state_dict()
        floating = {key: value for key, value in tensors.items() if value.is_floating_point() and key in expected}
        tensors |= {key: value.to(expected[key].dtype) for key, value in floating.items()}
    transformer.load_state_dict(tensors, strict=strict, assign=assign)
    _materialise_rotary(transformer)
    if device is not None:
        transformer.to(device)
    transformer._nunchaku_lite_patched = True
    transformer._nunchaku_lite_target = adapter.target
    transformer._nunchaku_lite_quantization_config = quantization
    return transformer


def _select(transformer: nn.Module, target: str) -> TransformerAdapter:
    names = list_adapters()
    if target != "auto" and target not in names:
        raise ValueError(f"Unsupported target {target!r}. Available adapters: {', '.join(names)}")
    for name in names if target == "auto" else [target]:
        if target != "auto" or _ADAPTERS[name].matches(transformer):
            return _ADAPTERS[name]
    raise ValueError(f"No nunchaku_lite adapter matches {type(transformer).__module__}.{type(transformer).__name__}.")


def _precision(precision: str, device: str | torch.device | None) -> str:
    if precision not in ("auto", "int4", "fp4"):
        raise ValueError("precision must be one of 'auto', 'int4', or 'fp4'")
    if precision == "auto":
        where = torch.device(device or "cuda")
        on_gpu = where.type == "cuda" and torch.cuda.is_available()
        precision = "fp4" if on_gpu and torch.cuda.get_device_capability(where)[0] >= 10 else "int4"
    return "nvfp4" if precision == "fp4" else precision


def _materialise_rotary(transformer: Any) -> None:
    """The rotary tables are no buffers: what was made on the meta device is made again."""
    rope = transformer.pos_embed
    if rope.pos_freqs.is_meta:
        transformer.pos_embed = type(rope)(theta=rope.theta, axes_dim=rope.axes_dim, scale_rope=rope.scale_rope)
