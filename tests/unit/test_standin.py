"""The stand-in for Nunchaku's wheel is a fair one: formats, arithmetic, and the faults that callers must live with.

What this proves: that packed tensors lie where the published format puts them, that each quantised layer computes what
its dequantised weight says up to rounding, and that smoothing, shift and the low-rank branch each take part in that, so
that a test on the stand-in would notice if one of them were overlooked.

What it does not prove: no CUDA kernel ran. The order of sums inside a group, the kernels' order of activation codes,
and speed are not modelled, nor is NVFP4; offloading ends where CUDA would begin. The published checkpoints were not
read: theirs are calibrated, these are random.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import int4
from tests.standin.int4_kernels import formats

# Four bits keep about three of a normally distributed activation's digits, so that one layer is off by a tenth.
ONE_LAYER = 0.15
TWO_LAYERS = 0.2
ALL_LAYERS = 0.22
ROUNDING = 0.01


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Many threads wait for each other longer than matrices of this size take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dense() -> Any:
    return int4.small_transformer()


@pytest.fixture(scope="module")
def checkpoint(dense: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return int4.write_checkpoint(tmp_path_factory.mktemp("int4") / "svdq-int4_r32-small.safetensors", dense)


@pytest.fixture(scope="module")
def wheel() -> Iterator[Any]:
    """What ``import nunchaku`` finds."""
    with int4.standin():
        yield importlib.import_module("nunchaku")


@pytest.fixture
def quantised(wheel: Any, checkpoint: Path) -> Any:
    """The quantised transformer, loaded anew so that a test may break it."""
    return wheel.NunchakuQwenImageTransformer2DModel.from_pretrained(str(checkpoint), torch_dtype=torch.bfloat16)


def off_by(got: Tensor, wanted: Tensor) -> float:
    """The norm of the difference, as a part of what was wanted."""
    return ((got.float() - wanted).norm() / wanted.norm()).item()


def numbers(rows: int, columns: int) -> Tensor:
    return torch.arange(rows * columns).reshape(rows, columns)


def test_low_rank_elements_stand_where_the_fragments_put_them() -> None:
    weight = numbers(32, 32).half()

    up, down = formats.pack_lowrank(weight, down=False).flatten(), formats.pack_lowrank(weight, down=True).flatten()

    # Row 9, column 3 of the first fragment: lane (9 % 8) * 4 + 3 // 2 = 5 holds it, behind the four of rows 0 to 7.
    assert up[5 * 8 + 4 + 1] == weight[9, 3]
    assert down[5 * 8 + 4 + 1] == weight[9, 3]
    # Fragments follow one another along the rank first; for `down`, rank is the row.
    assert up[256 + 0] == weight[0, 16]
    assert down[256 + 0] == weight[16, 0]
    assert up[3 * 256 + 6 * 8] == weight[17, 20]
    assert down[3 * 256 + 16 * 8 + 1] == weight[20, 17]


def test_codes_and_scales_stand_where_the_tiles_put_them() -> None:
    codes = torch.zeros(128, 128, dtype=torch.int32)
    codes[9, 35] = -3

    packed = formats.pack_codes(codes).view(torch.uint8).flatten()

    assert packed.nonzero().flatten().tolist() == [77]
    assert packed[77] == (-3 & 0xF) << 4
    first = formats.pack_scales(torch.arange(128))[:16].tolist()
    assert first == [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]


def test_modulation_codes_stand_where_the_interleaving_puts_them() -> None:
    codes = torch.zeros(8, 128, dtype=torch.int32)
    codes[5, 70] = 11
    codes[5, 78] = 6

    packed = formats.pack_awq_codes(codes).view(torch.int16)

    assert packed.nonzero().tolist() == [[1, 64 + 16 + 6]]
    assert packed[1, 86] == 11 | 6 << 4


@pytest.mark.parametrize(
    ("down", "shape"), [(True, (48, 256)), (False, (256, 48)), (True, (4, 128)), (False, (128, 20))]
)
def test_a_low_rank_branch_comes_back_padded_with_zeros(down: bool, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape).bfloat16()

    packed = formats.pack_lowrank(weight, down)
    back = formats.unpack_lowrank(packed, down)

    assert packed.shape == (back.T.shape if down else back.shape)
    assert torch.equal(back[: shape[0], : shape[1]], weight)
    assert back.count_nonzero() == weight.count_nonzero()


def test_everything_else_that_is_packed_comes_back() -> None:
    codes, scales = torch.randint(-8, 8, (384, 256)), torch.randn(384, 4)

    assert torch.equal(formats.unpack_codes(formats.pack_codes(codes)), codes)
    assert torch.equal(formats.unpack_scales(formats.pack_scales(scales)), scales)
    assert torch.equal(formats.unpack_scales(formats.pack_scales(scales[:, 0])), scales[:, 0])
    assert torch.equal(formats.unpack_awq_codes(formats.pack_awq_codes(codes + 8)), codes + 8)


def test_a_checkpoint_has_the_published_keys_and_shapes(dense: Any) -> None:
    tensors, metadata = int4.quantise(dense, rank=16)

    block = {key.removeprefix("transformer_blocks.1."): value for key, value in tensors.items() if "blocks.1." in key}
    fused = {key.removeprefix("attn.to_qkv."): value for key, value in block.items() if "attn.to_qkv." in key}
    assert {key: (tuple(value.shape), value.dtype) for key, value in fused.items()} == {
        "qweight": ((384, 64), torch.int8),
        "wscales": ((2, 384), torch.bfloat16),
        "smooth_factor": ((128,), torch.bfloat16),
        "smooth_factor_orig": ((128,), torch.bfloat16),
        "proj_down": ((128, 16), torch.bfloat16),
        "proj_up": ((384, 16), torch.bfloat16),
        "bias": ((384,), torch.bfloat16),
    }
    assert tuple(block["img_mod.1.qweight"].shape) == (6 * 128 // 4, 128 // 2)
    assert tuple(block["txt_mod.1.wzeros"].shape) == (2, 6 * 128)
    assert block["attn.norm_added_k.weight"].dtype == torch.bfloat16
    assert not [key for key in block if ".to_q." in key or ".add_k_proj." in key]
    assert '"rank": 16' in metadata["quantization_config"]
    assert fused["smooth_factor"].unique().numel() > 100


def test_what_layers_stand_for_is_what_was_quantised(dense: Any, quantised: Any) -> None:
    block, layers = dense.transformer_blocks[0], layers_of(quantised)
    one_more = torch.tensor([0.0, 1, 0, 0, 1, 0]).repeat_interleave(128)

    for target, sources in int4.FUSED.items():
        linears = [block.get_submodule(source) for source in sources]
        layer = int4.dequantised(layers[target])
        assert off_by(layer.weight, torch.cat([linear.weight for linear in linears])) < ONE_LAYER, target
        assert off_by(layer.bias, torch.cat([linear.bias for linear in linears])) < 2 * ROUNDING, target
    for target in int4.MODULATION:
        source, layer = block.get_submodule(target), int4.dequantised(layers[target])
        assert off_by(layer.weight, int4.interleaved(source.weight)) < ONE_LAYER, target
        assert off_by(layer.bias, int4.interleaved(source.bias + one_more)) < ROUNDING, target


def layers_of(transformer: Any) -> dict[str, Any]:
    return {
        name.removeprefix("transformer_blocks.0."): module
        for name, module in transformer.named_modules()
        if name.startswith("transformer_blocks.0.") and hasattr(module, "qweight")
    }


def test_each_layer_computes_what_its_dequantised_weight_says(quantised: Any) -> None:
    torch.manual_seed(0)
    layers = layers_of(quantised)
    plain = {name: layer for name, layer in layers.items() if "mod" not in name and not name.endswith("net.2")}
    assert len(layers) == 10
    assert len(plain) == 6

    for name, layer in plain.items():
        x = torch.randn(2, 40, layer.in_features)
        assert off_by(layer(x.bfloat16()), int4.dequantised(layer)(x)) < ONE_LAYER, name

    for name in int4.MODULATION:
        x = torch.randn(8, 128)
        assert off_by(layers[name](x.bfloat16()), int4.dequantised(layers[name])(x)) < ROUNDING, name


def test_activations_that_four_bits_can_hold_lose_nothing(wheel: Any) -> None:
    layer, x = exact_layer(), exact_activations()

    assert off_by(layer(x), int4.dequantised(layer)(x.float())) < ROUNDING


def test_a_layer_without_its_smoothing_is_wrong(wheel: Any) -> None:
    layer, x = exact_layer(), exact_activations()
    wanted = int4.dequantised(layer)(x.float())

    layer.smooth_factor.data.fill_(1)

    assert off_by(layer(x), wanted) > 2 * ONE_LAYER


def test_the_low_rank_branch_sees_activations_before_they_are_smoothed(wheel: Any) -> None:
    layer, x = exact_layer(), torch.randn(1, 40, 128).bfloat16()
    layer.wscales.data.zero_()
    layer.bias.data.zero_()

    assert off_by(layer(x), x.float() @ int4.branch_of(layer).T) < ROUNDING
    smoothed = x.float() / formats.unpack_scales(layer.smooth_factor).float()
    assert off_by(layer(x), smoothed @ int4.branch_of(layer).T) > 2 * ONE_LAYER


SMOOTH = 2.0 ** torch.tensor([-1, 0, 1, 0]).repeat(32)


def exact_layer() -> Any:
    """A layer whose smoothing divides without rounding."""
    linear_cls = importlib.import_module("nunchaku.models.linear").SVDQW4A4Linear
    torch.manual_seed(1)
    layer = linear_cls(128, 256, rank=16)
    layer.load_state_dict(int4.svdquant(torch.randn(256, 128), torch.randn(256), SMOOTH, 16))
    return layer


def exact_activations() -> Tensor:
    codes = torch.randint(-7, 8, (1, 40, 128), generator=torch.Generator().manual_seed(2))
    codes[..., ::64] = 7
    return (codes * SMOOTH).bfloat16()


def test_a_small_number_of_tokens_is_padded_and_cut_again(quantised: Any) -> None:
    layer = layers_of(quantised)["attn.to_out.0"]
    x = torch.randn(1, 300, 128).bfloat16()

    codes, scales, act = layer.quantize(x[0])

    assert (codes.shape, codes.dtype) == ((512, 64), torch.uint8)
    assert (scales.shape, act.shape, act.dtype) == ((2, 512), (512, 32), torch.float32)
    assert torch.equal(layer(x)[:, :7], layer(x[:, :7]))


@pytest.fixture
def mlp(quantised: Any) -> Any:
    return quantised.transformer_blocks[0].img_mlp


def for_mlp() -> Tensor:
    """Small enough that the shift is no small part of what GELU makes of it."""
    return 0.3 * torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(3))


def plain_mlp(mlp: Any, x: Tensor) -> Tensor:
    """What the MLP stands for, without four bits anywhere."""
    first, second = int4.dequantised(mlp.net[0].proj), int4.dequantised(mlp.net[2])
    result: Tensor = second(nn.functional.gelu(first(x), approximate="tanh"))
    return result


def test_the_fused_mlp_computes_what_its_two_layers_say(mlp: Any) -> None:
    x = for_mlp()

    assert off_by(mlp(x.bfloat16()), plain_mlp(mlp, x)) < TWO_LAYERS


def test_the_fused_mlp_without_its_shift_is_wrong(mlp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = for_mlp()
    wanted = plain_mlp(mlp, x)

    monkeypatch.setattr(sys.modules["int4_kernels.kernels"], "SHIFT", 0.0)

    assert off_by(mlp(x.bfloat16()), wanted) > 1.5 * TWO_LAYERS


def test_the_fused_mlp_without_its_smoothing_is_wrong(mlp: Any) -> None:
    x = for_mlp()
    wanted = plain_mlp(mlp, x)

    mlp.net[2].smooth_factor.data.fill_(1)

    assert off_by(mlp(x.bfloat16()), wanted) > 1.5 * TWO_LAYERS


def test_the_second_mlp_layers_branch_sees_gelu_without_the_shift(mlp: Any) -> None:
    x = for_mlp()
    first, second = mlp.net[0].proj, mlp.net[2]
    second.wscales.data.zero_()
    second.bias.data.zero_()
    hidden = nn.functional.gelu(first(x.bfloat16()).float(), approximate="tanh")

    got = mlp(x.bfloat16())

    assert off_by(got, hidden @ int4.branch_of(second).T) < ROUNDING
    assert off_by(got, (hidden + int4.SHIFT) @ int4.branch_of(second).T) > ROUNDING


def test_the_fused_mlp_calls_no_module(mlp: Any) -> None:
    called: list[Any] = []
    for layer in (mlp.net[0].proj, mlp.net[2]):
        layer.register_forward_hook(lambda module, *_: called.append(module))

    mlp(torch.randn(1, 4, 128).bfloat16())

    assert called == []


def test_modulation_comes_six_values_a_channel_with_one_added_to_the_scales(dense: Any, quantised: Any) -> None:
    source, layer = dense.transformer_blocks[0].img_mod[1], quantised.transformer_blocks[0].img_mod[1]
    x = torch.randn(3, 128)

    shift1, scale1, gate1, shift2, scale2, gate2 = source(x).chunk(6, dim=-1)

    wanted = torch.stack([shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2], dim=-1).flatten(1)
    assert off_by(layer(x.bfloat16()), wanted) < ONE_LAYER


def test_a_modulation_layer_takes_eight_rows_of_its_own_dtype(quantised: Any) -> None:
    layer = quantised.transformer_blocks[0].txt_mod[1]

    layer(torch.randn(8, 128).bfloat16())

    with pytest.raises(RuntimeError, match="m <= 8"):
        layer(torch.randn(9, 128).bfloat16())
    with pytest.raises(RuntimeError, match="float16"):
        layer(torch.randn(1, 128).half())


def given(*, batch: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)
    return {
        "hidden_states": torch.randn(batch, 16, 64, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 7, 32, generator=generator),
        "timestep": torch.full((batch,), 0.5),
        "img_shapes": [[(1, 4, 4)]] * batch,
        "return_dict": False,
    }


def halved(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value.bfloat16() if torch.is_tensor(value) else value for key, value in arguments.items()}


class OldRope(nn.Module):
    """Takes the positional call of diffusers 0.36."""

    def __init__(self, rope: Any, tokens: int) -> None:
        super().__init__()
        self.rope, self.tokens = rope, tokens

    def forward(self, shapes: Any, lengths: Any, device: Any = None) -> Any:
        return self.rope(shapes, max_txt_seq_len=self.tokens, device=device)


@pytest.fixture
def emptied(quantised: Any, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Let the wheel's own forward run here; answers what grows with every emptying of the CUDA cache."""
    calls: list[None] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(None))
    quantised.pos_embed = OldRope(quantised.pos_embed, 7)
    return calls


