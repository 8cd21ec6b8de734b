"""Looking at this very machine in a process of its own, as doctor does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tenkaigen_worker.config_engine import CheckpointSettings, EngineSettings
from tenkaigen_worker.engine import inspection
from tenkaigen_worker.engine.inspection import find_missing, find_sizes, inspect, look_here
from tenkaigen_worker.engine.machine import GIB, inspect_here
from tenkaigen_worker.engine.plan import Sizes, published
from tenkaigen_worker.errors import EngineError
from tests.unit.machines import BARE, G5_XLARGE


@pytest.fixture
def files(tmp_path: Path) -> EngineSettings:
    """A pipeline's folder without its transformer, and a checkpoint; no tensor is ever read."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline"}))
    for part, size in {"text_encoder": 300, "vae": 7}.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(bytes(size))
    checkpoint = tmp_path / "svdq-int4_r128.safetensors"
    checkpoint.write_bytes(bytes(20))
    return EngineSettings(
        backend="nunchaku",
        model=str(tmp_path),
        checkpoints={"base": CheckpointSettings(file=str(tmp_path / "svdq-int4_r{rank}.safetensors"), rank=128)},
    )


async def test_the_machine_and_the_files_that_are_here(files: EngineSettings) -> None:
    found = await inspect(files)
    assert found.sizes == Sizes(20, 300, 7, measured=True)
    assert found.machine.torch
    assert found.machine.diffusers
    assert 0 < found.machine.host_available_bytes <= found.machine.host_bytes


async def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MODULE", "tenkaigen_worker.engine.nowhere")
    with pytest.raises(EngineError, match=r"could not be looked at: .*nowhere"):
        await inspect(EngineSettings())


def test_a_file_that_is_missing_is_named(files: EngineSettings, tmp_path: Path) -> None:
    assert find_missing(files) == []
    assert find_missing(EngineSettings(backend="tiny")) == []

    (tmp_path / "svdq-int4_r128.safetensors").unlink()
    (problem,) = find_missing(files)
    assert problem.found.startswith("engine.checkpoints.base: ")
    assert problem.found.endswith("svdq-int4_r128.safetensors is not here")
    assert problem.remedy == "Put it there, or name one on the hub"


def test_auto_lacks_a_transformer_only_where_it_does_not_take_nunchaku(
    files: EngineSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline", "transformer": []}))
    auto = files.model_copy(update={"backend": "auto"})

    monkeypatch.setattr(inspection, "inspect_here", lambda device: G5_XLARGE)
    assert look_here(auto).files == ()
    monkeypatch.setattr(inspection, "inspect_here", lambda device: BARE)
    assert [problem.found for problem in look_here(auto).files] == [f"engine.model: {tmp_path} is not complete"]


async def test_what_the_hub_has_is_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (problem,) = (await inspect(EngineSettings(backend="auto"))).files
    assert (problem.found, problem.remedy) == ("engine.model: Qwen/Qwen-Image is not here", "tenkaigen models pull")


def test_while_one_file_is_missing_all_sizes_are_as_published(files: EngineSettings, tmp_path: Path) -> None:
    (tmp_path / "svdq-int4_r128.safetensors").unlink()
    assert find_sizes(files) == published(files)
    assert not find_sizes(files).measured


class Cuda:
    """Two GPUs as ``torch.cuda`` shows them; ``asked`` has those that were given a context."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def get_device_properties(self, number: int) -> Any:
        return SimpleNamespace(name=f"GPU {number}", major=8, minor=6, total_memory=24 * GIB, uuid=f"uuid-{number}")

    def mem_get_info(self, number: int) -> tuple[int, int]:
        self.asked.append(number)
        return 20 * GIB, 24 * GIB


@pytest.mark.parametrize(
    ("device", "asked", "free"),
    [("auto", [0], [20, 24]), ("cuda", [0], [20, 24]), ("cuda:1", [1], [24, 20]), ("cpu", [], [24, 24])],
)
def test_only_the_gpu_that_is_to_be_used_gets_a_context(
    monkeypatch: pytest.MonkeyPatch, device: str, asked: list[int], free: list[int]
) -> None:
    cuda = Cuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    machine = inspect_here(device)
    assert cuda.asked == asked
    assert [(gpu.name, gpu.free_bytes // GIB) for gpu in machine.gpus] == list(
        zip(("GPU 0", "GPU 1"), free, strict=True)
    )
