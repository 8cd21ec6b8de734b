"""The recipe: a request fully resolved, nothing left to choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Model:
    """What a loaded model is called, and the size in pixels that it likes best. ``demo`` marks an untrained one."""

    backend: str
    name: str
    revision: str | None
    default_width: int
    default_height: int
    demo: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a picture, and nothing else: no path, no user id.

    Kept with the job and inside the PNG. ``width`` and ``height`` in pixels, multiples of 16. ``seeds`` has one entry
    per picture. ``guidance_scale`` is diffusers' ``true_cfg_scale``; 1.0 means no guidance and one forward a step.
    ``demo`` marks pictures of a demonstration backend.
    """

    prompt: str
    negative_prompt: str
    style: str
    width: int
    height: int
    mode: str
    steps: int
    guidance_scale: float
    scheduler: str
    seeds: tuple[int, ...]
    backend: str
    model: str
    revision: str | None = None
    demo: bool = False
    version: int = 1

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return {**asdict(self), "seeds": list(self.seeds)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe that :meth:`to_json` wrote; raises ``ValueError`` on anything else."""
        try:
            return cls(**{**data, "seeds": tuple(data["seeds"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a recipe of version 1: {error}") from error