@torch.no_grad()
def test_the_whole_transformer_is_close_to_the_dense_one(dense: Any, quantised: Any, emptied: list[None]) -> None:
    (wanted,) = dense(**given())

    (got,) = quantised(**halved(given()))

    assert off_by(got, wanted) < ALL_LAYERS
    other = int4.small_transformer(seed=1)
    assert off_by(other(**given())[0], wanted) > 1


@torch.no_grad()
def test_it_does_not_look_at_the_text_mask_and_empties_the_cache_each_time(quantised: Any, emptied: list[None]) -> None:
    (without,) = quantised(**halved(given()))
    mask = torch.tensor([[True, True, False, False, False, False, False]])

    (masked,) = quantised(**halved(given()), encoder_hidden_states_mask=mask)

    assert torch.equal(masked, without)
    assert len(emptied) == 2


@torch.no_grad()
def test_its_forward_fails_on_current_diffusers(quantised: Any) -> None:
    with pytest.raises(TypeError, match="multiple values for argument 'device'"):
        quantised(**halved(given()))


def test_it_refuses_another_dtype_and_what_is_not_safetensors(wheel: Any, quantised: Any) -> None:
    with pytest.raises(ValueError, match="dtype"):
        quantised.to(torch.float16)
    assert quantised.to("cpu") is quantised
    with pytest.raises(AssertionError, match="Only safetensors"):
        wheel.NunchakuQwenImageTransformer2DModel.from_pretrained("a-folder")


