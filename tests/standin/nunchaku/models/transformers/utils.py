"""Loading checkpoints."""

from __future__ import annotations

import inspect
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from ...utils import load_state_dict_in_safetensors
from ..linear import SVDQW4A4Linear

# A fault of the wheel: a library that is imported sets up everyone's logging.
logging.basicConfig(
    level=getattr(logging, os.getenv("LOG_LEVEL", "INFO").upper(), logging.INFO),
    format="%(asctime)s - %(levelname)s - %(message)s",
)


class NunchakuModelLoaderMixin:
    """Builds a transformer from a checkpoint's own configuration."""

    @classmethod
    def _build_model(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[Any, dict[str, Tensor], dict[str, str]]:
        """Answer the empty transformer on the meta device, the tensors and the metadata."""
        tensors, metadata = load_state_dict_in_safetensors(Path(pretrained_model_name_or_path), return_metadata=True)
        # Not as in the wheel: its from_config drops every key, for its __init__ names none, and so it can only ever
        # build the published size. A small checkpoint could then not be loaded.
        known = inspect.signature(QwenImageTransformer2DModel.__init__).parameters
        config = {key: value for key, value in json.loads(metadata["config"]).items() if key in known}
        with torch.device("meta"):
            transformer: Any = cls(**config)
            transformer = transformer.to(kwargs.get("torch_dtype", torch.bfloat16))
        return transformer, tensors, metadata


def patch_scale_key(transformer_from_config: nn.Module, state_dict_from_checkpoint: dict[str, Tensor]) -> None:
    """Fill in the scales that only NVFP4 has; anything else that is missing is an error."""
    for key, value in transformer_from_config.state_dict().items():
        if key not in state_dict_from_checkpoint:
            assert ".wcscales" in key
            state_dict_from_checkpoint[key] = torch.ones_like(value)
    for name, module in transformer_from_config.named_modules():
        if isinstance(module, SVDQW4A4Linear) and module.wtscale is not None:
            module.wtscale = state_dict_from_checkpoint.pop(f"{name}.wtscale", 1.0)  # type: ignore[assignment]
