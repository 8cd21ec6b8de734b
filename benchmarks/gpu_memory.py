"""The peak of memory since one last looked: of a GPU, or, without one, of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

GIB = 2**30
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


class Meter(Protocol):
    """Where memory is measured. ``device`` in words; bytes throughout."""

    @property
    def device(self) -> str: ...

    def peak(self) -> int: ...

    def reset(self) -> None: ...


class ProcessMeter:
    """What this process holds, as the kernel counts it (Linux: proc(5), VmHWM)."""

    device = "the CPU (memory of the whole process)"

    def peak(self) -> int:
        """The largest resident set since the last reset."""
        (line,) = [line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    def reset(self) -> None:
        """Begin anew with what is held now."""
        CLEAR.write_text("5", encoding="utf-8")


class GpuMeter:
    """What torch has given out on a CUDA device; with ``cap_bytes`` it gives out no more than that."""

    def __init__(self, index: int, cap_bytes: int | None) -> None:
        import torch

        self._cuda = torch.cuda
        self._index = index
        properties = torch.cuda.get_device_properties(index)
        capped = f", capped at {cap_bytes / GIB:.1f}" if cap_bytes else ""
        self.device = f"{properties.name} ({properties.total_memory / GIB:.1f} GiB{capped}), CUDA {torch.version.cuda}"
        if cap_bytes is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / properties.total_memory), index)

    def peak(self) -> int:
        """The most that was given out at once since the last reset."""
        return int(self._cuda.max_memory_allocated(self._index))

    def reset(self) -> None:
        """Begin anew with what is given out now."""
        self._cuda.reset_peak_memory_stats(self._index)
