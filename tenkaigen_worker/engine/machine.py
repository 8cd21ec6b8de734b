"""What this machine is: versions, GPUs, memory. Gathered where torch may be imported, a plain value everywhere else."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GIB = 1024**3

# Where a container's memory limit stands: control groups version 2, then version 1.
CGROUP_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that torch can use. ``sm`` is its compute capability: 86 for 8.6.

    ``free_bytes`` is known only of the GPU that is looked at for; of another one it is all that it has.
    """

    name: str
    sm: int
    total_bytes: int
    free_bytes: int
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a worker finds where it runs. A version is ``None`` where the package is not installed.

    ``cuda`` is what torch was built for, ``driver_cuda`` the newest that the driver knows. ``torch_fault`` says why
    torch cannot be imported. ``host_bytes`` is within the limit of the container, if there is one.
    ``nunchaku_is_engine`` is false for the unrelated package of that name.
    """

    python: str
    torch: str | None = None
    cuda: str | None = None
    driver_cuda: str | None = None
    diffusers: str | None = None
    gpus: tuple[Gpu, ...] = ()
    host_bytes: int = 0
    host_available_bytes: int = 0
    nunchaku: str | None = None
    nunchaku_is_engine: bool = False
    nunchaku_lite: str | None = None
    bitsandbytes: str | None = None
    torch_fault: str | None = None

    def gpu(self, device: str = "auto") -> Gpu | None:
        """The GPU that ``engine.device`` names; ``auto`` is the first. ``None`` when it is not there."""
        number = gpu_number(device)
        return self.gpus[number] if number is not None and number < len(self.gpus) else None

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Machine:
        """The machine of which ``said`` is the plain values, as ``dataclasses.asdict`` gives them."""
        return cls(**{**said, "gpus": tuple(Gpu(**gpu) for gpu in said["gpus"])})


@dataclass(frozen=True, slots=True)
class Problem:
    """What of a machine does not do for a backend: what was found, and what to do."""

    subject: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.found}. {self.remedy}"


def gpu_number(device: str) -> int | None:
    """Which GPU ``engine.device`` names; ``auto`` is the first, ``cpu`` is none."""
    return None if device == "cpu" else int(device.partition(":")[2] or 0)


def inspect_here(device: str = "auto") -> Machine:
    """Look at this machine, on which ``device`` is to be used; imports torch. Nothing that is missing raises."""
    total, available = host_memory()
    version, cuda, gpus, fault = _torch(gpu_number(device))
    return Machine(
        python=platform.python_version(),
        torch=version,
        cuda=cuda,
        driver_cuda=_driver_cuda(),
        diffusers=_version("diffusers"),
        gpus=gpus,
        host_bytes=total,
        host_available_bytes=available,
        nunchaku=_version("nunchaku"),
        nunchaku_is_engine=_has_module("nunchaku.models"),
        nunchaku_lite=_version("nunchaku_lite"),
        bitsandbytes=_version("bitsandbytes"),
        torch_fault=fault,
    )


def _torch(used: int | None) -> tuple[str | None, str | None, tuple[Gpu, ...], str | None]:
    try:
        import torch
    except Exception as error:  # a broken build raises whatever it likes
        return _version("torch"), None, (), " ".join(str(error).split())[:300]

    gpus = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        free = total = about.total_memory
        if number == used:  # asking makes a CUDA context, which takes memory that another GPU's worker may have planned
            free, total = torch.cuda.mem_get_info(number)
        gpus.append(Gpu(about.name, about.major * 10 + about.minor, total, free, str(about.uuid)))
    return torch.__version__, torch.version.cuda, tuple(gpus), None


def _driver_cuda() -> str | None:
    """The newest CUDA that the driver knows, as ``cuDriverGetVersion`` says it: 12080 is 12.8."""
    with suppress(OSError, AttributeError):
        number = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) == 0:
            return f"{number.value // 1000}.{number.value % 1000 // 10}"
    return None


def host_memory(read: Callable[[Path], str] = Path.read_text) -> tuple[int, int]:
    """Bytes of memory in all, and those free for a new program: of the machine, or of the container if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    with suppress(OSError, ValueError, IndexError):
        fields = dict(line.split(":", 1) for line in read(Path("/proc/meminfo")).splitlines())
        total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit_file, usage_file in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number, and no limit
            limit = int(read(limit_file))
            if limit < total:
                total, available = limit, min(available, max(0, limit - int(read(usage_file))))
    return total, available


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown" if _has_module(distribution) else None


def _has_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False
