"""The bounds of what styles may ask for: those of jobs, which recipe.py and request.py hold."""

from __future__ import annotations

MAX_STEPS = 100
MAX_GUIDANCE_SCALE = 20.0
MIN_SIDE, MAX_SIDE, SIDE_STEP = 64, 4096, 16  # pixels
MAX_PIXELS = 2048 * 2048


def check_steps(steps: int) -> int:
    """Refuse numbers of denoising steps that no job may have; raises ``ValueError``."""
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"must be a whole number from 1 to {MAX_STEPS}, not {steps}")
    return steps


def check_guidance_scale(scale: float) -> float:
    """Refuse guidance that no job may have; raises ``ValueError``."""
    if not 1 <= scale <= MAX_GUIDANCE_SCALE:
        raise ValueError(f"must be a number from 1 to {MAX_GUIDANCE_SCALE:g}, not {scale:g}")
    return scale


def check_side(side: int) -> int:
    """Refuse a width or height, in pixels, that no picture may have; raises ``ValueError``."""
    if not MIN_SIDE <= side <= MAX_SIDE or side % SIDE_STEP:
        raise ValueError(f"must be a multiple of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}, not {side}")
    return side


def check_area(width: int, height: int) -> None:
    """Refuse a picture with too many pixels; raises ``ValueError``."""
    if width * height > MAX_PIXELS:
        text = f"{width} x {height} is {width * height} pixels, and a picture may have at most {MAX_PIXELS}"
        raise ValueError(f"{text}, such as 2048 x 2048")
