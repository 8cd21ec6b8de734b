"""The schedulers of the modes: which noise levels a run goes through."""

from __future__ import annotations

import math
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from tenkaigen_worker.errors import InputError
from tenkaigen_worker.recipe import BASE_SCHEDULER

LIGHTNING_SCHEDULER = "lightning"

# As the authors of Qwen-Image-Lightning prescribe: the shift of their training, 3, whatever the picture's size.
LIGHTNING = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "base_shift": math.log(3),
    "max_shift": math.log(3),
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
}


def make_scheduler(name: str, base: Any) -> Any:
    """Make the scheduler of this name, fresh: a scheduler has state. ``base`` is the one that came with the model."""
    if name == BASE_SCHEDULER:
        return type(base).from_config(base.config)
    if name == LIGHTNING_SCHEDULER:
        return FlowMatchEulerDiscreteScheduler(**LIGHTNING)
    raise InputError(f"there is no scheduler {name}; there is {BASE_SCHEDULER}, and {LIGHTNING_SCHEDULER}")
