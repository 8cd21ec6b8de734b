"""The memory plan as arithmetic, on cards of several sizes; that its numbers are right is shown in test_footprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.footprint import drawing_bytes
from tenkaigen_worker.engine.machine import GIB, Machine
from tenkaigen_worker.engine.plan import Plan, Sizes, make_plan, published
from tenkaigen_worker.offers import Limits
from tests.unit.machines import G5_XLARGE, L40S, RTX_3050, RTX_4060_TI, with_gpu

USUAL = 1024 * 1024
LARGEST = 2048 * 2048


def plan_for(machine: Machine, *, rank: int = 32, **more: Any) -> Plan:
    settings = EngineSettings.model_validate({"checkpoints": {"base": {"file": "x.safetensors", "rank": rank}}, **more})
    return make_plan(settings, machine, published(settings))


def test_an_a10g_keeps_everything_on_the_gpu() -> None:
    plan = plan_for(G5_XLARGE)
    assert (plan.transformer, plan.blocks_on_gpu, plan.text_encoder) == ("resident", 60, "nf4")
    assert plan.problems == ()
    assert plan.lora_rank == 64  # Lightning at run time
    assert plan.limits == Limits(None)
    assert USUAL < plan.tile_above_pixels < LARGEST
    assert 2 <= plan.batch_at(USUAL) <= 8
    assert plan.host_peak_bytes < 12 * GIB


@pytest.mark.parametrize("rank", [32, 128])
@pytest.mark.parametrize("machine", [G5_XLARGE, with_gpu(L40S), with_gpu(RTX_4060_TI)])
def test_all_parts_together_are_what_can_be_used(machine: Machine, rank: int) -> None:
    plan = plan_for(machine, rank=rank)
    block = (plan.sizes.transformer - 81_000_000) // 60
    transformer = plan.sizes.transformer
    if plan.transformer == "blocks":
        transformer = 81_000_000 + (plan.blocks_on_gpu + 2) * block
    used = transformer + plan.text_encoder_bytes + plan.sizes.vae + plan.lora_bytes + plan.room_bytes
    assert used == plan.usable_bytes
    assert plan.room_bytes >= drawing_bytes(USUAL, tiled=True)


def test_rank_128_on_an_a10g_leaves_less_for_loras_and_sizes() -> None:
    plan = plan_for(G5_XLARGE, rank=128)
    assert plan.transformer == "resident"
    assert 0 < plan.lora_rank < 64
    assert plan.limits.max_pixels is not None
    assert USUAL <= plan.limits.max_pixels < LARGEST
    assert (plan.batch_at(USUAL), plan.batch_at(LARGEST)) == (1, 0)


def test_a_card_of_16_gb_keeps_some_blocks_in_main_memory_and_takes_no_loras() -> None:
    plan = plan_for(with_gpu(RTX_4060_TI))
    assert plan.transformer == "blocks"
    assert 1 <= plan.blocks_on_gpu < 58
    assert (plan.lora_rank, plan.lora_bytes) == (0, 0)
    assert plan.host_peak_bytes > plan.sizes.transformer
    assert plan.problems == ()
    assert any("no LoRAs" in line for line in plan.lines())


def test_a_card_of_8_gb_is_refused() -> None:
    plan = plan_for(with_gpu(RTX_3050))
    assert [problem.subject for problem in plan.problems] == ["GPU memory"]
    assert plan.batch_at(USUAL) == 0


def test_a_card_of_48_gb_keeps_the_text_encoder_whole_unless_asked_otherwise() -> None:
    assert plan_for(with_gpu(L40S)).text_encoder == "full"
    assert plan_for(with_gpu(L40S), nunchaku={"text_encoder": "nf4"}).text_encoder == "nf4"
    asked = plan_for(G5_XLARGE, nunchaku={"text_encoder": "full"})
    assert (asked.text_encoder, asked.transformer) == ("full", "blocks")


def test_what_others_use_of_the_gpu_is_not_planned_with() -> None:
    gpu = G5_XLARGE.gpus[0]
    shared = replace(G5_XLARGE, gpus=(replace(gpu, free_bytes=gpu.free_bytes - 2 * GIB),))
    assert plan_for(shared).usable_bytes == gpu.free_bytes - 2 * GIB


def test_limits_are_the_largest_picture_that_still_fits() -> None:
    plan = plan_for(with_gpu(RTX_4060_TI))
    most = plan.limits.max_pixels
    assert most is not None
    assert drawing_bytes(most, tiled=True) <= plan.room_bytes < drawing_bytes(most + 256, tiled=True)


@pytest.mark.parametrize("rank", [32, 128])
def test_a_worker_for_edits_has_room_for_a_picture_beside_its_reference(rank: int) -> None:
    plan = plan_for(G5_XLARGE, rank=rank, edit_model="Qwen/Qwen-Image-Edit-2509")
    most = plan.limits.max_pixels
    assert most is not None
    assert 2 * USUAL <= most < LARGEST + 3 * USUAL
    assert any("the references of an edit counted" in line for line in plan.lines())


def test_where_there_is_memory_for_every_edit_there_is_no_limit() -> None:
    assert plan_for(with_gpu(L40S), edit_model="Qwen/Qwen-Image-Edit-2509").limits == Limits(None)


def test_tiles_need_less_than_the_whole() -> None:
    assert drawing_bytes(LARGEST, tiled=True) < drawing_bytes(LARGEST, tiled=False)
    assert drawing_bytes(64 * 64, tiled=True) == drawing_bytes(64 * 64, tiled=False)


def test_files_that_are_here_count_as_they_are(tmp_path: Path) -> None:
    for name, size in {"text_encoder/a": 300, "text_encoder/b": 200, "vae/a": 7}.items():
        file = tmp_path / f"{name}.safetensors"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(size))
    checkpoints = [tmp_path / "r32", tmp_path / "r128"]
    for file, size in zip(checkpoints, (10, 20), strict=True):
        file.write_bytes(bytes(size))
    assert Sizes.of(checkpoints, tmp_path) == Sizes(20, 500, 7, measured=True)


def test_without_a_gpu_there_is_nothing_to_plan() -> None:
    with pytest.raises(ValueError, match="needs a GPU"):
        plan_for(with_gpu())
