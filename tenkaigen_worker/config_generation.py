"""The section ``generation``: the modes, and what a request gets that does not ask for it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from tenkaigen_worker.config_fields import GuidanceScale, ModeName, Section, Size, Steps, Text, disagree
from tenkaigen_worker.names import nearest


class ModeSettings(Section):
    """A named way to run the model, and the bounds of what its jobs may ask for.

    ``lora`` is the name of the LoRA that a full model needs for it. ``checkpoint`` names one of ``engine.checkpoints``
    that the backend ``nunchaku`` draws it with; ``None`` is the first of them. With ``edit`` its jobs give pictures,
    and their prompt says what to change in them: that needs ``engine.edit_model``.
    """

    steps: Steps
    guidance_scale: GuidanceScale
    scheduler: Literal["base", "lightning"] = "base"
    lora: Text | None = None
    checkpoint: Text | None = None
    edit: bool = False
    min_steps: Steps = 1
    max_steps: Steps = 100
    max_guidance_scale: GuidanceScale = 20

    @model_validator(mode="after")
    def _keeps_its_own_bounds(self) -> Self:
        if not self.min_steps <= self.steps <= self.max_steps:
            text = f"should be from min_steps ({self.min_steps}) to max_steps ({self.max_steps}), not {self.steps}"
            raise disagree(text, "steps", "min_steps", "max_steps")
        if self.guidance_scale > self.max_guidance_scale:
            text = f"should be at most max_guidance_scale ({self.max_guidance_scale:g}), not {self.guidance_scale:g}"
            raise disagree(text, "guidance_scale", "max_guidance_scale")
        return self


MODES = {
    "quality": ModeSettings(steps=50, guidance_scale=4.0),
    "lightning": ModeSettings(steps=4, guidance_scale=1.0, scheduler="lightning", max_steps=8, max_guidance_scale=1.0),
    "lightning-8": ModeSettings(
        steps=8, guidance_scale=1.0, scheduler="lightning", max_steps=16, max_guidance_scale=1.0
    ),
}


class GenerationSettings(Section):
    """What a request gets that does not ask for it. Sizes in pixels; unset means what the engine's model likes."""

    default_mode: str = "quality"
    modes: dict[ModeName, ModeSettings] = MODES
    default_width: Size | None = None
    default_height: Size | None = None

    @property
    def mode_names(self) -> tuple[str, ...]:
        """The names of the modes, the default one first."""
        return (self.default_mode, *(name for name in self.modes if name != self.default_mode))

    @model_validator(mode="after")
    def _default_is_a_mode(self) -> Self:
        if self.default_mode not in self.modes:
            near = nearest(self.default_mode, self.modes)
            advice = f"did you mean {near}?" if near else f"there is {', '.join(self.modes) or 'none'}"
            raise disagree(f"no mode has this name; {advice}", "default_mode", "modes")
        return self
