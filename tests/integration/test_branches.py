"""LoRAs on Nunchaku's 4-bit layers, computed through the stand-in for its wheel.

What this proves: that a LoRA ends up in the right place of the published layout, and adds there what it adds to the
dense layer that the 4-bit one stands for, within rounding, where the kernels' order of steps is the stand-in's: the
branch sees what comes before smoothing, quantisation and shift. What it does not: that the real kernels keep to that
order and layout, which was read from their source, and what any of it costs on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tenkaigen_worker.engine.adapters import Adapters
from tenkaigen_worker.engine.layers import LowRank, find_layers
from tenkaigen_worker.errors import InputError
from tenkaigen_worker.recipe import AppliedLora
from tests.int4 import dequantised, small_transformer, standin, write_checkpoint
from tests.standin.int4_kernels.formats import unpack_lowrank
from tests.standin.int4_kernels.layers import AWQW4A16Linear

CPU = torch.device("cpu")
BLOCK = "transformer_blocks.0."
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
MLPS = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
MODULATION = ("img_mod.1", "txt_mod.1")
TARGETS = tuple(BLOCK + name for name in (*(f"attn.{name}" for name in ATTENTION), *MLPS, *MODULATION))
OWN_RANK = 32

# Of the norm of what a LoRA adds. Both of its parts, the sum of its ranks and the layer's output are rounded to
# bfloat16, by 0.2 to 0.4 % each.
ROUNDING = 0.01
# Of the norm of a layer's output: what activations in 4 bits cost, with a LoRA and without.
FOUR_BITS = 0.15
# The same after a whole block of such layers, of the norm of what a LoRA changes there.
FOUR_BITS_IN_A_BLOCK = 0.5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dense() -> Any:
    return small_transformer(layers=1)


@pytest.fixture(scope="module")
def checkpoint(dense: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("int4") / "int4.safetensors", dense, OWN_RANK)


@pytest.fixture(scope="module")
def int4(checkpoint: Path) -> Any:
    """The dense transformer in 4 bits, loaded as Nunchaku loads it."""
    with standin():
        nunchaku = importlib.import_module("nunchaku")
        return nunchaku.NunchakuQwenImageTransformer2DModel.from_pretrained(checkpoint).eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(transformer: Any, *targets: str, rank: int = 8, seed: int = 0) -> dict[str, LowRank]:
    """A random LoRA for some layers, each part of it about as strong as the layer."""
    layers = find_layers(transformer)
    return {
        target: LowRank(
            random(rank, layers[target].in_features, seed=2 * seed + 1) / layers[target].in_features ** 0.5,
            random(layers[target].out_features, rank, seed=2 * seed + 2),
        )
        for target in targets
    }


def write(path: Path, lora: Mapping[str, LowRank]) -> Path:
    parts = {}
    for target, low_rank in lora.items():
        parts[f"transformer.{target}.lora_A.weight"] = low_rank.down
        parts[f"transformer.{target}.lora_B.weight"] = low_rank.up
    save_file(parts, path)
    return path


@contextmanager
def applied(transformer: Any, folder: Path, *loras: tuple[Mapping[str, LowRank], float]) -> Iterator[None]:
    """Apply LoRAs with their weights, as the engine does for one run."""
    files = {str(number): write(folder / f"{number}.safetensors", lora) for number, (lora, _) in enumerate(loras)}
    wanted = [AppliedLora(f"LoRA {number}", str(number), weight) for number, (_, weight) in enumerate(loras)]
    dtype = transformer.img_in.weight.dtype
    with Adapters(transformer, CPU, dtype, keep_bytes=0).applied(wanted, files), torch.no_grad():
        yield


def what_goes_in(transformer: Any, target: str) -> Tensor:
    """Batch x tokens x channels for a layer, and a row for a modulation layer."""
    if target.endswith(MODULATION):
        return random(2, 128).bfloat16()
    tokens = random(1, 40, 128).bfloat16()
    if not target.endswith("net.2"):
        return tokens
    first = transformer.get_submodule(target.replace("net.2", "net.0.proj"))
    return torch.nn.functional.gelu(first(tokens).float(), approximate="tanh").bfloat16()


def what_comes_out(transformer: Any, target: str) -> Tensor:
    """What a layer answers in the order that diffusers has; the second of an MLP within the fused MLP."""
    layer = find_layers(transformer)[target]
    if target.endswith("net.2"):
        output = transformer.get_submodule(target.removesuffix(".net.2"))(random(1, 40, 128).bfloat16())
    else:
        output = layer.module(what_goes_in(transformer, target))
    return in_order(layer, output).float()


def in_order(layer: Any, output: Tensor) -> Tensor:
    """Of a 4-bit module's output that of one dense layer."""
    if layer.name.endswith(MODULATION):
        return output.unflatten(-1, (-1, 6)).transpose(1, 2).flatten(1)
    return output[..., layer.first : layer.first + layer.out_features]


