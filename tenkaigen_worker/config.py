"""The settings, section by section, as ``worker.yaml`` has them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from tenkaigen_worker.config_api import ApiSettings
from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.config_fields import (
    FilePath,
    HostPattern,
    Port,
    Seconds,
    Section,
    Text,
    disagree,
)
from tenkaigen_worker.config_generation import GenerationSettings
from tenkaigen_worker.config_storage import StorageSettings
from tenkaigen_worker.errors import ConfigError
from tenkaigen_worker.settings_sources import flatten, gather

DEFAULT_FILE = Path("worker.yaml")

# Names that the rest of the world has for settings of ours.
ALIASES = {"SUPABASE_SECRET_KEY": ("storage", "supabase", "secret_key")}


class DatabaseSettings(Section):
    """Where the jobs are. ``embedded`` starts a PostgreSQL of its own in ``state_dir``."""

    url: SecretStr = SecretStr("embedded")
    listen_url: SecretStr | None = None
    allow_plaintext: bool = False
    pool_size: Annotated[int, Field(ge=2, le=50)] = 4
    connect_timeout_seconds: Seconds = 10
    command_timeout_seconds: Seconds = 30

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: SecretStr) -> SecretStr:
        value = url.get_secret_value()
        if value != "embedded" and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("should be embedded, or a URL such as postgresql://user@host:5432/database")
        return url

    @field_validator("listen_url")
    @classmethod
    def _known_scheme_to_listen(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("should be a URL such as postgresql://user@host:5432/database")
        return url

    @model_validator(mode="after")
    def _listens_to_the_same_server(self) -> Self:
        if self.listen_url is not None and self.url.get_secret_value() == "embedded":
            text = "leads to another server than database.url: embedded; leave it out, or name the server in both"
            raise disagree(text, "listen_url", "url")
        return self


class WorkerSettings(Section):
    """How a worker takes and holds jobs."""

    lease_seconds: Seconds = 60
    heartbeat_seconds: Seconds = 20
    progress_seconds: Seconds = 1
    poll_seconds: Seconds = 2
    poll_seconds_listening: Seconds = 15
    prefetch_seconds: Annotated[float, Field(ge=0, le=600)] = 3
    grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 60
    rescue_seconds: Seconds = 10
    publish_seconds: Seconds = 3600
    prune_after_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    health_host: Text = "127.0.0.1"
    health_port: Port | None = 8081

    @model_validator(mode="after")
    def _one_heartbeat_may_be_lost(self) -> Self:
        if self.heartbeat_seconds >= self.lease_seconds / 2:
            raise disagree(
                f"should be less than half of worker.lease_seconds ({self.lease_seconds:g}), so that one late "
                f"heartbeat does not lose the job; it is {self.heartbeat_seconds:g}",
                "heartbeat_seconds",
                "lease_seconds",
            )
        return self

    @model_validator(mode="after")
    def _no_outage_goes_unnoticed(self) -> Self:
        shortest = self.lease_seconds - self.heartbeat_seconds
        if self.rescue_seconds >= shortest:
            raise disagree(
                f"should be less than worker.lease_seconds - worker.heartbeat_seconds ({shortest:g}), so that no "
                f"outage of the database goes unnoticed in which leases run out; it is {self.rescue_seconds:g}",
                "rescue_seconds",
                "lease_seconds",
                "heartbeat_seconds",
            )
        return self


class ReferenceSettings(Section):
    """Pictures that users give: uploads, and what is fetched from ``allowed_hosts``."""

    max_bytes: Annotated[int, Field(ge=1024, le=1_000_000_000)] = 20_000_000
    max_pixels: Annotated[int, Field(ge=4096, le=89_000_000)] = 50_000_000  # Pillow warns of more
    keep_days: Annotated[float, Field(gt=0, le=36_500)] = 30
    allowed_hosts: Annotated[tuple[HostPattern, ...], Field(strict=False)] = ()
    timeout_seconds: Seconds = 30


class ResizeSettings(Section):
    """The size in pixels of every published picture."""

    width: Annotated[int, Field(ge=16, le=16_384)]
    height: Annotated[int, Field(ge=16, le=16_384)]


class WatermarkSettings(Section):
    """What stands on every published picture: a text, or a PNG file. Width and margin are shares of its width."""

    text: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    image: FilePath | None = None
    position: Literal["top-left", "top-right", "center", "bottom-left", "bottom-right"] = "bottom-right"
    opacity: Annotated[float, Field(gt=0, le=1)] = 0.5
    width: Annotated[float, Field(gt=0, le=1)] = 0.3
    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.03

    @model_validator(mode="after")
    def _one_mark(self) -> Self:
        if (self.text is None) == (self.image is None):
            raise disagree("give either a text or an image, a PNG file", "text", "image")
        if self.text is not None and not (self.text.strip() and self.text.isprintable()):
            raise disagree("should be one line of letters", "text")
        return self


class PluginSettings(Section):
    """Drop-in files: Python and YAML, from folders or single files; and what happens to every finished picture."""

    paths: Annotated[tuple[FilePath, ...], Field(strict=False)] = (Path("plugins"),)
    strict: bool = False
    hook_timeout_seconds: Seconds = 10
    resize: ResizeSettings | None = None
    watermark: WatermarkSettings | None = None


class LoraSettings(Section):
    """Where LoRA files are kept, and which LoRAs jobs may use; sizes in bytes."""

    cache_dir: FilePath | None = None
    max_bytes: Annotated[int, Field(ge=0)] = 20_000_000_000
    max_file_bytes: Annotated[int, Field(ge=1)] = 4_000_000_000
    max_per_job: Annotated[int, Field(ge=0, le=16)] = 4
    licences: Literal["commercial", "unknown", "any"] = "commercial"


class CostSettings(Section):
    """What ``tenkaigen stats`` needs to name a price per picture, in US dollars."""

    gpu_hourly_usd: Annotated[float, Field(ge=0)] | None = None


class LogSettings(Section):
    """How to log: ``auto`` is text on a terminal and JSON lines elsewhere."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["auto", "text", "json"] = "auto"


