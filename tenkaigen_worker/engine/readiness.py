"""What a machine lacks for a backend, and what to do about it. Plain values in, plain values out."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.machine import Gpu, Machine, Problem
from tenkaigen_worker.engine.plan import Sizes, make_plan, published

VERSION = "1.2.1"
WHEELS = f"https://github.com/nunchaku-ai/nunchaku/releases/download/v{VERSION}"
INSTALL_LITE = "pip install git+https://github.com/rootonchair/nunchaku_lite (compiles; needs CUDA's nvcc)"
INSTALL_TORCH = "Install torch 2.10 as a build for CUDA 12.8: docs/operators.md has the exact lines"
BITSANDBYTES = "pip install bitsandbytes"

# What this version has wheels for, as tuples of numbers; nunchaku_lite is compiled for the torch that is there.
OLDEST_TORCH, NEWEST_TORCH = (2, 8), (2, 10)
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)

# Compute capabilities: check_hardware_compatibility in nunchaku's utils.py, and nunchaku_lite's core.py. Both take
# Turing, too; but AWQW4A16Linear.from_linear makes Qwen-Image's modulation in bfloat16 whatever is asked for, and users
# tell of an aborted process on float16, and of black pictures (nunchaku's issues 801, 882 and 910).
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
            f"{found}has no bfloat16, and nunchaku's layers for Qwen-Image are not made for float16",
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
    if package == "nunchaku" and (other := _built_for_another_torch(machine)):
        yield Problem("nunchaku", other, _install(machine))
    if package is not None:
        return
    if settings.nunchaku.loader == "nunchaku_lite":
        yield Problem("nunchaku_lite", "not installed", INSTALL_LITE)
        return

    found, remedy = "not installed; it is not on PyPI", _install(machine)
    if machine.nunchaku is not None:
        found = f"{machine.nunchaku} is the statistics package of that name on PyPI, not the inference engine"
        remedy = f"pip uninstall nunchaku, then {remedy}"
    no_wheel = _without_wheel(machine)
    if no_wheel and machine.cuda and settings.nunchaku.loader == "auto":
        remedy += f". Or, with the versions that are here: {INSTALL_LITE}"
    yield Problem("nunchaku", f"{found}{f'; {no_wheel}' if no_wheel else ''}", remedy)


def _install(machine: Machine) -> str:
    """The command that installs the wheel for this machine; first of all what it needs, where no wheel fits.

    It names torch, too: the wheel wants torchvision, and the newest of that would bring another torch along.
    """
    torch = _numbers(machine.torch or "")
    python = _numbers(machine.python)
    steps = []
    if not OLDEST_PYTHON <= python <= NEWEST_PYTHON:
        python = (3, 11)
        steps.append("use Python 3.11")
    if not OLDEST_TORCH <= torch <= NEWEST_TORCH:
        torch = NEWEST_TORCH
        steps.append("install torch 2.10 (docs/operators.md)")
    cuda = "13.0" if (machine.cuda or "").startswith("13") else "12.8"
    tag = "cp{}{}".format(*python)
    version = f"{torch[0]}.{torch[1]}"
    wheel = f"nunchaku-{VERSION}+cu{cuda}torch{version}-{tag}-{tag}-linux_x86_64.whl"
    return ", then ".join([*steps, f'pip install "torch=={version}.*" "{WHEELS}/{wheel}"'])


def _built_for_another_torch(machine: Machine) -> str:
    """Which torch the installed wheel needs, by its version, when it is not the one here; else empty."""
    built = re.search(r"torch(\d+\.\d+)", machine.nunchaku or "")
    if not built or not machine.torch or _numbers(built[1]) == _numbers(machine.torch):
        return ""
    return f"{machine.nunchaku} was built for torch {built[1]}, and this is torch {machine.torch}"


def _without_wheel(machine: Machine) -> str:
    """Why no wheel fits this machine, in words; empty when one does."""
    if machine.torch and not OLDEST_TORCH <= _numbers(machine.torch) <= NEWEST_TORCH:
        return f"there is no wheel for torch {machine.torch}, only for 2.8 to 2.10"
    if not OLDEST_PYTHON <= _numbers(machine.python) <= NEWEST_PYTHON:
        return f"there is no wheel for Python {machine.python}, only for 3.10 to 3.13"
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
            _install(machine),
        )
    yield from plan.problems


def _numbers(version: str) -> tuple[int, int]:
    """The first two numbers of a version: 2.10 of ``2.10.0+cu128``."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
