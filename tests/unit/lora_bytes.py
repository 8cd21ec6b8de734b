"""LoRA files made on the spot: the bytes of small safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
Q = "transformer_blocks.0.attn.to_q"


def safetensors(tensors: Mapping[str, tuple[str, Sequence[int]]], *, fill: int = 0, **header: Any) -> bytes:
    """Write a safetensors file by hand: names with number type and shape, and what else the header is to have."""
    entries: dict[str, Any] = dict(header)
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + WIDTHS[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes([fill]) * end


def pair(
    layer: str = f"transformer.{Q}",
    *,
    rank: int = 2,
    into: int = 48,
    out: int = 48,
    dtype: str = "F32",
    alpha: bool = False,
    words: tuple[str, str] = ("lora_A.weight", "lora_B.weight"),
) -> dict[str, tuple[str, Sequence[int]]]:
    """Name the tensors of one layer."""
    tensors: dict[str, tuple[str, Sequence[int]]] = {
        f"{layer}.{words[0]}": (dtype, (rank, into)),
        f"{layer}.{words[1]}": (dtype, (out, rank)),
    }
    return {**tensors, f"{layer}.alpha": (dtype, ())} if alpha else tensors


def lora_bytes(fill: int = 0, **options: Any) -> bytes:
    """Make a small LoRA for a model of any size; ``fill`` makes it another one."""
    return safetensors(pair(**options), fill=fill)
