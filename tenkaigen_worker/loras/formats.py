"""The key formats of LoRA files that can be loaded into a Qwen-Image transformer.

They are those that ``QwenImageLoraLoaderMixin`` of diffusers 0.42 converts rightly (``loaders/lora_pipeline.py``,
``_convert_non_diffusers_qwen_lora_to_diffusers``), once keys without a prefix have got ``diffusion_model.``: it would
not look closer at them otherwise. What it leaves out in silence, such as DoRA's scales, is refused here. This module
needs nothing but the standard library: parent and engine may both read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

MAX_RANK = 256


class Format(StrEnum):
    """How a file's keys are written; the value is an example's beginning."""

    PEFT = "transformer.*.lora_A.weight"
    PLAIN = "*.lora_A.weight"
    KOHYA = "*.lora_down.weight"
    COMFY = "diffusion_model.*"
    FLAT = "lora_unet_*"


class Part(StrEnum):
    """What a tensor is: ``A`` is rank x in, ``B`` is out x rank, alpha a single number."""

    A = "A"
    B = "B"
    ALPHA = "alpha"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a file: the module it changes, as diffusers names it, and which part of the change it is."""

    target: str
    part: Part


class NotLoadable(ValueError):
    """The keys belong to no format that can be loaded; the text says why."""


_ENDINGS = {
    ".lora_A.weight": Part.A,
    ".lora_A.default.weight": Part.A,
    ".lora_down.weight": Part.A,
    ".lora_B.weight": Part.B,
    ".lora_B.default.weight": Part.B,
    ".lora_up.weight": Part.B,
    ".alpha": Part.ALPHA,
}

_KOHYA_WORDS = (".lora_down.", ".lora_up.")
_PEFT_WORDS = (".lora_A.", ".lora_B.")

# What other trainers write, and why it cannot be used.
_OTHERS = {
    r"dora_scale|lora_magnitude_vector": "it is a DoRA, and diffusers would leave its scales out",
    r"\.lokr_": "it is a LoKr (Kronecker factors), not a LoRA",
    r"\.hada_|\.loha_": "it is a LoHa (Hadamard factors), not a LoRA",
    r"\.lora_mid\.": "it has lora_mid tensors, which only convolutions use",
    r"\.diff(_b)?$": "it changes whole weights (.diff), not only by a LoRA",
    r"lora_[AB]\..*bias$|\.bias$": "it changes biases, which is not supported",
    r"^(lora_te|text_encoder|te\d?[._])": "it changes the text encoder, which LoRAs for Qwen-Image leave alone",
    r"single_transformer_blocks|double_blocks|single_blocks": "it was made for FLUX",
    r"down_blocks|up_blocks|mid_block|input_blocks|output_blocks": "it was made for Stable Diffusion",
    r"^(diffusion_model\.|lora_unet_)blocks[._]\d": "it was made for Wan or a model like it",
}

