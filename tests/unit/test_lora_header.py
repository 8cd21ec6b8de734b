"""LoRA files by their headers: what can be loaded, and what is said of all else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenkaigen_worker.loras.formats import Format
from tenkaigen_worker.loras.header import BadFile, LoraHeader, read_header, read_structure
from tests.unit.lora_bytes import Q, lora_bytes, pair, safetensors

QWEN = "Qwen/Qwen-Image"
KOHYA = ("lora_down.weight", "lora_up.weight")
FLAT_Q = "lora_unet_transformer_blocks_0_attn_to_q"


def header_of(tmp_path: Path, content: bytes, base_model: str = "tiny") -> LoraHeader:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    return read_header(file, base_model=base_model)


@pytest.mark.parametrize(
    ("tensors", "written"),
    [
        (pair(), Format.PEFT),
        (pair(Q, alpha=True), Format.PLAIN),
        (pair(Q), Format.PLAIN),
        (pair(Q, words=KOHYA), Format.KOHYA),
        (pair(Q, words=("lora_A.default.weight", "lora_B.default.weight")), Format.PLAIN),
        (pair(Q, words=KOHYA, alpha=True), Format.KOHYA),
        (pair(f"diffusion_model.{Q}"), Format.COMFY),
        (pair(f"diffusion_model.{Q}", words=KOHYA, alpha=True), Format.COMFY),
        (pair(FLAT_Q, words=KOHYA, alpha=True), Format.FLAT),
    ],
)
def test_formats_that_are_known(tmp_path: Path, tensors: dict[str, Any], written: Format) -> None:
    header = header_of(tmp_path, safetensors(tensors, __metadata__={"maker": "me"}))

    assert header.format is written
    assert header.ranks == {Q: 2}
    assert (header.dtype, header.metadata) == ("F32", {"maker": "me"})
    assert header.bytes == (tmp_path / "a.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "it has no tensors"),
        (pair(words=KOHYA), "transformer.*.lora_down/lora_up, a mixture that diffusers does not load"),
        (pair(alpha=True), "with .alpha or .default, a mixture"),
        (pair() | pair(f"transformer.{Q}", words=KOHYA), "it mixes lora_A/lora_B with lora_down/lora_up"),
        (pair() | {f"transformer.{Q}.dora_scale": ("F32", (48,))}, "it is a DoRA"),
        ({f"{Q}.lokr_w1": ("F32", (4, 4))}, "it is a LoKr"),
        ({f"{Q}.hada_w1_a": ("F32", (4, 4))}, "it is a LoHa"),
        (pair() | {f"transformer.{Q}.lora_B.bias": ("F32", (48,))}, "it changes biases"),
        ({f"diffusion_model.{Q}.diff": ("F32", (4, 4))}, "it changes whole weights"),
        ({"lora_te1_text_model_x.lora_down.weight": ("F32", (4, 4))}, "it changes the text encoder"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q"), "it was made for FLUX"),
        (pair("lora_unet_double_blocks_0_img_attn_qkv", words=KOHYA), "it was made for FLUX"),
        (pair("lora_unet_down_blocks_0_attn", words=KOHYA), "it was made for Stable Diffusion"),
        (pair("diffusion_model.blocks.0.self_attn.q"), "it was made for Wan"),
        (pair("transformer.transformer_blocks.0.attn.to_x"), "has no linear layer transformer_blocks.0.attn.to_x"),
        ({"weight": ("F32", (4, 4))}, "the key weight belongs to no LoRA format that is known here"),
        (pair() | {"transformer.x": ("F32", (4, 4))}, "the key transformer.x belongs to no LoRA format"),
        (pair() | pair(Q), f"the key {Q}.lora_A.weight belongs to no LoRA format"),
        ({**pair(Q, alpha=True), **pair(Q, words=("lora_A.default.weight", "lora_B.weight"))}, "the same tensor"),
        ({k: v for k, v in pair().items() if "lora_A" in k}, "has a part A, but no part B"),
        ({k: v for k, v in pair().items() if "lora_B" in k}, "has a part B, but no part A"),
        (pair(Q, words=KOHYA, alpha=True) | {"img_in.alpha": ("F32", ())}, "img_in has only an alpha"),
        (pair() | {f"transformer.{Q}.lora_B.weight": ("F32", (48, 3))}, "rank 2 in its part A and 3 in its part B"),
        (pair() | {f"transformer.{Q}.lora_A.weight": ("F32", (2, 48, 1))}, "both must have two sides"),
        (pair(rank=257), "has rank 257; from 1 to 256"),
        (pair(rank=0), "has rank 0"),
        (pair(Q, words=KOHYA) | {f"{Q}.alpha": ("F32", (2,))}, "has shape [2], not one number"),
        (pair(dtype="F8_E4M3"), "is F8_E4M3; a LoRA's are one of F32, F16, BF16"),
        (pair(dtype="F64"), "is F64; a LoRA's are one of"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_cannot_be_loaded_says_why(tmp_path: Path, tensors: dict[str, Any], says: str) -> None:
    with pytest.raises(BadFile) as refused:
        header_of(tmp_path, safetensors(tensors))
    assert says in str(refused.value)


def raw(header: object, data: int = 0) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return len(text).to_bytes(8, "little") + text + bytes(data)


def entry(begin: object, end: object, shape: object = (1,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = lora_bytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (bytes(100), "it begins with zeros"),
        (b"PK\x03\x04" + bytes(100), "a zip archive, such as a PyTorch pickle"),
        (b"\x80\x02" + bytes(100), "a Python pickle"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"GGUF" + bytes(100), "a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"hello, world, here I am", "it is no safetensors file"),
        (raw(b"[1, 2]"), "it is no safetensors file"),
        (GOOD[:-1], "it is cut short"),
        (GOOD[:40], "its header alone has"),
        (GOOD + b"x", "goes on after its last tensor"),
        (raw(b"{broken"), "its header is not valid JSON"),
        (raw(b'{"a": 1, "a": 2}'), "a name is given twice"),
        (raw(b"{" + b'"a":[' * 50_000), "its header is not valid JSON"),
        (raw({"a": 1}), "does not describe the tensor a"),
        (raw({"a": entry(0, 4, shape=[-1])}, 4), "does not describe the tensor a"),
        (raw({"a": entry(4, 0)}, 4), "does not describe the tensor a"),
        (raw({"a": entry("0", 4)}, 4), "does not describe the tensor a"),
        (raw({"a": entry(0, 4, dtype=5)}, 4), "does not describe the tensor a"),
        (raw({"a": entry(0, 8)}, 8), "the tensor a has 8 bytes, and its shape needs 4"),
        (raw({"a": entry(4, 8)}, 8), "the tensor a begins at byte 4"),
        (raw({"a": entry(0, 4), "b": entry(8, 12)}, 12), "the tensor b begins at byte 8"),
        (raw({"a": entry(0, 4), "b": entry(0, 4)}, 4), "and the one before it ends at 4"),
        (raw({"a": entry(0, 4), "__metadata__": {"x": 1}}, 4), "__metadata__ is not text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_file_says_how(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(BadFile) as refused:
        read_structure(file)
    assert says in str(refused.value)


def test_layers_of_another_size_are_another_models(tmp_path: Path) -> None:
    right = safetensors(
        pair(into=3072, out=3072) | pair("transformer.transformer_blocks.59.img_mlp.net.2", into=12288, out=3072)
    )
    assert len(header_of(tmp_path, right, QWEN).ranks) == 2

    with pytest.raises(BadFile, match=r"goes from 48 to 48 here, and from 3072 to 3072 in Qwen/Qwen-Image"):
        header_of(tmp_path, GOOD, QWEN)
    with pytest.raises(BadFile, match=r"has no layer transformer_blocks.60.attn.to_q: it has 60 blocks"):
        header_of(tmp_path, safetensors(pair("transformer.transformer_blocks.60.attn.to_q")), QWEN)


def test_the_widest_number_type_is_named(tmp_path: Path) -> None:
    both = pair(dtype="BF16") | pair("transformer.img_in", dtype="F32")
    assert header_of(tmp_path, safetensors(both)).dtype == "F32"


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("a", f'{{"dtype": "F32", "shape": [{", ".join(["9" * 4000] * 2)}], "data_offsets": [0, 0]}}'),
        ("a", f'{{"dtype": "F32", "shape": [{", ".join(["0"] * 9)}], "data_offsets": [0, 0]}}'),
        ("a", f'{{"dtype": "I8", "shape": [1], "data_offsets": [0, {"9" * 4300}]}}'),
        ("a", '{"dtype": "F32\\u0000", "shape": [0], "data_offsets": [0, 0]}'),
        ("lora_A." * 100, '{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'),
        ("a\\u0000", '{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'),
    ],
    ids=[
        "numbers of thousands of digits",
        "many sides",
        "an offset that cannot be shown",
        "a type",
        "a long name",
        "nul",
    ],
)
def test_a_header_made_to_be_expensive(tmp_path: Path, name: str, entry: str) -> None:
    raw = f'{{"{name}": {entry}}}'.encode()
    with pytest.raises(BadFile, match="its header") as caught:
        header_of(tmp_path, len(raw).to_bytes(8, "little") + raw)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()
