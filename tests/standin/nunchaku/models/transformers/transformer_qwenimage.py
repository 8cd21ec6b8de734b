"""Qwen-Image's transformer with quantised blocks."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any, Self
from warnings import warn

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_qwenimage import (
    QwenEmbedRope,
    QwenImageTransformer2DModel,
    QwenImageTransformerBlock,
)
from huggingface_hub import utils
from torch import Tensor

from ...utils import get_precision
from ..attention import NunchakuBaseAttention, NunchakuFeedForward
from ..attention_processors.qwenimage import NunchakuQwenImageNaiveFA2Processor
from ..linear import AWQW4A16Linear, SVDQW4A4Linear
from ..utils import CPUOffloadManager, fuse_linears
from .utils import NunchakuModelLoaderMixin, patch_scale_key

# What is taken over from diffusers' attention as it is.
KEPT = (
    "inner_dim",
    "inner_kv_dim",
    "query_dim",
    "use_bias",
    "is_cross_attention",
    "cross_attention_dim",
    "upcast_attention",
    "upcast_softmax",
    "rescale_output_factor",
    "residual_connection",
    "dropout",
    "fused_projections",
    "out_dim",
    "out_context_dim",
    "context_pre_only",
    "pre_only",
    "is_causal",
    "scale_qk",
    "scale",
    "heads",
    "sliceable_head_dim",
    "added_kv_proj_dim",
    "only_cross_attention",
    "group_norm",
    "spatial_norm",
    "norm_cross",
    "norm_q",
    "norm_k",
    "norm_added_q",
    "norm_added_k",
)


class NunchakuQwenAttention(NunchakuBaseAttention):
    """Joint attention with fused, quantised projections."""

    def __init__(self, other: Attention, processor: str = "flashattn2", **kwargs: Any) -> None:
        super().__init__(processor)
        for name in KEPT:
            setattr(self, name, getattr(other, name))
        with torch.device("meta"):
            fused = fuse_linears([other.to_q, other.to_k, other.to_v])
            added = fuse_linears([other.add_q_proj, other.add_k_proj, other.add_v_proj])
        self.to_qkv = SVDQW4A4Linear.from_linear(fused, **kwargs)
        self.to_out = other.to_out
        self.to_out[0] = SVDQW4A4Linear.from_linear(other.to_out[0], **kwargs)
        self.add_qkv_proj = SVDQW4A4Linear.from_linear(added, **kwargs)
        self.to_add_out = SVDQW4A4Linear.from_linear(other.to_add_out, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Answer the image's and the text's new states."""
        states: tuple[Tensor, Tensor] = self.processor(
            self,
            hidden_states,
            encoder_hidden_states,
            encoder_hidden_states_mask,
            attention_mask,
            image_rotary_emb,
            **kwargs,
        )
        return states

    def set_processor(self, processor: str) -> None:
        """Choose the processor; there is one."""
        if processor != "flashattn2":
            raise ValueError(f"Processor {processor} is not supported")
        self.processor = NunchakuQwenImageNaiveFA2Processor()