def test_offloading_without_cuda_says_so(quantised: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(RuntimeError, match="no CUDA"):
        quantised.set_offload(True, use_pin_memory=False, num_blocks_on_gpu=1)


def test_on_a_gpu_for_four_bit_floats_int4_is_not_loaded(
    wheel: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUNCHAKU_STANDIN_PRECISION", "fp4")

    with pytest.raises(RuntimeError, match="size mismatch"):
        wheel.NunchakuQwenImageTransformer2DModel.from_pretrained(checkpoint)


def test_importing_it_sets_up_the_root_logger(wheel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up: list[dict[str, Any]] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: set_up.append(options))
    for name in [name for name in sys.modules if name.partition(".")[0] == "nunchaku"]:
        monkeypatch.delitem(sys.modules, name)

    importlib.import_module("nunchaku")

    assert [options["level"] for options in set_up] == [logging.INFO]


@torch.no_grad()
def test_the_lite_one_patches_diffusers_own_transformer_and_honours_the_mask(
    wheel: Any, dense: Any, checkpoint: Path
) -> None:
    lite = importlib.import_module("nunchaku_lite")
    mask = torch.tensor([[True] * 7, [True, True, False, False, False, False, False]])
    patched = lite.patch_transformer(int4.small_transformer(seed=1), checkpoint, torch_dtype=torch.bfloat16)

    (got,) = patched(**halved(given(batch=2)), encoder_hidden_states_mask=mask)

    assert off_by(got, dense(**given(batch=2), encoder_hidden_states_mask=mask)[0]) < ALL_LAYERS
    (without,) = patched(**halved(given(batch=2)))
    assert torch.equal(got[0], without[0])
    assert not torch.equal(got[1], without[1])
    assert lite.patch_transformer(patched, checkpoint) is patched


def test_the_lite_one_loads_a_pipeline_around_a_checkpoint(wheel: Any, checkpoint: Path, tmp_path: Path) -> None:
    lite = importlib.import_module("nunchaku_lite")
    pipeline = int4.small_pipeline()
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").unlink()

    with pytest.warns(FutureWarning, match="torch_dtype"):
        loaded = lite.load_nunchaku_pipeline(
            tmp_path, pipeline_cls=type(pipeline), checkpoint=checkpoint, torch_dtype=torch.bfloat16
        )

    assert loaded.transformer.transformer_blocks[1].attn.to_qkv.rank == 32
    assert not any(parameter.is_meta for parameter in loaded.transformer.parameters())


def test_nothing_of_it_is_left_behind(wheel: Any) -> None:
    path, modules = list(sys.path), dict(sys.modules)

    with int4.standin():
        importlib.import_module("nunchaku")

    assert sys.path == path
    assert not [name for name in sys.modules if name.partition(".")[0] in ("nunchaku", "nunchaku_lite", "int4_kernels")]
    sys.modules.update(modules)