class Settings(Section):
    """Everything that can be set."""

    state_dir: FilePath = Path(".tenkaigen")
    database: DatabaseSettings = DatabaseSettings()
    engine: EngineSettings = EngineSettings()
    generation: GenerationSettings = GenerationSettings()
    worker: WorkerSettings = WorkerSettings()
    api: ApiSettings = ApiSettings()
    storage: StorageSettings = StorageSettings()
    references: ReferenceSettings = ReferenceSettings()
    plugins: PluginSettings = PluginSettings()
    loras: LoraSettings = LoraSettings()
    cost: CostSettings = CostSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _modes_have_their_checkpoints(self) -> Self:
        checkpoints = self.engine.checkpoints
        for name, mode in self.generation.modes.items():
            if mode.checkpoint is not None and mode.checkpoint not in checkpoints:
                text = f"no checkpoint in engine.checkpoints has this name; there is {', '.join(checkpoints)}"
                raise disagree(text, f"generation.modes.{name}.checkpoint", "engine.checkpoints")
        return self

    @model_validator(mode="after")
    def _edits_are_not_drawn_with_the_usual_checkpoint(self) -> Self:
        if self.engine.backend != "nunchaku" or self.engine.edit_model is None:
            return self
        for name, mode in self.generation.modes.items():
            if mode.edit and mode.checkpoint is None:
                text = "should name the one of engine.checkpoints that was made for edits: the first one was not"
                raise disagree(text, f"generation.modes.{name}.checkpoint", f"generation.modes.{name}.edit")
        return self

    @model_validator(mode="after")
    def _pictures_have_an_address(self) -> Self:
        if self.api.port == 0 and self.storage.needs_the_api:
            address = "local.public_url" if self.storage.kind == "local" else "supabase.files_url"
            raise disagree(
                f"with 0 nobody knows beforehand where pictures will be found: name a port, or set storage.{address}",
                "api.port",
            )
        return self


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in force.

    ``origins`` says of each dotted key where its value came from: ``default``, ``worker.yaml:12``, or the name of a
    variable. ``file`` is the file that was read, if any.
    """

    settings: Settings
    origins: Mapping[str, str]
    file: Path | None


def load(path: Path | None, environ: Mapping[str, str] | None = None) -> Loaded:
    """Read a configuration file and lay ``TENKAIGEN_*`` variables over it.

    Without ``path``, ``worker.yaml`` in the working directory is read where there is one, else the defaults hold.
    ``environ`` is the process's own environment unless given. Raises :class:`~tenkaigen_worker.errors.ConfigError`
    that names every problem at once, one line each, and quotes no secret.
    """
    file = path if path is not None else DEFAULT_FILE if DEFAULT_FILE.exists() else None
    sources = gather(Settings, file, os.environ if environ is None else environ, ALIASES)
    invalid: ValidationError | None = None
    try:
        settings = Settings.model_validate(sources.values)
    except ValidationError as error:
        invalid = error
    problems = sources.report(invalid)
    if problems:
        head = "" if len(problems) == 1 else f"{len(problems)} settings are wrong:\n  "
        raise ConfigError(head + "\n  ".join(problems))

    origins = {".".join(key): sources.origin(key) or "default" for key, _ in flatten(settings)}
    return Loaded(settings, MappingProxyType(origins), file)
