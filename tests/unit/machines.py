"""Machines that are not here: what :func:`~tenkaigen_worker.engine.machine.inspect_here` would say on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tenkaigen_worker.engine.machine import GIB, Gpu, Machine

# What a CUDA context and a driver leave of the memory that the card is sold with.
A10G = Gpu("NVIDIA A10G", 86, round(22.06 * GIB), round(21.7 * GIB))
T4 = Gpu("Tesla T4", 75, round(14.6 * GIB), round(14.4 * GIB))
L4 = Gpu("NVIDIA L4", 89, round(22.0 * GIB), round(21.7 * GIB))
H100 = Gpu("NVIDIA H100 80GB HBM3", 90, round(79.1 * GIB), round(78.6 * GIB))
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", 120, round(31.3 * GIB), round(30.8 * GIB))
RTX_4060_TI = Gpu("NVIDIA GeForce RTX 4060 Ti", 89, round(15.6 * GIB), round(15.3 * GIB))
RTX_3050 = Gpu("NVIDIA GeForce RTX 3050", 86, round(7.8 * GIB), round(7.6 * GIB))
L40S = Gpu("NVIDIA L40S", 89, round(44.4 * GIB), round(44.0 * GIB))

G5_XLARGE = Machine(
    python="3.11.9",
    torch="2.10.0+cu128",
    cuda="12.8",
    driver_cuda="12.8",
    diffusers="0.42.1",
    gpus=(A10G,),
    host_bytes=round(15.4 * GIB),
    host_available_bytes=round(14.5 * GIB),
    nunchaku="1.2.1+cu12.8torch2.10",
    nunchaku_is_engine=True,
    bitsandbytes="0.49.0",
)
BARE = replace(G5_XLARGE, nunchaku=None, nunchaku_is_engine=False)


def with_gpu(*gpus: Gpu, host_gib: float = 62, **more: Any) -> Machine:
    """The same machine with other GPUs, and more main memory."""
    host = round(host_gib * GIB)
    return replace(G5_XLARGE, gpus=gpus, host_bytes=host, host_available_bytes=host - GIB, **more)
