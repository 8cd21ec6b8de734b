"""The section ``engine``: what makes the pictures, and how much it may take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tenkaigen_worker.config_fields import Device, HubId, ModeName, Seconds, Section, Text, disagree


class PhaseLimits(Section):
    """How long the engine may be silent in each phase before it is taken for dead."""

    load_seconds: Seconds = 900
    encode_seconds: Seconds = 120
    step_seconds: Seconds = 120
    decode_seconds: Seconds = 300


class CheckpointSettings(Section):
    """One quantised transformer in one safetensors file: of a hub's ``repo``, or, without one, of this machine.

    ``{rank}`` in ``file`` stands for the rank of its low-rank branch.
    """

    repo: HubId | None = None
    file: Text
    revision: Text | None = None
    rank: Literal[32, 128] = 32

    @property
    def filename(self) -> str:
        """The file, with its rank filled in."""
        return self.file.replace("{rank}", str(self.rank))

    @property
    def identity(self) -> str:
        """What recipes call it: never a path of this machine."""
        if self.repo is None:
            return Path(self.filename).name
        return f"{self.repo}/{self.filename}" + (f"@{self.revision}" if self.revision else "")

    @model_validator(mode="after")
    def _only_the_hub_has_revisions(self) -> Self:
        if self.revision is not None and self.repo is None:
            raise disagree("is of a repository on the hub: name one in repo, or leave it out", "revision", "repo")
        return self


class NunchakuSettings(Section):
    """How the ``nunchaku`` backend loads: by which package, and how its text encoder is kept."""

    loader: Literal["auto", "nunchaku", "nunchaku_lite"] = "auto"
    text_encoder: Literal["auto", "nf4", "full"] = "auto"


CHECKPOINTS = {
    "base": CheckpointSettings(repo="nunchaku-ai/nunchaku-qwen-image", file="svdq-int4_r{rank}-qwen-image.safetensors")
}


class EngineSettings(Section):
    """What makes the pictures."""

    backend: Literal["auto", "nunchaku", "diffusers", "tiny", "blank"] = "auto"
    model: Text = "Qwen/Qwen-Image"
    revision: Text | None = None
    edit_model: Text | None = None
    edit_revision: Text | None = None
    checkpoints: Annotated[dict[ModeName, CheckpointSettings], Field(min_length=1)] = CHECKPOINTS
    nunchaku: NunchakuSettings = NunchakuSettings()
    device: Device = "auto"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    offload: Literal["auto", "none", "model", "sequential"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    max_batch: Annotated[int, Field(ge=1, le=8)] = 1  # above 8 nunchaku's kernels end the process
    prompt_cache_bytes: Annotated[int, Field(ge=0)] = 256 * 1024**2
    lora_cache_bytes: Annotated[int, Field(ge=0)] = 1024**3
    silence: PhaseLimits = PhaseLimits()