# The linear layers of QwenImageTransformer2DModel, each with its size in and out, in terms of the model's sizes.
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
_IN_A_BLOCK = {
    **{f"attn.{name}": ("width", "width") for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")},
    **{f"attn.{name}": ("width", "width") for name in ("add_q_proj", "add_k_proj", "add_v_proj")},
    **{f"{side}_mlp.net.0.proj": ("width", "4 width") for side in ("img", "txt")},
    **{f"{side}_mlp.net.2": ("4 width", "width") for side in ("img", "txt")},
    **{f"{side}_mod.1": ("width", "6 width") for side in ("img", "txt")},
}
_AT_THE_TOP = {
    "img_in": ("latents", "width"),
    "txt_in": ("text", "width"),
    "proj_out": ("width", "latents"),
    "norm_out.linear": ("width", "2 width"),
    "time_text_embed.timestep_embedder.linear_1": ("time", "width"),
    "time_text_embed.timestep_embedder.linear_2": ("width", "width"),
}


def _flat(target: str) -> str:
    return target.replace(".", "_")


_FLAT_NAMES = {_flat(name): name for name in (*_IN_A_BLOCK, *_AT_THE_TOP)}


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one transformer: blocks, width of its layers, and of what comes from the text encoder."""

    blocks: int
    width: int
    text: int
    latents: int = 64
    time: int = 256

    def layer(self, target: str) -> tuple[int, int] | None:
        """The size in and out of one linear layer; ``None`` when there is none of that name."""
        sizes = _AT_THE_TOP.get(target)
        if block := _BLOCK.fullmatch(target):
            sizes = _IN_A_BLOCK.get(block[2]) if int(block[1]) < self.blocks else None
        return (self._size(sizes[0]), self._size(sizes[1])) if sizes else None

    def _size(self, name: str) -> int:
        factor, _, unit = name.rpartition(" ")
        return int(factor or 1) * int(getattr(self, unit))


# The models that LoRAs are made for, by ``Lora.base_model``; of others only the layers' names are known.
SIZES = {
    "Qwen/Qwen-Image": Sizes(blocks=60, width=3072, text=3584),
}


def is_layer(target: str) -> bool:
    """Whether a Qwen-Image transformer of any size may have a linear layer of this name."""
    return target in _AT_THE_TOP or bool((block := _BLOCK.fullmatch(target)) and block[2] in _IN_A_BLOCK)


def read_keys(names: Iterable[str]) -> tuple[Format, dict[str, Key]]:
    """Say how a file's keys are written, and what each of them is.

    Raises :class:`NotLoadable` when diffusers would not load them, or not all of them.
    """
    keys = list(names)
    if not keys:
        raise NotLoadable("it has no tensors")
    for pattern, why in _OTHERS.items():
        if found := next((key for key in keys if re.search(pattern, key)), None):
            raise NotLoadable(f"{why} (key {found})")

    written = _format_of(keys)
    read = {key: _read_key(key, written) for key in keys}
    if twice := _first_twice(read):
        raise NotLoadable(f"the keys {twice[0]} and {twice[1]} are about the same tensor")
    return written, read


def _format_of(keys: list[str]) -> Format:
    kohya = any(word in key for key in keys for word in _KOHYA_WORDS)
    if kohya and any(word in key for key in keys for word in _PEFT_WORDS):
        raise NotLoadable("it mixes lora_A/lora_B with lora_down/lora_up keys, of which diffusers loads only one kind")

    for prefix, written in (("diffusion_model.", Format.COMFY), ("lora_unet_", Format.FLAT)):
        if any(key.startswith(prefix) for key in keys):
            return written
    if any(key.startswith("transformer.") for key in keys):
        if kohya:
            raise NotLoadable(
                "its keys are transformer.*.lora_down/lora_up, a mixture that diffusers does not load: remove "
                "'transformer.' from them, or write lora_A/lora_B in place of lora_down/lora_up"
            )
        if any(key.endswith(".alpha") or ".default." in key for key in keys):
            raise NotLoadable(
                "its keys are transformer.*.lora_A/lora_B with .alpha or .default, a mixture that diffusers does not "
                "load: remove 'transformer.' from them"
            )
        return Format.PEFT
    return Format.KOHYA if kohya else Format.PLAIN


_PREFIXES = {Format.PEFT: "transformer.", Format.COMFY: "diffusion_model.", Format.FLAT: "lora_unet_"}


def _read_key(key: str, written: Format) -> Key:
    prefix = _PREFIXES.get(written, "")
    ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
    if ending is None or not key.startswith(prefix):
        raise NotLoadable(f"the key {key} belongs to no LoRA format that is known here ({written} and its like)")
    target = key.removeprefix(prefix).removesuffix(ending)
    target = _unflattened(target) if written is Format.FLAT else target
    if not is_layer(target):
        raise NotLoadable(f"a Qwen-Image transformer has no linear layer {target} (key {key})")
    return Key(target, _ENDINGS[ending])


def _unflattened(name: str) -> str:
    """Turn ``transformer_blocks_0_attn_to_q`` into ``transformer_blocks.0.attn.to_q``."""
    if block := re.fullmatch(r"transformer_blocks_(\d+)_(.+)", name):
        return f"transformer_blocks.{block[1]}.{_FLAT_NAMES.get(block[2], block[2])}"
    return _FLAT_NAMES.get(name, name)


def _first_twice(read: dict[str, Key]) -> tuple[str, str] | None:
    first: dict[Key, str] = {}
    for name, key in read.items():
        if key in first:
            return first[key], name
        first[key] = name
    return None
