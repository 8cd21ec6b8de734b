"""What a device's errors mean for a run, and the two things one does to a device between kernels."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tenkaigen_worker.engine.backend import DeviceBroken, OutOfMemory


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Tell apart what a smaller run, or only a new process, can help."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error)) from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise OutOfMemory(str(error)) from None
        # Drivers and libraries have a wording each, and a context in doubt may spoil pictures: a reload is cheaper.
        if device.type == "cuda":
            first_line = str(error).partition("\n")[0]
            raise DeviceBroken(f"{device} failed and needs a new process: {first_line}") from error
        raise


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Give back the memory of what nobody refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
