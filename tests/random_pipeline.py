"""Diffusers' own Qwen-Image pipeline with a million random weights, made in memory, for tests of the way through it.

It takes every step that the real model takes, at any size, in a fraction of a second. Its pictures are coloured noise
that depends on prompt and seed, the same on every run.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.devices import choose_device, choose_dtype, limit_threads
from tenkaigen_worker.engine.edit import make_processor
from tenkaigen_worker.engine.qwen import QwenBackend
from tenkaigen_worker.recipe import Model

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PICTURE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

# Random weights of the usual size hardly react to the prompt; larger ones make pictures that differ visibly.
TRANSFORMER_GAIN = 3.0
DECODER_GAIN = 1.7
TEXT_INIT_RANGE = 0.5


def random_backend(**changes: Any) -> QwenBackend:
    """The engine's backend around it, on the CPU, with these settings; named as the demonstration model is."""
    settings = EngineSettings.model_validate({"backend": "tiny", "device": "cpu", **changes})
    limit_threads(settings)
    device = choose_device("cpu")
    dtype = choose_dtype(settings.dtype, device)
    pipe = build_pipeline().to(device=device, dtype=dtype)
    model = Model("tiny", "tiny", None, 256, 256, demo=True, default_steps=8, base="tiny", edit_model="tiny")
    return QwenBackend(pipe, model, device, dtype, settings, processor=make_processor(pipe.tokenizer))


def build_pipeline() -> Any:
    """Build a ``QwenImagePipeline`` whose weights are the same every time; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = _tokenizer()
        return QwenImagePipeline(
            scheduler=_scheduler(),
            vae=_vae(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            transformer=_transformer(),
        )


def _tokenizer() -> Any:
    # One token per byte: the template's front is then longer than the fixed 34 tokens that the pipeline drops from
    # the encoded prompt, so that no word of the prompt is among them.
    # Pictures take the places of bytes that UTF-8 never has.
    places = dict(zip("\u00f5\u00f6\u00f7\u00f8", PICTURE_TOKENS, strict=True))
    tokens = [*(places.get(byte, byte) for byte in sorted(ByteLevel.alphabet())), *SPECIAL_TOKENS]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=[*PICTURE_TOKENS, *SPECIAL_TOKENS[1:]])


def _text_encoder(tokenizer: Any) -> Any:
    vocabulary_size = len(tokenizer)
    tokens = {"bos_token_id": vocabulary_size - 3, "eos_token_id": vocabulary_size - 1}
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"mrope_section": [2, 3, 3], "rope_type": "default", "rope_theta": 1_000_000.0},
        "vocab_size": vocabulary_size,
        "initializer_range": TEXT_INIT_RANGE,
        **tokens,
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(PICTURE_TOKENS))
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        initializer_range=TEXT_INIT_RANGE,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        **tokens,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def _transformer() -> Any:
    transformer = QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=3, joint_attention_dim=32, axes_dims_rope=(8, 4, 4)
    )
    return _amplified(transformer, TRANSFORMER_GAIN)


def _vae() -> Any:
    vae = AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1)
    _amplified(vae.decoder, DECODER_GAIN)
    return vae.eval()


def _scheduler() -> Any:
    # As the real model's.
    return FlowMatchEulerDiscreteScheduler(
        base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02, use_dynamic_shifting=True
    )


def _amplified(module: torch.nn.Module, gain: float) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(gain)
    return module.eval()
