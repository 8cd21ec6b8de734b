"""Qwen-Image: quantised blocks inside diffusers' own transformer."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_qwenimage import (
    QwenImageTransformerBlock,
    apply_rotary_emb_qwen,
    compute_text_seq_len_from_mask,
)
from torch import Tensor, nn

from ..core import PatchOptions, register_adapter
from ..linear import AWQW4A16Linear, SVDQW4A4Linear
from ..ops.fused import fused_gelu_mlp


class NunchakuQwenFeedForward(nn.Module):
    """An MLP through the fused kernel."""

    def __init__(self, ff: Any, **kwargs: Any) -> None:
        super().__init__()
        self.net = ff.net
        self.net[0].proj = SVDQW4A4Linear.from_linear(ff.net[0].proj, **kwargs)
        self.net[2] = SVDQW4A4Linear.from_linear(ff.net[2], **kwargs)
        self.net[2].act_unsigned = True

    def forward(self, hidden_states: Tensor) -> Tensor:
        """From batch x tokens x channels to the same."""
        return fused_gelu_mlp(hidden_states, self.net[0].proj, self.net[2])


class NunchakuQwenAttention(nn.Module):
    """Joint attention with fused projections; takes a mask over text and image."""

    def __init__(self, other: Any, **kwargs: Any) -> None:
        super().__init__()
        self.heads = other.heads
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k", "to_out"):
            setattr(self, name, getattr(other, name))
        self.to_qkv = _fused([other.to_q, other.to_k, other.to_v], **kwargs)
        self.add_qkv_proj = _fused([other.add_q_proj, other.add_k_proj, other.add_v_proj], **kwargs)
        self.to_out[0] = SVDQW4A4Linear.from_linear(other.to_out[0], **kwargs)
        self.to_add_out = SVDQW4A4Linear.from_linear(other.to_add_out, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Answer the image's and the text's new states."""
        image_freqs, text_freqs = image_rotary_emb or (None, None)
        image = self._heads(self.to_qkv(hidden_states), self.norm_q, self.norm_k, image_freqs)
        text = self._heads(self.add_qkv_proj(encoder_hidden_states), self.norm_added_q, self.norm_added_k, text_freqs)
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(text, image, strict=True))
        states = dispatch_attention_fn(query, key, value, attn_mask=attention_mask, dropout_p=0.0, is_causal=False)
        states = states.flatten(2, 3).to(query.dtype)
        tokens = encoder_hidden_states.shape[1]
        image_out, text_out = states[:, tokens:], self.to_add_out(states[:, :tokens])
        for module in self.to_out:
            image_out = module(image_out)
        return image_out, text_out

    def _heads(self, fused: Tensor, norm_q: Any, norm_k: Any, freqs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in fused.chunk(3, dim=-1))
        query, key = norm_q(query), norm_k(key)
        if freqs is not None:
            query, key = (apply_rotary_emb_qwen(part, freqs, use_real=False) for part in (query, key))
        return query, key, value


