"""A LoRA made on the spot, to show what one does: it fits the ``tiny`` model and turns its noise into a pattern.

Written with nothing but the standard library, so that whoever asks for the demonstration need not load torch.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

# The last layer that sees the whole picture, and its size: 48 inputs, twice 48 outputs.
TARGET = "transformer.norm_out.linear"
INPUTS, OUTPUTS = 48, 96
RANK = 4


def write_demo_lora(path: Path, *, seed: int = 3) -> None:
    """Write the LoRA; the same seed makes the same bytes, another one another pattern.

    The format is safetensors': the header's length, the header as JSON, the numbers (little-endian float32).
    """
    numbers = random.Random(seed)  # noqa: S311 - not for secrets
    shapes = {f"{TARGET}.lora_A.weight": (RANK, INPUTS), f"{TARGET}.lora_B.weight": (OUTPUTS, RANK)}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (rows, columns) in shapes.items():
        begin = len(data)
        data += struct.pack(f"<{rows * columns}f", *(numbers.gauss(0, 1) for _ in range(rows * columns)))
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, len(data)]}

    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
