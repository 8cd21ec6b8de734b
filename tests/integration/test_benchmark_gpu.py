"""The benchmark for GPUs, on the CPU: its own code runs; what it would measure on a GPU is not shown here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gpu_models
import pytest
import torch
from click.testing import CliRunner
from gpu import Watch, gpu, measure, modes
from gpu_memory import ProcessMeter

from tenkaigen_worker.config import Settings
from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.config_generation import ModeSettings
from tenkaigen_worker.engine.tiny import load_demo_model
from tenkaigen_worker.errors import TenkaigenError

SHORT = ModeSettings(steps=2, guidance_scale=2.0)
CPU = EngineSettings(device="cpu", threads=1)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "error")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    file = tmp_path / "worker.yaml"
    file.write_text(
        "engine: {threads: 1}\n"
        "generation: {default_mode: short, modes: {short: {steps: 3, guidance_scale: 1, scheduler: lightning}}}\n"
        "cost: {gpu_hourly_usd: 3600}\n"
    )
    return file


def test_measures_and_prints_tables_for_the_readme(config: Path, tmp_path: Path) -> None:
    result = tmp_path / "gpu.json"
    arguments = ["-c", str(config), "--tiny", "--side", "64", "--pictures", "2", "--json", str(result)]

    printed = CliRunner().invoke(gpu, arguments, catch_exceptions=False).stdout

    row = next(line for line in printed.splitlines() if line.startswith("| short |"))
    dollars = float(row.strip("| ").split(" | ")[-1])
    (mode,) = json.loads(result.read_text(encoding="utf-8"))["modes"]
    assert len(mode["picture"]) == len(mode["bare"]) == len(mode["gap"]) == 2
    assert len(mode["step"]) == 2 * (3 - 1)
    assert dollars == pytest.approx(sum(mode["picture"]) / 2, abs=1e-4)  # at a dollar a second
    assert [line.split()[1] for line in printed.splitlines() if line.endswith(" |")][-4:] == [
        "load",
        "encode",
        "denoise",
        "decode",
    ]


def test_draws_with_a_model_made_of_random_weights() -> None:
    backend = gpu_models.random_backend(CPU, small_pipeline())
    watch = Watch(ProcessMeter())

    samples = measure(backend, "short", SHORT, 64, 1, watch)

    assert len(samples.picture) == len(samples.bare) == 1
    assert {"encode", "denoise", "decode"} <= set(watch.peaks)


def test_every_weight_is_made_in_the_format_that_was_asked_for() -> None:
    pipe = small_pipeline()

    for part in (pipe.transformer, pipe.text_encoder):
        tensors = [*part.parameters(), *part.buffers()]
        assert not [tensor for tensor in tensors if tensor.is_meta]
        assert {parameter.dtype for parameter in part.parameters()} == {torch.bfloat16}


def test_full_size_is_the_published_size() -> None:
    from accelerate import init_empty_weights
    from diffusers import QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with init_empty_weights():
        transformer = QwenImageTransformer2DModel()
        config = Qwen2_5_VLConfig(text_config=gpu_models.TEXT, vision_config=gpu_models.VISION)
        text_encoder = Qwen2_5_VLForConditionalGeneration(config)

    assert bytes_in_bfloat16(transformer) == pytest.approx(40.9e9, rel=0.005)
    assert bytes_in_bfloat16(text_encoder) == pytest.approx(16.6e9, rel=0.005)


def test_says_which_modes_it_cannot_measure(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings.model_validate(
        {"generation": {"default_mode": "a", "modes": {"a": SHORT, "b": SHORT.model_copy(update={"lora": "Ink"})}}}
    )

    assert [name for name, _ in modes(settings, None)] == ["a"]
    assert "b: not measured, it needs the LoRA Ink" in capsys.readouterr().err
    assert [name for name, _ in modes(settings, "random")] == ["a", "b"]


def test_memory_is_capped_on_a_gpu_alone() -> None:
    with pytest.raises(TenkaigenError, match="--cap-gib is for a CUDA GPU"):
        gpu_models.meter(Settings(), "tiny", 22.5)


def bytes_in_bfloat16(module: torch.nn.Module) -> int:
    return 2 * sum(parameter.numel() for parameter in module.parameters())


def small_pipeline() -> Any:
    small = load_demo_model(EngineSettings(backend="tiny"))._pipe
    return gpu_models.assemble(
        CPU,
        lambda: type(small.transformer).from_config(small.transformer.config),
        lambda: type(small.text_encoder)(small.text_encoder.config),
        lambda: type(small.vae).from_config(small.vae.config),
        nf4=set(),
    )