class NunchakuQwenImageTransformerBlock(nn.Module):
    """A block with quantised layers; its modulation comes six values a channel, the scales with one added."""

    def __init__(self, other: QwenImageTransformerBlock, **kwargs: Any) -> None:
        super().__init__()
        self.dim = other.dim
        for stream in ("img", "txt"):
            modulation = getattr(other, f"{stream}_mod")
            modulation[1] = AWQW4A16Linear.from_linear(modulation[1], **kwargs)
            setattr(self, f"{stream}_mod", modulation)
            setattr(self, f"{stream}_norm1", getattr(other, f"{stream}_norm1"))
            setattr(self, f"{stream}_norm2", getattr(other, f"{stream}_norm2"))
            setattr(self, f"{stream}_mlp", NunchakuQwenFeedForward(getattr(other, f"{stream}_mlp"), **kwargs))
        self.attn = NunchakuQwenAttention(other.attn, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        modulate_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Answer the text's, then the image's new states."""
        image, text = hidden_states, encoder_hidden_states
        of_image, of_text = (_six_vectors(modulation(temb)) for modulation in (self.img_mod, self.txt_mod))
        image_out, text_out = self.attn(
            hidden_states=_modulated(self.img_norm1(image), of_image[:2]),
            encoder_hidden_states=_modulated(self.txt_norm1(text), of_text[:2]),
            encoder_hidden_states_mask=encoder_hidden_states_mask,
            image_rotary_emb=image_rotary_emb,
            **(joint_attention_kwargs or {}),
        )
        image, text = image + of_image[2] * image_out, text + of_text[2] * text_out
        image = image + of_image[5] * self.img_mlp(_modulated(self.img_norm2(image), of_image[3:5]))
        text = text + of_text[5] * self.txt_mlp(_modulated(self.txt_norm2(text), of_text[3:5]))
        return text, image


def lite_qwen_image_forward(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor = None,
    encoder_hidden_states_mask: Tensor = None,
    timestep: Tensor = None,
    img_shapes: list[tuple[int, int, int]] | None = None,
    guidance: Tensor = None,
    attention_kwargs: dict[str, Any] | None = None,
    controlnet_block_samples: Any = None,
    additional_t_cond: Tensor = None,
    return_dict: bool = True,
) -> Transformer2DModelOutput | tuple[Tensor]:
    """The transformer's forward of diffusers 0.42, with a mask over text and image for the blocks."""
    if self.zero_cond_t or controlnet_block_samples is not None:
        raise NotImplementedError("the stand-in models neither Edit-2511's second timestep nor ControlNet")
    image = self.img_in(hidden_states)
    text = self.txt_in(self.txt_norm(encoder_hidden_states))
    tokens, _, mask = compute_text_seq_len_from_mask(text, encoder_hidden_states_mask)
    times = [timestep.to(image.dtype)] + ([] if guidance is None else [guidance.to(image.dtype) * 1000])
    temb = self.time_text_embed(*times, image, additional_t_cond)
    rotary = self.pos_embed(img_shapes, max_txt_seq_len=tokens, device=image.device)
    options = dict(attention_kwargs or {})
    if mask is not None:
        whole_image = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
        options["attention_mask"] = torch.cat([mask, whole_image], dim=1)[:, None, None, :]
    for block in self.transformer_blocks:
        text, image = block(
            hidden_states=image,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=None,
            temb=temb,
            image_rotary_emb=rotary,
            joint_attention_kwargs=options,
            modulate_index=None,
        )
    output = self.proj_out(self.norm_out(image, temb))
    return Transformer2DModelOutput(sample=output) if return_dict else (output,)


class QwenImageAdapter:
    """Quantises the blocks, and nothing outside them."""

    target = "qwen_image"

    def matches(self, transformer: nn.Module) -> bool:
        """By the class's name, so that a subclass does not match."""
        kind = type(transformer)
        return kind.__name__ == "QwenImageTransformer2DModel" and "transformer_qwenimage" in kind.__module__

    def patch(
        self,
        transformer: Any,
        checkpoint_state: dict[str, Tensor],
        quantization_config: dict[str, Any],
        options: PatchOptions,
    ) -> dict[str, Tensor]:
        """Put quantised blocks in place of dense ones, and bind the forward."""
        rank = int(options.adapter_options.get("rank", quantization_config.get("rank", 32)))
        dtype = options.torch_dtype or next(transformer.parameters()).dtype
        if options.torch_dtype is not None:
            transformer.to(dtype)
        for number, block in enumerate(transformer.transformer_blocks):
            transformer.transformer_blocks[number] = NunchakuQwenImageTransformerBlock(
                block, precision=options.precision, rank=rank, torch_dtype=dtype
            )
        transformer._nunchaku_lite_qwen_image_original_forward = transformer.forward
        transformer.forward = MethodType(lite_qwen_image_forward, transformer)
        transformer._nunchaku_lite_qwen_image_patched = True
        return checkpoint_state


def _fused(linears: list[nn.Linear], **kwargs: Any) -> SVDQW4A4Linear:
    first = linears[0]
    width = sum(linear.out_features for linear in linears)
    with torch.device("meta"):
        fused = nn.Linear(first.in_features, width)
    return SVDQW4A4Linear.from_linear(fused, device=first.weight.device, **kwargs)


def _six_vectors(modulation: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.unsqueeze(1) for part in modulation.unflatten(-1, (-1, 6)).unbind(-1))


def _modulated(x: Tensor, shift_and_scale: tuple[Tensor, ...]) -> Tensor:
    shift, scale = shift_and_scale
    return x * scale + shift


register_adapter(QwenImageAdapter())
