"""The forward pass of Qwen-Image's transformer over the quantised blocks of nunchaku.

nunchaku's own one fails on current diffusers, ignores which tokens of a prompt are padding, and touches CUDA streams
even where nothing is offloaded; 1.2.1 also empties CUDA's cache at every call. This one does what diffusers' does, with
the two things in which the blocks differ: they know no ``modulate_index``, and take the mask ready for attention.
nunchaku_lite brings a forward pass of its own that does all this.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput


def bind_forward(transformer: Any) -> None:
    """Make :func:`forward` the forward pass of this transformer, and of no other."""
    transformer.forward = types.MethodType(forward, transformer)


def forward(
    self: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_hidden_states_mask: torch.Tensor | None = None,
    timestep: torch.Tensor | None = None,
    img_shapes: list[Any] | None = None,
    guidance: None = None,
    attention_kwargs: dict[str, Any] | None = None,
    controlnet_block_samples: list[torch.Tensor] | None = None,
    additional_t_cond: None = None,
    return_dict: bool = True,
) -> tuple[torch.Tensor] | Transformer2DModelOutput:
    """Predict the noise, B x image tokens x channels; the arguments are those of diffusers' transformer.

    ``encoder_hidden_states_mask``, B x text tokens, is true where a token is none of padding; ``None`` means that none
    is. ``guidance`` and ``additional_t_cond`` are for variants of the model that nunchaku cannot load. B is at most 8,
    as ``engine.max_batch`` is, and guidance a call of its own: with more the kernel of the modulation ends the process
    (nunchaku's gemv_awq.cu).
    """
    assert timestep is not None  # noqa: S101 - diffusers' signature has a default here
    manager = self.offload_manager if self.offload else None
    if manager is not None:
        manager.set_device(hidden_states.device)

    hidden_states = self.img_in(hidden_states)
    text = self.txt_in(self.txt_norm(encoder_hidden_states))
    embedded_time = self.time_text_embed(timestep.to(hidden_states.dtype), hidden_states)
    positions = self.pos_embed(img_shapes, max_txt_seq_len=text.shape[1], device=hidden_states.device)
    attention = dict(attention_kwargs or {})
    if encoder_hidden_states_mask is not None:
        attention["attention_mask"] = joint_mask(encoder_hidden_states_mask, hidden_states.shape[1])

    stream = None
    if manager is not None:
        stream = torch.cuda.current_stream(hidden_states.device)
        manager.current_block_idx = 0  # a call that ran out of memory left it in the middle: blocks would be mixed up
        manager.initialize(stream)
    count = len(self.transformer_blocks)
    for index, block in enumerate(self.transformer_blocks):
        text, hidden_states = (block if manager is None else manager.get_block(index))(
            hidden_states=hidden_states,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=None,
            temb=embedded_time,
            image_rotary_emb=positions,
            joint_attention_kwargs=attention,
        )
        if controlnet_block_samples is not None:
            each = -(-count // len(controlnet_block_samples))
            hidden_states = hidden_states + controlnet_block_samples[index // each]
        if manager is not None:
            manager.step(stream)

    output = self.proj_out(self.norm_out(hidden_states, embedded_time))
    return Transformer2DModelOutput(sample=output) if return_dict else (output,)


def joint_mask(text_mask: torch.Tensor, image_tokens: int) -> torch.Tensor:
    """What attention may look at, B x 1 x 1 x (text + image tokens): all of the picture, and the text but its padding.

    ``text_mask`` is B x text tokens; what is not 0 in it counts.
    """
    picture = text_mask.new_ones((text_mask.shape[0], image_tokens), dtype=torch.bool)
    return torch.cat([text_mask.to(torch.bool), picture], dim=1)[:, None, None, :]
