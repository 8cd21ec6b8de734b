"""What a machine lacks for a backend, and what to do about it. Plain values in, plain values out."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.machine import Gpu, Machine, Problem
from tenkaigen_worker.engine.plan import Sizes, make_plan, published

WHEELS = "https://github.com/nunchaku-ai/nunchaku/releases"
LITE = "https://github.com/rootonchair/nunchaku_lite"
INSTALL = (
    "pip install the wheel for this Python and torch from "
    f"{WHEELS}, such as nunchaku-1.2.1+cu12.8torch2.10-cp311-cp311-linux_x86_64.whl"
)
INSTALL_TORCH = "Install torch 2.10 as a build for CUDA 12.8: docs/operators.md has the exact lines"
BITSANDBYTES = "pip install bitsandbytes"

# What nunchaku 1.2.1 has wheels for, and the oldest torch of nunchaku_lite, which is compiled where it is installed.
OLDEST_TORCH, NEWEST_TORCH = (2, 8), (2, 10)
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
OLDEST_TORCH_FOR_LITE = (2, 7)
OLDEST_CUDA = (12, 8)

# Compute capabilities: check_hardware_compatibility in nunchaku's utils.py, and nunchaku_lite's core.py.
INT4 = frozenset({80, 86, 89})
TURING = 75
HOPPER = 90
FP4 = frozenset({120, 121})

ELSEWHERE = "Use engine.backend: diffusers on it"


def missing(backend: str, machine: Machine, settings: EngineSettings, sizes: Sizes | None = None) -> list[Problem]:
    """What must be put right before ``backend`` can load on ``machine``; empty when nothing must.

    ``sizes`` are those of the model's files where they are known better than as published.
    """
    if backend != "nunchaku":
        return []
    problems = list(_torch(machine))
    gpu = machine.gpu(settings.device)
    if not problems and (problem := _gpu_problem(gpu, machine, settings)):
        problems.append(problem)
    problems += _package(machine, settings)
    if gpu is None or gpu.sm not in INT4:
        return problems  # what fits into the memory of another GPU is another question
    return problems + list(_memory(machine, settings, sizes or published(settings)))


def loader(machine: Machine, settings: EngineSettings) -> str | None:
    """Which package loads the checkpoints: the configured one, or the first of both that is there; else ``None``."""
    there = {"nunchaku": machine.nunchaku_is_engine, "nunchaku_lite": machine.nunchaku_lite is not None}
    wanted = settings.nunchaku.loader
    return next((name for name, is_there in there.items() if is_there and wanted in ("auto", name)), None)


def _torch(machine: Machine) -> Iterator[Problem]:
    if machine.torch is None:
        yield Problem("torch", "not installed", INSTALL_TORCH)
    elif machine.torch_fault:
        yield Problem("torch", f"{machine.torch} cannot be imported ({machine.torch_fault})", INSTALL_TORCH)
    elif machine.cuda is None:
        yield Problem("torch", f"{machine.torch} is a build for the CPU alone", INSTALL_TORCH)
    elif machine.driver_cuda and _numbers(machine.driver_cuda)[0] < _numbers(machine.cuda)[0]:
        found = f"the NVIDIA driver knows CUDA {machine.driver_cuda}, and this torch needs {machine.cuda}"
        yield Problem("Driver", found, "Install a newer driver (570 or later knows CUDA 12.8)")


def _gpu_problem(gpu: Gpu | None, machine: Machine, settings: EngineSettings) -> Problem | None:
    if gpu is None:
        there = ", ".join(gpu.name for gpu in machine.gpus)
        if there and settings.device != "cpu":
            return Problem("GPU", f"there is no {settings.device}, only {there}", "Set engine.device to one of these")
        if settings.device == "cpu":
            return Problem("GPU", "engine.device is cpu, and 4-bit kernels need a GPU", "Set engine.device to auto")
        driver = "none that torch can use" + ("" if machine.driver_cuda else "; there is no NVIDIA driver")
        return Problem(
            "GPU",
            driver,
            "Install an NVIDIA driver. Without a GPU set engine.backend to tiny for the demonstration model, or to "
            "diffusers for real pictures (slow)",
        )
    if gpu.sm in INT4:
        return None
    found = f"{gpu.name} (sm_{gpu.sm}) "
    if gpu.sm == TURING:
        return Problem(
            "GPU",
            f"{found}has no bfloat16, in which Qwen-Image's text encoder and the checkpoints' branches are calculated",
            "Use a GPU of the Ampere or Ada generation, such as an A10G or L4",
        )
    if gpu.sm in FP4:
        return Problem(
            "GPU",
            f"{found}needs checkpoints in FP4, and those in INT4 are all that this version loads",
            ELSEWHERE,
        )
    if gpu.sm == HOPPER:
        return Problem("GPU", f"{found}has no 4-bit tensor cores", ELSEWHERE)
    return Problem("GPU", f"{found}is none that nunchaku was built for: sm_80, sm_86 and sm_89", ELSEWHERE)


def _package(machine: Machine, settings: EngineSettings) -> Iterator[Problem]:
    """What keeps the checkpoints from being loaded by one of both packages."""
    package = loader(machine, settings)
    if package is not None:
        if package == "nunchaku" and (other := _built_for_another_torch(machine)):
            yield Problem("nunchaku", other, INSTALL[0].upper() + INSTALL[1:])
        return
    if settings.nunchaku.loader == "nunchaku_lite":
        yield Problem("nunchaku_lite", "not installed", f"pip install git+{LITE} (compiles; needs CUDA's nvcc)")
        return

    wrong = machine.nunchaku is not None
    install = f"pip uninstall nunchaku, then {INSTALL}" if wrong else f"{INSTALL[0].upper()}{INSTALL[1:]}"
    no_wheel = _without_wheel(machine)
    if no_wheel:
        also = _numbers(machine.torch or "0") >= OLDEST_TORCH_FOR_LITE
        install = f"{INSTALL_TORCH}, then {INSTALL}" if no_wheel.startswith("torch") else f"{no_wheel}: use 3.11"
        if also and settings.nunchaku.loader == "auto":
            install += f". Or, on this one: pip install git+{LITE} (compiles; needs CUDA's nvcc)"
    found = "not installed; it is not on PyPI"
    if wrong:
        found = f"{machine.nunchaku} is the statistics package of that name on PyPI, not the inference engine"
    yield Problem("nunchaku", f"{found}{f', and {no_wheel}' if no_wheel else ''}", install)


def _built_for_another_torch(machine: Machine) -> str:
    """Which torch the installed wheel needs, by its version, when it is not the one here; else empty."""
    built = re.search(r"torch(\d+\.\d+)", machine.nunchaku or "")
    if not built or not machine.torch or _numbers(built[1]) == _numbers(machine.torch):
        return ""
    return f"{machine.nunchaku} was built for torch {built[1]}, and this is torch {machine.torch}"


def _without_wheel(machine: Machine) -> str:
    """Why no wheel fits this machine, in words; empty when one does."""
    if machine.torch and not OLDEST_TORCH <= _numbers(machine.torch) <= NEWEST_TORCH:
        return f"torch {machine.torch} has no wheel: those are for torch 2.8 to 2.10"
    if not OLDEST_PYTHON <= _numbers(machine.python) <= NEWEST_PYTHON:
        return f"Python {machine.python} has no wheel: those are for Python 3.10 to 3.13"
    return ""


def _memory(machine: Machine, settings: EngineSettings, sizes: Sizes) -> Iterator[Problem]:
    plan = make_plan(settings, machine, sizes)
    if plan.text_encoder == "nf4" and machine.bitsandbytes is None:
        found = "not installed, and the text encoder fits only in NF4"
        yield Problem("bitsandbytes", found, BITSANDBYTES)
    if plan.transformer == "blocks" and loader(machine, settings) == "nunchaku_lite":
        yield Problem(
            "nunchaku_lite",
            "cannot keep blocks in main memory, and this GPU has too little memory for all",
            INSTALL,
        )
    yield from plan.problems


def _numbers(version: str) -> tuple[int, int]:
    """The first two numbers of a version: 2.10 of ``2.10.0+cu128``."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
