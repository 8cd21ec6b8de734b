"""What the header check lets in, diffusers loads whole; what it keeps out for its format, diffusers does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file

from tenkaigen_worker.loras.formats import SIZES, Format, is_layer
from tenkaigen_worker.loras.header import BadFile, read_header
from tests.random_pipeline import build_pipeline

WORDS = {"kohya": ("lora_down.weight", "lora_up.weight"), "peft": ("lora_A.weight", "lora_B.weight"),
         "default": ("lora_A.default.weight", "lora_B.default.weight")}  # fmt: skip


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return build_pipeline()


def layers(transformer: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Every linear layer, by its name."""
    return {name: module for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("prefix", ["transformer.", "", "diffusion_model.", "lora_unet_"])
def test_what_is_let_in_is_loaded_whole(pipeline: Any, tmp_path: Path, prefix: str, words: str, alpha: bool) -> None:
    tensors = {}
    down, up = WORDS[words]
    for name, layer in layers(pipeline.transformer).items():
        key = prefix + (name.replace(".", "_") if prefix == "lora_unet_" else name)
        tensors[f"{key}.{down}"] = torch.randn(2, layer.in_features)
        tensors[f"{key}.{up}"] = torch.randn(layer.out_features, 2)
        if alpha:
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file)

    try:
        header = read_header(file, base_model="tiny")
    except BadFile:
        header = None
    weights = {f"{'' if prefix else 'diffusion_model.'}{key}": tensor for key, tensor in load_file(file).items()}
    try:
        pipeline.load_lora_weights(weights, adapter_name="one")
        loaded = {name for name, module in pipeline.transformer.named_modules() if hasattr(module, "lora_A")}
    except (ValueError, IndexError):
        loaded = set()
    finally:
        pipeline.unload_lora_weights()

    assert loaded == (set(header.ranks) if header else set())
    assert header is None or loaded == set(layers(pipeline.transformer))


def test_the_layers_and_sizes_are_those_of_the_model() -> None:
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel()
    sizes = SIZES["Qwen/Qwen-Image"]
    there = layers(transformer)

    assert {name: sizes.layer(name) for name in there} == {
        name: (layer.in_features, layer.out_features) for name, layer in there.items()
    }
    assert all(map(is_layer, there))
    assert len(Format) == 5
