"""What a safetensors file says of itself in its header, checked before any tensor is read.

The format: 8 bytes with the header's length (little-endian), the header as JSON, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenkaigen_worker.loras.formats import MAX_RANK, SIZES, Format, Key, NotLoadable, Part, read_keys

MAX_HEADER_BYTES = 16_000_000  # far more than any LoRA needs, and parsed at once
# Beyond these a header says nothing true, but costs minutes to work through, or cannot be shown.
_MAX_SIDE = 1 << 48  # also of an offset, in bytes
_MAX_SIDES = 8
_MAX_NAME = 500
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_OPENINGS = {
    b"PK\x03\x04": "a zip archive, such as a PyTorch pickle (.pt, .bin, .ckpt)",
    b"\x80": "a Python pickle",
    b"<": "a web page",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"GGUF": "a GGUF file",
}


class BadFile(ValueError):
    """This file is no LoRA that can be loaded; the text says why."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: its number type as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoraHeader:
    """What is in a LoRA's file.

    ``ranks`` has the rank of every linear layer that it changes, by the layer's name in diffusers. ``bytes`` is the
    file's size, ``metadata`` what its maker wrote.
    """

    format: Format
    ranks: Mapping[str, int]
    dtype: str
    bytes: int
    metadata: Mapping[str, str]


def read_header(path: Path, *, base_model: str) -> LoraHeader:
    """Check a LoRA's file as far as its header tells: structure, number types, keys, pairs, ranks, layers.

    ``base_model`` is the model it is said to be for. Raises :class:`BadFile`, or ``OSError`` when it cannot be read.
    """
    tensors, metadata, size = read_structure(path)
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPE_BYTES:
            floats = ", ".join(_DTYPE_BYTES)
            raise BadFile(f"the tensor {name} is {tensor.dtype}; a LoRA's are one of {floats}")
    try:
        written, keys = read_keys(tensors)
    except NotLoadable as error:
        raise BadFile(str(error)) from None
    layers: dict[str, dict[Part, Tensor]] = {}
    for name, key in keys.items():
        layers.setdefault(key.target, {})[key.part] = tensors[name]
    ranks = {target: _rank(target, parts, base_model) for target, parts in layers.items()}
    return LoraHeader(written, ranks, _widest(tensors, keys), size, metadata)


def read_structure(path: Path) -> tuple[dict[str, Tensor], dict[str, str], int]:
    """Read the header of any safetensors file: its tensors, its metadata, and the file's size in bytes.

    Raises :class:`BadFile` when it is none, is cut short, or goes on after its end.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        opening = file.read(8)
        length = int.from_bytes(opening, "little")
        if len(opening) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise BadFile(_not_safetensors(opening + file.read(64), size))
        raw = file.read(length)
    if raw[:1] != b"{":
        raise BadFile(_not_safetensors(opening + raw[:64], size))
    if len(raw) < length:
        raise BadFile(f"it is cut short: its header alone has {length} bytes, the whole file only {size}")
    try:
        header = json.loads(raw, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"its header is not valid JSON: {error}") from None

    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFile("its header's __metadata__ is not text")
    ends = _lay_out(header)
    if 8 + length + ends != size:
        short = "is cut short" if 8 + length + ends > size else "goes on after its last tensor"
        raise BadFile(f"it {short}: its header describes {8 + length + ends} bytes, the file has {size}")
    tensors = {name: Tensor(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    return tensors, metadata, size


def _lay_out(header: Mapping[str, Any]) -> int:
    """Check that tensors follow each other without gaps, each as long as its shape says; answer where the last ends."""
    places = []
    for name, entry in header.items():
        if len(name) > _MAX_NAME or not name.isprintable():
            raise BadFile(
                f"its header has a tensor with a name that cannot be one: {name[:40]!r}, {len(name)} characters"
            )
        match entry:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
                re.fullmatch(r"\w{1,20}", dtype)
                and len(shape) <= _MAX_SIDES
                and all(type(side) is int and 0 <= side <= _MAX_SIDE for side in shape)
                and 0 <= begin <= end <= _MAX_SIDE
            ):
                places.append((begin, end, name))
                wanted = math.prod(shape) * _DTYPE_BYTES.get(dtype, 0)
                if wanted and wanted != end - begin:
                    raise BadFile(f"the tensor {name} has {end - begin} bytes, and its shape needs {wanted}")
            case _:
                raise BadFile(f"its header does not describe the tensor {name} as it should")
    before = 0
    for begin, end, name in sorted(places):
        if begin != before:
            raise BadFile(f"the tensor {name} begins at byte {begin}, and the one before it ends at {before}")
        before = end
    return before


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise ValueError("a name is given twice")
    return keys


def _not_safetensors(opening: bytes, size: int) -> str:
    if not opening.strip(b"\0"):
        return f"it is empty: {size} bytes" if not opening else "it is no safetensors file: it begins with zeros"
    for start, kind in _OPENINGS.items():
        if opening.lstrip().startswith(start):
            return f"it is no safetensors file, but {kind}"
    return "it is no safetensors file"


def _rank(target: str, parts: Mapping[Part, Tensor], base_model: str) -> int:
    """Check what a file has for one layer, and answer the rank of it."""
    for part, other in ((Part.A, Part.B), (Part.B, Part.A)):
        if part not in parts:
            what = f"has a part {other}" if other in parts else "has only an alpha"
            raise BadFile(f"the layer {target} {what}, but no part {part}: lora_A and lora_B come in pairs")
    down, up = parts[Part.A].shape, parts[Part.B].shape
    if len(down) != 2 or len(up) != 2:
        raise BadFile(f"the layer {target} has parts of shapes {list(down)} and {list(up)}; both must have two sides")
    rank, size_in, size_out = down[0], down[1], up[0]
    if up[1] != rank:
        raise BadFile(f"the layer {target} has rank {rank} in its part A and {up[1]} in its part B")
    if not 1 <= rank <= MAX_RANK:
        raise BadFile(f"the layer {target} has rank {rank}; from 1 to {MAX_RANK} can be used")
    if Part.ALPHA in parts and math.prod(parts[Part.ALPHA].shape) != 1:
        raise BadFile(f"the alpha of the layer {target} has shape {list(parts[Part.ALPHA].shape)}, not one number")
    if sizes := SIZES.get(base_model):
        wanted = sizes.layer(target)
        if wanted is None:
            raise BadFile(f"{base_model} has no layer {target}: it has {sizes.blocks} blocks")
        if (size_in, size_out) != wanted:
            here, there = f"{size_in} to {size_out}", f"{wanted[0]} to {wanted[1]}"
            raise BadFile(
                f"the layer {target} goes from {here} here, and from {there} in {base_model}: another model's"
            )
    return rank


def _widest(tensors: Mapping[str, Tensor], keys: Mapping[str, Key]) -> str:
    used = {tensors[name].dtype for name, key in keys.items() if key.part is not Part.ALPHA}
    return max(sorted(used), key=_DTYPE_BYTES.__getitem__)
