"""The packed layout of the low-rank branch."""

from __future__ import annotations

import logging
import os

from int4_kernels.formats import pack_lowrank, unpack_lowrank
from torch import Tensor

# The same fault as in models/transformers/utils.py, in the wheel too.
logging.basicConfig(
    level=getattr(logging, os.getenv("LOG_LEVEL", "INFO").upper(), logging.INFO),
    format="%(asctime)s - %(levelname)s - %(message)s",
)


def pack_lowrank_weight(weight: Tensor, down: bool) -> Tensor:
    """Pack rank x in (``down``) or out x rank; both are padded to multiples of 16."""
    return pack_lowrank(weight, down)


def unpack_lowrank_weight(weight: Tensor, down: bool) -> Tensor:
    """The inverse: in x rank gives rank x in (``down``), out x rank gives out x rank."""
    return unpack_lowrank(weight, down)
