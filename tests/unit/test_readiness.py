"""What a machine lacks for 4-bit Nunchaku, and what doctor says about it: machines as values, none of them is here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tenkaigen_worker.cli import cli
from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine import inspection
from tenkaigen_worker.engine.inspection import Inspection
from tenkaigen_worker.engine.machine import GIB, Machine, Problem, host_memory
from tenkaigen_worker.engine.plan import published
from tenkaigen_worker.engine.readiness import loader, missing
from tests.unit.machines import A10G, BARE, G5_XLARGE, H100, L4, L40S, RTX_3050, RTX_4060_TI, RTX_5090, T4, with_gpu

NUNCHAKU = EngineSettings(backend="nunchaku")
WHEELS = "https://github.com/nunchaku-ai/nunchaku/releases/download/v1.2.1/nunchaku-1.2.1+cu12.8torch"


def problems(machine: Machine, settings: EngineSettings = NUNCHAKU) -> list[Problem]:
    return missing("nunchaku", machine, settings)


@pytest.mark.parametrize(
    "machine",
    [
        G5_XLARGE,
        with_gpu(L4),
        with_gpu(RTX_4060_TI),
        with_gpu(L40S, bitsandbytes=None),  # the whole text encoder fits
        replace(BARE, nunchaku_lite="0.1.0", torch="2.12.0+cu130", cuda="13.0", driver_cuda="13.0"),
    ],
    ids=["A10G", "L4", "16 GB", "48 GB", "lite"],
)
def test_on_these_nothing_is_missing(machine: Machine) -> None:
    assert problems(machine) == []


@pytest.mark.parametrize(
    ("machine", "subject", "found", "remedy"),
    [
        (with_gpu(T4), "GPU", "Tesla T4 (sm_75) has no bfloat16", "Ampere or Ada"),
        (with_gpu(H100), "GPU", "(sm_90) has no 4-bit tensor cores", "engine.backend: diffusers"),
        (with_gpu(RTX_5090), "GPU", "(sm_120) needs checkpoints in FP4", "engine.backend: diffusers"),
        (with_gpu(replace(A10G, sm=70)), "GPU", "sm_80, sm_86 and sm_89", "engine.backend: diffusers"),
        (with_gpu(), "GPU", "none that torch can use", "engine.backend to tiny"),
        (with_gpu(driver_cuda=None), "GPU", "there is no NVIDIA driver", "Install an NVIDIA driver"),
        (with_gpu(driver_cuda="11.4"), "Driver", "knows CUDA 11.4, and this torch needs 12.8", "570 or later"),
        (
            BARE,
            "nunchaku",
            "not installed; it is not on PyPI",
            f'pip install "torch==2.10.*" "{WHEELS}2.10-cp311-cp311-linux_x86_64.whl"',
        ),
        (replace(BARE, nunchaku="0.16.5"), "nunchaku", "0.16.5 is the statistics package", "pip uninstall nunchaku"),
        (replace(BARE, torch="2.13.0+cu128"), "nunchaku", "no wheel for torch 2.13.0+cu128", "torch 2.10 (docs"),
        (replace(BARE, torch="2.13.0+cu128"), "nunchaku", "not installed", "rootonchair/nunchaku_lite"),
        (
            replace(G5_XLARGE, torch="2.9.1+cu128"),
            "nunchaku",
            "built for torch 2.10, and this is torch 2.9.1",
            f"{WHEELS}2.9-cp311",
        ),
        (replace(BARE, python="3.14.0"), "nunchaku", "no wheel for Python 3.14.0", "use Python 3.11"),
        (replace(BARE, torch="2.13.0+cpu", cuda=None), "torch", "2.13.0+cpu is a build for the CPU", "CUDA 12.8"),
        (replace(BARE, torch=None), "torch", "not installed", "torch 2.10"),
        (replace(BARE, torch_fault="libcudart.so.12: no such file"), "torch", "libcudart.so.12", "torch 2.10"),
        (replace(G5_XLARGE, bitsandbytes=None), "bitsandbytes", "fits only in NF4", "pip install bitsandbytes"),
        (with_gpu(RTX_3050), "GPU memory", "0.6 GiB too little on NVIDIA GeForce RTX 3050", "12 GB or more"),
        (with_gpu(replace(A10G, free_bytes=5 * GIB)), "GPU memory", "17.1 GiB of it is in use", "nvidia-smi"),
        (with_gpu(A10G, host_gib=7.6), "Main memory", "7.6 GiB in all, and loading takes about 8.2 GiB", "16 GB"),
        (with_gpu(RTX_4060_TI, host_gib=12), "Main memory", "loading takes about 14.2 GiB", "32 GB where it has less"),
        (replace(G5_XLARGE, host_available_bytes=4 * GIB), "Main memory", "4.0 GiB of 15.4 GiB are free", "End other"),
        (
            with_gpu(RTX_4060_TI, nunchaku_is_engine=False, nunchaku_lite="0.1.0"),
            "nunchaku_lite",
            "cannot keep blocks in main memory",
            WHEELS,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_each_thing_that_is_missing_has_its_words(machine: Machine, subject: str, found: str, remedy: str) -> None:
    problem = next(one for one in problems(machine) if one.subject == subject)
    assert found in problem.found
    assert remedy in problem.remedy


def test_all_that_is_missing_is_said_at_once() -> None:
    machine = replace(BARE, torch="2.13.0+cpu", cuda=None, gpus=(), nunchaku="0.16.5")
    assert [problem.subject for problem in problems(machine)] == ["torch", "nunchaku"]  # without torch no GPU is seen


def test_settings_that_do_not_fit_the_machine() -> None:
    def first(machine: Machine = G5_XLARGE, **more: Any) -> str:
        return str(problems(machine, EngineSettings(backend="nunchaku", **more))[0])

    assert "there is no cuda:1, only NVIDIA A10G" in first(device="cuda:1")
    assert "engine.device is cpu" in first(device="cpu")
    assert "nunchaku_lite: not installed" in first(nunchaku={"loader": "nunchaku_lite"})
    assert "Set engine.nunchaku.text_encoder to nf4" in first(with_gpu(RTX_4060_TI), nunchaku={"text_encoder": "full"})


def test_other_backends_need_none_of_this() -> None:
    assert missing("diffusers", with_gpu(H100), EngineSettings()) == []


def test_the_engine_itself_is_taken_before_the_lite_one() -> None:
    both = replace(G5_XLARGE, nunchaku_lite="0.1.0")
    assert loader(both, NUNCHAKU) == "nunchaku"
    assert loader(replace(both, nunchaku_is_engine=False), NUNCHAKU) == "nunchaku_lite"
    assert loader(both, EngineSettings(nunchaku={"loader": "nunchaku_lite"})) == "nunchaku_lite"
    assert loader(BARE, NUNCHAKU) is None


def test_a_containers_limit_counts_as_the_machines_memory() -> None:
    files = {
        "/proc/meminfo": "MemTotal:  32000000 kB\nMemFree: 1 kB\nMemAvailable: 30000000 kB\n",
        "/sys/fs/cgroup/memory.max": "8000000000\n",
        "/sys/fs/cgroup/memory.current": "3000000000\n",
    }

    def read(path: Path) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    assert host_memory(read) == (8_000_000_000, 5_000_000_000)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert host_memory(read) == (32_000_000 * 1024, 30_000_000 * 1024)


# What doctor prints


Doctor = Callable[..., str]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Run ``tenkaigen doctor`` on a machine that is not here, and with a database that nobody answers for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENKAIGEN_DATABASE__URL", "postgresql://nobody@127.0.0.1:1/none")

    def run(machine: Machine, backend: str, *files: Problem) -> str:
        async def inspect(settings: EngineSettings) -> Inspection:
            return Inspection(machine, published(settings), files)

        monkeypatch.setattr(inspection, "inspect", inspect)
        monkeypatch.setenv("TENKAIGEN_ENGINE__BACKEND", backend)
        return CliRunner().invoke(cli, ["doctor"]).output

    return run


def test_doctor_prints_the_plan_of_an_a10g(doctor: Doctor) -> None:
    said = doctor(G5_XLARGE, "nunchaku")
    assert "ok  Memory      14.5 GiB of 15.4 GiB free" in said
    assert "ok  GPU         NVIDIA A10G (22.1 GiB, sm_86)" in said
    assert "ok  nunchaku    nunchaku 1.2.1+cu12.8torch2.10; bitsandbytes 0.49.0" in said
    assert "ok  Plan        transformer: 10.7 GiB, on the GPU" in said
    assert "everything else an estimate" in said


def test_doctor_says_what_to_do_on_a_machine_of_another_kind(doctor: Doctor) -> None:
    said = doctor(replace(with_gpu(T4), nunchaku="0.16.5", nunchaku_is_engine=False), "nunchaku")
    assert "no  GPU         Tesla T4 (sm_75) has no bfloat16" in said
    assert "no  nunchaku    0.16.5 is the statistics package" in said
    assert "pip uninstall nunchaku, then pip install" in said
    assert "Plan" not in said


def test_doctor_says_why_auto_does_not_choose_it(doctor: Doctor) -> None:
    said = doctor(with_gpu(H100), "auto")
    assert "ok  nunchaku    not chosen by engine.backend: auto; GPU: NVIDIA H100 80GB HBM3 (sm_90)" in said
    assert "Plan" not in said


def test_doctor_names_what_runs_without_a_gpu(doctor: Doctor) -> None:
    said = doctor(Machine("3.11.9", torch="2.13.0", diffusers="0.42.1"), "auto")
    assert "no  GPU         none that torch can use" in said
    assert "engine.backend to tiny" in said


def test_what_was_found_travels_as_json() -> None:
    found = Inspection(G5_XLARGE, published(NUNCHAKU), (Problem("Model", "is not here", "tenkaigen models pull"),))
    assert Inspection.from_json(json.dumps(asdict(found))) == found


def test_doctor_names_the_files_that_are_not_here(doctor: Doctor) -> None:
    assert "Model" not in doctor(G5_XLARGE, "nunchaku")

    lacking = Problem("Model", "engine.model: acme/fox is not here", "tenkaigen models pull")
    said = doctor(G5_XLARGE, "nunchaku", lacking)
    assert "no  Model       engine.model: acme/fox is not here\n                tenkaigen models pull\n" in said