class NunchakuQwenImageTransformerBlock(QwenImageTransformerBlock):
    """A block whose layers are quantised; its modulation comes six values a channel, not six vectors."""

    def __init__(self, other: QwenImageTransformerBlock, scale_shift: float = 1.0, **kwargs: Any) -> None:
        super(QwenImageTransformerBlock, self).__init__()
        self.dim = other.dim
        self.scale_shift = scale_shift
        for stream in ("img", "txt"):
            modulation = getattr(other, f"{stream}_mod")
            modulation[1] = AWQW4A16Linear.from_linear(modulation[1], **kwargs)
            setattr(self, f"{stream}_mod", modulation)
            setattr(self, f"{stream}_norm1", getattr(other, f"{stream}_norm1"))
            setattr(self, f"{stream}_norm2", getattr(other, f"{stream}_norm2"))
            setattr(self, f"{stream}_mlp", NunchakuFeedForward(getattr(other, f"{stream}_mlp"), **kwargs))
        self.attn = NunchakuQwenAttention(other.attn, **kwargs)

    def _modulate(self, x: Tensor, mod_params: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale, gate = mod_params.chunk(3, dim=-1)
        if self.scale_shift != 0:
            scale.add_(self.scale_shift)
        return x * scale.unsqueeze(1) + shift.unsqueeze(1), gate.unsqueeze(1)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Answer the text's, then the image's new states."""
        image, text = hidden_states, encoder_hidden_states
        image_first, image_second = _six_vectors(self.img_mod(temb)).chunk(2, dim=-1)
        text_first, text_second = _six_vectors(self.txt_mod(temb)).chunk(2, dim=-1)

        image_in, image_gate = self._modulate(self.img_norm1(image), image_first)
        text_in, text_gate = self._modulate(self.txt_norm1(text), text_first)
        image_out, text_out = self.attn(
            hidden_states=image_in,
            encoder_hidden_states=text_in,
            encoder_hidden_states_mask=encoder_hidden_states_mask,
            image_rotary_emb=image_rotary_emb,
            **(joint_attention_kwargs or {}),
        )
        image, text = image + image_gate * image_out, text + text_gate * text_out

        image_in, image_gate = self._modulate(self.img_norm2(image), image_second)
        text_in, text_gate = self._modulate(self.txt_norm2(text), text_second)
        image, text = image + image_gate * self.img_mlp(image_in), text + text_gate * self.txt_mlp(text_in)

        largest = torch.finfo(torch.float16).max
        clipped = (state.clip(-largest, largest) if state.dtype == torch.float16 else state for state in (text, image))
        text, image = clipped
        return text, image


def _six_vectors(interleaved: Tensor) -> Tensor:
    return interleaved.unflatten(-1, (-1, 6)).transpose(1, 2).flatten(1)


class NunchakuQwenImageTransformer2DModel(QwenImageTransformer2DModel, NunchakuModelLoaderMixin):
    """The transformer; made by ``from_pretrained``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.offload = kwargs.pop("offload", False)
        self.offload_manager: CPUOffloadManager | None = None
        self._is_initialized = False
        super().__init__(*args, **kwargs)

    def _patch_model(self, **kwargs: Any) -> Self:
        for number, block in enumerate(self.transformer_blocks):
            self.transformer_blocks[number] = NunchakuQwenImageTransformerBlock(block, scale_shift=0, **kwargs)
        self._is_initialized = True
        return self

    @classmethod
    @utils.validate_hf_hub_args
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load one safetensors file. Takes ``torch_dtype``, ``device`` and ``offload``, and ignores everything else."""
        path = pretrained_model_name_or_path
        path = Path(path) if isinstance(path, str) else path
        named_so = path.name.endswith((".safetensors", ".sft"))  # type: ignore[attr-defined]
        assert path.is_file() or named_so, "Only safetensors are supported"  # type: ignore[attr-defined]
        transformer, tensors, metadata = cls._build_model(path, **kwargs)
        quantization = json.loads(metadata.get("quantization_config", "{}"))
        config = json.loads(metadata.get("config", "{}"))
        transformer = transformer.to(kwargs.get("torch_dtype", torch.bfloat16))
        precision = get_precision()
        transformer._patch_model(
            precision="nvfp4" if precision == "fp4" else precision, rank=quantization.get("rank", 32)
        )
        transformer = transformer.to_empty(device=kwargs.get("device", "cpu"))
        transformer.pos_embed = QwenEmbedRope(
            theta=10000, axes_dim=list(config.get("axes_dims_rope", [16, 56, 56])), scale_rope=True
        )
        patch_scale_key(transformer, tensors)
        transformer.load_state_dict(tensors)
        transformer.set_offload(kwargs.get("offload", False))
        return transformer

    def set_offload(self, offload: bool, **kwargs: Any) -> None:
        """Turn offloading on or off."""
        if offload == self.offload:
            return
        self.offload = offload
        if not offload:
            self.offload_manager = None
            gc.collect()
            torch.cuda.empty_cache()
            return
        names = ("img_in", "txt_in", "txt_norm", "time_text_embed", "norm_out", "proj_out")
        self.offload_manager = CPUOffloadManager(
            self.transformer_blocks,
            use_pin_memory=kwargs.get("use_pin_memory", True),
            on_gpu_modules=[getattr(self, name) for name in names],
            num_blocks_on_gpu=kwargs.get("num_blocks_on_gpu", 1),
        )

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor = None,
        encoder_hidden_states_mask: Tensor = None,
        timestep: Tensor = None,
        img_shapes: list[tuple[int, int, int]] | None = None,
        txt_seq_lens: list[int] | None = None,
        guidance: Tensor = None,
        attention_kwargs: dict[str, Any] | None = None,
        controlnet_block_samples: Any = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """As release 1.2.1 wrote it for diffusers 0.36: with text lengths, and without a mask for attention."""
        image = self.img_in(hidden_states)
        timestep = timestep.to(image.dtype)
        text = self.txt_in(self.txt_norm(encoder_hidden_states))
        if guidance is None:
            temb = self.time_text_embed(timestep, image)
        else:
            temb = self.time_text_embed(timestep, guidance.to(image.dtype) * 1000, image)
        rotary = self.pos_embed(img_shapes, txt_seq_lens, device=image.device)

        stream = torch.cuda.current_stream()
        for number, block in enumerate(self.transformer_blocks):
            with torch.cuda.stream(stream):
                text, image = block(
                    hidden_states=image,
                    encoder_hidden_states=text,
                    encoder_hidden_states_mask=encoder_hidden_states_mask,
                    temb=temb,
                    image_rotary_emb=rotary,
                    joint_attention_kwargs=attention_kwargs,
                )
                if controlnet_block_samples is not None:
                    interval = int(np.ceil(len(self.transformer_blocks) / len(controlnet_block_samples)))
                    image = image + controlnet_block_samples[number // interval]
        output = self.proj_out(self.norm_out(image, temb))
        torch.cuda.empty_cache()
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move to a device; refuses a dtype once the blocks are quantised, and stays where it is while offloading."""
        if self._is_initialized and ("dtype" in kwargs or any(isinstance(arg, torch.dtype) for arg in args)):
            raise ValueError(
                "Casting a quantized model to a new `dtype` is unsupported. To set the dtype of unquantized layers, "
                "please use the `torch_dtype` argument when loading the model using `from_pretrained`."
            )
        if self.offload and (args or "device" in kwargs):
            warn("Skipping moving the model to GPU as offload is enabled", UserWarning, stacklevel=2)
            return self
        # The wheel's own way of saying super(), which never ends in a class derived from this one.
        return super(type(self), self).to(*args, **kwargs)
