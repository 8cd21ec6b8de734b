"""What a machine lacks for a backend, and what to do about it. Plain values in, plain values out."""

from __future__ import annotations

from collections.abc import Iterator

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.machine import Machine, Problem
from tenkaigen_worker.engine.plan import Sizes, make_plan, published

WHEELS = "github.com/nunchaku-ai/nunchaku/releases"
LITE = "git+https://github.com/rootonchair/nunchaku_lite"

# What nunchaku 1.2.1 has wheels for; nunchaku_lite is built on the machine, for the torch that is there.
TORCH_WITH_WHEEL = ((2, 8), (2, 10))
TORCH_FOR_LITE = (2, 9)
PYTHON_WITH_WHEEL = ((3, 10), (3, 13))

# Compute capabilities with 4-bit tensor cores that nunchaku is built for: check_hardware_compatibility in its utils.py.
INT4 = frozenset({80, 86, 89})
TURING = 75
FP4 = frozenset({120, 121})


def missing(backend: str, machine: Machine, settings: EngineSettings, sizes: Sizes | None = None) -> list[Problem]:
    """What must be put right before ``backend`` can load on ``machine``; empty when nothing must.

    ``sizes`` are those of the model's files where they are known better than as published.
    """
    if backend != "nunchaku":
        return []
    problems = [*_torch(machine), *_gpu(machine, settings), *_loader(machine, settings)]
    if machine.gpu(settings.device) is not None:
        problems += make_plan(settings, machine, sizes or published(settings)).problems
    return problems


def loader(machine: Machine, settings: EngineSettings) -> str | None:
    """Which package loads the checkpoints: the configured one, or the first of both that is there; else ``None``."""
    there = {"nunchaku": machine.nunchaku_is_engine, "nunchaku_lite": machine.nunchaku_lite is not None}
    wanted = settings.nunchaku.loader
    return next((name for name, is_there in there.items() if is_there and wanted in ("auto", name)), None)


def _torch(machine: Machine) -> Iterator[Problem]:
    remedy = "Install torch 2.10 with CUDA 12.8: docs/operators.md has the line"
    if machine.torch is None or machine.torch_fault:
        yield Problem("torch", f"cannot be imported ({machine.torch_fault or 'it is not installed'})", remedy)
    elif machine.cuda is None:
        yield Problem("torch", f"{machine.torch} is a build for the CPU alone", remedy)


def _gpu(machine: Machine, settings: EngineSettings) -> Iterator[Problem]:
    gpu = machine.gpu(settings.device)
    if gpu is None:
        yield Problem("GPU", "none that torch can use", "Use engine.backend: diffusers or tiny on this machine")
    elif gpu.sm not in INT4:
        yield Problem("GPU", f"{gpu.name} (sm_{gpu.sm}) is not one of nunchaku", "Use engine.backend: diffusers on it")


def _loader(machine: Machine, settings: EngineSettings) -> Iterator[Problem]:
    if loader(machine, settings) is None:
        yield Problem("nunchaku", "not installed", f"Install a wheel from {WHEELS}")
