"""Joint attention of text and image."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import Tensor


class NunchakuQwenImageNaiveFA2Processor:
    """Text first, then image; the fused projection is cut into thirds. The text mask is not looked at."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Answer the image's and the text's new states."""
        if encoder_hidden_states is None:
            raise ValueError("NunchakuQwenImageFA2Processor requires encoder_hidden_states (text stream)")
        image_freqs, text_freqs = image_rotary_emb or (None, None)
        image = _heads(attn, attn.to_qkv(hidden_states), attn.norm_q, attn.norm_k, image_freqs)
        text = _heads(attn, attn.add_qkv_proj(encoder_hidden_states), attn.norm_added_q, attn.norm_added_k, text_freqs)
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(text, image, strict=True))
        states = dispatch_attention_fn(
            query, key, value, attn_mask=attention_mask, dropout_p=0.0, is_causal=False, backend=None
        )
        states = states.flatten(2, 3).to(query.dtype)
        tokens = encoder_hidden_states.shape[1]
        image_out, text_out = states[:, tokens:], attn.to_add_out(states[:, :tokens])
        for module in attn.to_out:
            image_out = module(image_out)
        return image_out, text_out


def _heads(attn: Any, fused: Tensor, norm_q: Any, norm_k: Any, freqs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (part.unflatten(-1, (attn.heads, -1)) for part in fused.chunk(3, dim=-1))
    query, key = norm_q(query), norm_k(key)
    if freqs is not None:
        query, key = (apply_rotary_emb_qwen(part, freqs, use_real=False) for part in (query, key))
    return query, key, value
