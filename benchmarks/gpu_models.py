"""The models that ``gpu.py`` measures: the configured one, the demonstration model, or one of full size made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpu_memory import GIB, GpuMeter, Meter, ProcessMeter

from tenkaigen_worker.config import Settings
from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.errors import TenkaigenError
from tenkaigen_worker.recipe import Model

# The text encoder of Qwen-Image, as its config.json says: Qwen2.5-VL with 7 B parameters.
TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_parameters": {"mrope_section": [16, 24, 24], "rope_type": "default", "rope_theta": 1_000_000.0},
}
VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
SPREAD = 0.02  # of random weights: small enough that nothing overflows in 60 blocks


def meter(settings: Settings, weights: str | None, cap_gib: float | None) -> Meter:
    """Find out where memory is measured, and cap it; raises ``TenkaigenError`` without a GPU to cap."""
    from tenkaigen_worker.engine.devices import choose_device

    device = choose_device("cpu" if weights == "tiny" else settings.engine.device)
    if device.type == "cuda":
        return GpuMeter(device.index or 0, None if cap_gib is None else int(cap_gib * GIB))
    if cap_gib is not None:
        raise TenkaigenError("--cap-gib is for a CUDA GPU, and there is none in use")
    return ProcessMeter()


@contextmanager
def device_errors(what: str) -> Iterator[None]:
    """Say in one line that something does not fit, or that the device gave up."""
    import torch

    from tenkaigen_worker.engine.backend import DeviceBroken, OutOfMemory

    try:
        yield
    except (torch.OutOfMemoryError, OutOfMemory) as error:
        raise TenkaigenError(f"{what} does not fit into memory: {str(error).partition('. ')[0]}") from None
    except DeviceBroken as error:
        raise TenkaigenError(f"{what}: {error}") from error


def load(settings: Settings, weights: str | None, transformer: str, text_encoder: str) -> Any:
    """Load what is to be measured, as a backend of the engine; raises ``TenkaigenError``."""
    from tenkaigen_worker.engine.backend import load_backend

    if weights == "random":
        return random_backend(settings.engine, full_size(settings.engine, transformer, text_encoder))
    engine = settings.engine.model_copy(update={"backend": "tiny", "device": "cpu"} if weights == "tiny" else {})
    if engine.backend == "tiny":
        return demo_model(engine)
    backend = load_backend(engine, alive=lambda: None)
    if not hasattr(backend, "_pipe"):
        raise TenkaigenError(f"the backend {backend.model.backend} draws without a model: there is nothing to measure")
    return backend


def demo_model(settings: EngineSettings) -> Any:
    """Load the demonstration model as it is, for any size: what it draws at others than its own makes no sense."""
    from tenkaigen_worker.engine.tiny import load_demo_model

    return load_demo_model(settings)


def random_backend(settings: EngineSettings, pipe: Any) -> Any:
    """Let the engine's own backend draw with a pipeline made here."""
    from tenkaigen_worker.engine.qwen import QwenBackend

    device, dtype = pipe.vae.device, pipe.vae.dtype
    side = pipe.default_sample_size * pipe.vae_scale_factor
    return QwenBackend(pipe, Model("random", "Qwen-Image", None, side, side), device, dtype, settings)


def full_size(settings: EngineSettings, transformer: str, text_encoder: str) -> Any:
    """Make a Qwen-Image pipeline of full size on the device."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    # The defaults of diffusers' classes are the real model's sizes.
    config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION)
    return assemble(
        settings,
        QwenImageTransformer2DModel,
        lambda: Qwen2_5_VLForConditionalGeneration(config),
        AutoencoderKLQwenImage,
        nf4={name for name, kind in (("transformer", transformer), ("text_encoder", text_encoder)) if kind == "nf4"},
    )


def assemble(
    settings: EngineSettings,
    transformer: Callable[[], Any],
    text_encoder: Callable[[], Any],
    vae: Callable[[], Any],
    *,
    nf4: set[str],
) -> Any:
    """Make a pipeline of these parts with random weights; those named in ``nf4`` have their linear layers in 4 bits.

    Scheduler and tokenizer are the demonstration model's.
    """
    import torch
    from accelerate import init_empty_weights
    from diffusers import QwenImagePipeline

    from tenkaigen_worker.engine.devices import choose_device

    device = choose_device(settings.device)
    dtype = torch.bfloat16
    parts = {}
    for name, make in (("transformer", transformer), ("text_encoder", text_encoder)):
        with init_empty_weights():
            part = make().eval()
        parts[name] = fill(part, device, dtype, nf4=name in nf4)
    tiny = demo_model(EngineSettings(backend="tiny"))._pipe
    return QwenImagePipeline(
        scheduler=tiny.scheduler,
        tokenizer=tiny.tokenizer,
        vae=vae().eval().to(device=device, dtype=dtype),
        **parts,
    )


def fill(module: Any, device: Any, dtype: Any, *, nf4: bool) -> Any:
    """Give a module without weights random ones, layer by layer: the whole never exists in more than its own format."""
    import torch

    for name, child in list(module.named_modules()):
        for key, parameter in list(child.named_parameters(recurse=False)):
            made = torch.empty(parameter.shape, device=device, dtype=dtype)
            if made.dim() > 1:
                made.normal_(std=SPREAD)
            else:
                made.fill_(1.0 if key == "weight" else 0.0)
            child.register_parameter(key, torch.nn.Parameter(made, requires_grad=False))
        for key, buffer in list(child.named_buffers(recurse=False)):
            child.register_buffer(key, buffer.to(device), persistent=False)
        if nf4 and type(child) is torch.nn.Linear:
            parent, _, key = name.rpartition(".")
            setattr(module.get_submodule(parent), key, in_four_bits(child, dtype))
    return module


def in_four_bits(linear: Any, dtype: Any) -> Any:
    """Turn a linear layer into one with NF4 weights."""
    try:
        import bitsandbytes
    except ImportError:
        raise TenkaigenError("nf4 needs bitsandbytes: pip install 'tenkaigen-worker[int4]'") from None
    made = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=dtype, device="meta"
    )
    weight = bitsandbytes.nn.Params4bit(linear.weight.detach(), quant_type="nf4", module=made)
    made.weight = weight.to(linear.weight.device)  # which is what makes four bits of it
    made.bias = linear.bias
    return made