def added(transformer: Any, target: str, low_rank: LowRank) -> Tensor:
    """What a LoRA adds to a dense layer."""
    return what_goes_in(transformer, target).float() @ low_rank.down.T @ low_rank.up.T


def state(transformer: Any) -> dict[str, Any]:
    """All that a LoRA could have left behind: which parameters there are and what is in them, ranks, and hooks."""
    kept: dict[str, Any] = {
        name: (id(parameter), parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
        for name, parameter in transformer.named_parameters()
    }
    for name, module in transformer.named_modules():
        kept[f"{name} itself"] = (id(module), len(module._forward_hooks), getattr(module, "rank", None))
    return kept


# What a LoRA adds.


@pytest.mark.parametrize("weight", [1.0, -0.7])
@pytest.mark.parametrize("target", TARGETS)
def test_a_lora_on_a_4_bit_layer_is_the_lora_beside_the_dequantised_one(
    int4: Any, tmp_path: Path, target: str, weight: float
) -> None:
    """Proven for each kind of layer: the LoRA adds its product, within rounding, and no error of 4 bits to that.

    The dense layer is the one that the codes stand for. So nothing is said about how well they stand for the original.
    """
    lora = make(int4, target)
    layer = find_layers(int4)[target]
    with torch.no_grad():
        before = what_comes_out(int4, target)
        dense = in_order(layer, dequantised(layer.module)(what_goes_in(int4, target).float()))
        wanted = weight * added(int4, target, lora[target])
    with applied(int4, tmp_path, (lora, weight)):
        after = what_comes_out(int4, target)

    assert (after - before - wanted).norm() < ROUNDING * wanted.norm()
    assert (after - dense - wanted).norm() < FOUR_BITS * (dense + wanted).norm()
    assert wanted.norm() > before.norm() / 4


@pytest.mark.parametrize("name", [*MLPS, *MODULATION, "attn.to_v", "attn.to_out.0"])
def test_a_block_changes_as_the_dense_one_does(int4: Any, dense: Any, tmp_path: Path, name: str) -> None:
    """Proven: order and place are those of diffusers' own block, whose LoRA is a hook on the layer of that name.

    How much is only said roughly, since 4 bits change every layer of the block.
    """
    lora = make(dense, BLOCK + name)

    def change(transformer: Any) -> Tensor:
        before = run_block(transformer)
        with applied(transformer, tmp_path, (lora, 1.0)):
            return run_block(transformer) - before

    in_4_bits, wanted = change(int4), change(dense)
    assert (in_4_bits - wanted).norm() < FOUR_BITS_IN_A_BLOCK * wanted.norm()


def run_block(transformer: Any) -> Tensor:
    dtype = transformer.img_in.weight.dtype
    image, text, time = (random(*shape).to(dtype) for shape in ((1, 40, 128), (1, 8, 128), (1, 128)))
    with torch.no_grad():
        outcome = transformer.transformer_blocks[0](
            hidden_states=image, encoder_hidden_states=text, encoder_hidden_states_mask=None, temb=time
        )
    return torch.cat(outcome, dim=1).float()


def test_the_layers_of_nunchaku_lite_take_the_same(int4: Any, checkpoint: Path, tmp_path: Path) -> None:
    with standin():
        lite = importlib.import_module("nunchaku_lite")
        patched = lite.patch_transformer(small_transformer(layers=1), checkpoint, torch_dtype=torch.bfloat16)
    plain, outcomes = run_block(int4), []
    for transformer in (int4, patched):
        before = state(transformer)
        with applied(transformer, tmp_path, (make(int4, *TARGETS), 1.0)):
            outcomes.append(run_block(transformer))
        assert state(transformer) == before

    assert torch.equal(*outcomes)
    assert not torch.equal(outcomes[0], plain)


@pytest.mark.parametrize("rank", [4, 8, 16, 20, 64, 128])
@pytest.mark.parametrize("target", [f"{BLOCK}attn.add_k_proj", f"{BLOCK}img_mlp.net.2"])
def test_a_branch_grows_behind_its_own_ranks(int4: Any, tmp_path: Path, target: str, rank: int) -> None:
    """Proven for the layout that the stand-in unpacks: own ranks to the bit, then the LoRA's, then zeros."""
    layer, lora = find_layers(int4)[target], make(int4, target, rank=rank)
    module = layer.module
    own_down, own_up = unpacked(module)
    with applied(int4, tmp_path, (lora, 0.3)):
        down, up = unpacked(module)
        padded = (rank + 15) // 16 * 16
        assert module.rank == OWN_RANK + padded == module.proj_down.shape[1] == module.proj_up.shape[1]

    wanted = torch.zeros_like(up[:, OWN_RANK:])
    rows = slice(layer.first, layer.first + layer.out_features)
    wanted[rows, :rank] = (lora[target].up.bfloat16().float() * 0.3).bfloat16()
    assert torch.equal(down[:OWN_RANK], own_down)
    assert torch.equal(up[:, :OWN_RANK], own_up)
    assert torch.equal(down[OWN_RANK : OWN_RANK + rank], lora[target].down.bfloat16())
    assert not down[OWN_RANK + rank :].any()
    assert torch.equal(up[:, OWN_RANK:], wanted)


def unpacked(module: Any) -> tuple[Tensor, Tensor]:
    return unpack_lowrank(module.proj_down, down=True), unpack_lowrank(module.proj_up, down=False)


@pytest.mark.parametrize("target", [f"{BLOCK}attn.to_k", f"{BLOCK}txt_mlp.net.2", f"{BLOCK}img_mod.1"])
def test_several_loras_add_up(int4: Any, tmp_path: Path, target: str) -> None:
    loras = [(make(int4, target, rank=rank, seed=rank), weight) for rank, weight in ((4, 1), (20, -0.7), (64, 0.3))]
    with torch.no_grad():
        before = what_comes_out(int4, target)
        wanted = sum(weight * added(int4, target, lora[target]) for lora, weight in loras)
    with applied(int4, tmp_path, *loras):
        after = what_comes_out(int4, target)

    assert isinstance(wanted, Tensor)
    assert (after - before - wanted).norm() < ROUNDING * wanted.norm()


def test_a_weight_of_nothing_touches_nothing(int4: Any, tmp_path: Path) -> None:
    before = state(int4)
    with applied(int4, tmp_path, (make(int4, *TARGETS), 0.0)):
        assert state(int4) == before


@pytest.mark.parametrize("missing", range(3))
@pytest.mark.parametrize("names", [ATTENTION[:3], ATTENTION[4:7]], ids=["image", "text"])
def test_each_of_q_k_and_v_may_be_missing(int4: Any, tmp_path: Path, names: tuple[str, ...], missing: int) -> None:
    targets = [f"{BLOCK}attn.{name}" for name in names]
    given = [target for number, target in enumerate(targets) if number != missing]
    # Ranks that differ, and not in the order of the layers.
    lora = make(int4, given[1], rank=20) | make(int4, given[0], seed=1)
    with torch.no_grad():
        before = {target: what_comes_out(int4, target) for target in targets}
    with applied(int4, tmp_path, (lora, 1.0)):
        after = {target: what_comes_out(int4, target) for target in targets}

    assert torch.equal(after[targets[missing]], before[targets[missing]])
    for target in given:
        wanted = added(int4, target, lora[target])
        assert (after[target] - before[target] - wanted).norm() < ROUNDING * wanted.norm()


def test_what_is_kept_is_not_read_again(int4: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", make(int4, *TARGETS, "img_in"))
    adapters = Adapters(int4, CPU, torch.bfloat16, keep_bytes=2**20)
    lora = AppliedLora("A", "a", 1.0)
    outcomes = []
    for _ in range(2):
        with adapters.applied([lora], {"a": file}):
            outcomes.append(run_block(int4))
        file.unlink(missing_ok=True)

    assert torch.equal(*outcomes)


# Nothing is left of it.


class Broken(Exception):
    """What a run raises that nobody foresaw."""


def test_all_is_put_back_to_the_bit(int4: Any, tmp_path: Path) -> None:
    before, plain = state(int4), run_block(int4)
    lora = make(int4, *TARGETS, "img_in", "proj_out")
    with applied(int4, tmp_path, (lora, 1.0), (lora, -0.3)):
        assert not torch.equal(run_block(int4), plain)
    assert state(int4) == before
    assert {module.rank for module in int4.modules() if hasattr(module, "proj_down")} == {OWN_RANK}
    with pytest.raises(Broken), applied(int4, tmp_path, (lora, 2.0)):
        raise Broken

    assert state(int4) == before
    assert torch.equal(run_block(int4), plain)


@pytest.mark.parametrize("after", [0, 1, 6])
def test_all_is_put_back_when_memory_runs_out_half_way(
    int4: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    before, grown = state(int4), 0
    real = torch.cat

    def cat(*arguments: Any, **named: Any) -> Tensor:
        nonlocal grown
        grown += 1
        if grown > after:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, **named)

    monkeypatch.setattr(torch, "cat", cat)
    with pytest.raises(torch.OutOfMemoryError), applied(int4, tmp_path, (make(int4, *TARGETS), 1.0)):
        raise AssertionError("it was applied")

    assert grown == after + 1
    assert state(int4) == before


# Who is refused.


def refused(transformer: Any, folder: Path, complaint: str, *loras: Mapping[str, LowRank]) -> None:
    before = state(transformer)
    with (
        pytest.raises(InputError, match=rf"^loras: {complaint}"),
        applied(transformer, folder, *((lora, 1.0) for lora in loras)),
    ):
        raise AssertionError("it was applied")
    assert state(transformer) == before


@pytest.mark.parametrize("target", TARGETS)
def test_blocks_that_wait_in_main_memory_take_none(
    int4: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    lora = make(int4, target, "img_in")
    monkeypatch.setattr(int4, "offload", True)

    complaint = "LoRA 0 cannot be applied to this model: each of these waits in main memory, .*there: " + target + "$"
    refused(int4, tmp_path, complaint, lora)
    with applied(int4, tmp_path, (make(int4, "img_in"), 1.0)):
        assert int4.img_in._forward_hooks


def test_what_is_kept_is_refused_too_once_blocks_wait(
    int4: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.safetensors", make(int4, *TARGETS))
    adapters = Adapters(int4, CPU, torch.bfloat16, keep_bytes=2**20)
    with adapters.applied([AppliedLora("A", "a", 1.0)], {"a": file}):
        pass
    monkeypatch.setattr(int4, "offload", True)

    with pytest.raises(InputError, match=r"A cannot be applied .* and 11 more$"), ExitStack() as stack:
        stack.enter_context(adapters.applied([AppliedLora("A", "a", 1.0)], {"a": file}))


def test_layers_that_are_quantised_in_another_way_take_none(int4: Any, tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"img_in": torch.nn.Linear(64, 64), "other": AWQW4A16Linear(64, 64)})
    complaint = "LoRA 0 cannot be applied to this model: each of these is quantised in a way that holds no LoRA: other$"

    refused(model, tmp_path, complaint, make(model, "img_in", "other"))


def test_fused_layers_are_not_known_by_their_own_names(int4: Any, tmp_path: Path) -> None:
    names = [f"{BLOCK}attn.{name}" for name in ("to_qkv", "add_qkv_proj")]
    lora = {name: LowRank(torch.zeros(4, 128), torch.zeros(384, 4)) for name in names}

    refused(int4, tmp_path, rf".*there is no {names[1]}, {names[0]} in this one", lora)


def test_parts_that_do_not_fit_a_third_are_refused(int4: Any, tmp_path: Path) -> None:
    low_rank = LowRank(torch.zeros(4, 128), torch.zeros(384, 4))

    complaint = ".*to_q has 128 inputs and 128 outputs, and the LoRA's parts are 4 x 128 and 384 x 4"
    refused(int4, tmp_path, complaint, {f"{BLOCK}attn.to_q": low_rank})


def test_more_ranks_than_the_kernels_take_are_refused(int4: Any, tmp_path: Path) -> None:
    targets = [f"{BLOCK}attn.{name}" for name in ATTENTION[:3]]
    loras = [make(int4, *targets, rank=rank, seed=rank) for rank in (176, 160)]
    with applied(int4, tmp_path, *((lora, 0.1) for lora in (loras[1], loras[1]))):
        assert find_layers(int4)[targets[0]].module.rank == 992

    complaint = rf"LoRA 0, LoRA 1 cannot be applied together: {BLOCK}attn.to_qkv would have rank 1040, and at most 1024"
    refused(int4, tmp_path, complaint, *loras)
