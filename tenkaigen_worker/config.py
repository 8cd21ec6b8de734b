"""The settings, section by section, as ``worker.yaml`` has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]


class Section(BaseModel):
    """A section of the configuration: frozen, and no key that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(Section):
    """Where the jobs are. ``embedded`` starts a PostgreSQL of its own in ``state_dir``."""

    url: SecretStr = SecretStr("embedded")
    pool_size: Annotated[int, Field(ge=2, le=50)] = 4
    connect_timeout_seconds: Seconds = 10
    command_timeout_seconds: Seconds = 30


class PhaseLimits(Section):
    """How long the engine may be silent in each phase before it is taken for dead."""

    load_seconds: Seconds = 900
    encode_seconds: Seconds = 120
    step_seconds: Seconds = 120
    decode_seconds: Seconds = 300


class EngineSettings(Section):
    """What makes the pictures."""

    backend: Literal["auto", "nunchaku", "diffusers", "tiny", "blank"] = "auto"
    model: str = "Qwen/Qwen-Image"
    revision: str | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    offload: Literal["auto", "none", "model", "sequential"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    silence: PhaseLimits = PhaseLimits()


class ModeSettings(Section):
    """A named way to run the model."""

    steps: Annotated[int, Field(ge=1, le=100)]
    guidance_scale: Annotated[float, Field(ge=1, le=20)]


class GenerationSettings(Section):
    """What a request gets that does not ask for it. Sizes in pixels; unset means what the engine's model likes."""

    default_mode: str = "quality"
    modes: dict[str, ModeSettings] = {"quality": ModeSettings(steps=50, guidance_scale=4.0)}
    default_width: Annotated[int, Field(ge=64, le=4096, multiple_of=16)] | None = None
    default_height: Annotated[int, Field(ge=64, le=4096, multiple_of=16)] | None = None


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
    health_host: str = "127.0.0.1"
    health_port: Port | None = 8081


class ApiSettings(Section):
    """The front door. It speaks to this machine only, unless ``allow_remote`` says otherwise."""

    host: str = "127.0.0.1"
    port: Port = 8000
    auth: Literal["none"] = "none"
    allow_remote: bool = False
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1_048_576


class LocalStorageSettings(Section):
    """Files in a folder, served by the API under ``/files``. ``public_url`` is where a browser finds that."""

    path: Path | None = None
    public_url: str | None = None


class StorageSettings(Section):
    """Where finished files go."""

    kind: Literal["local"] = "local"
    local: LocalStorageSettings = LocalStorageSettings()


class PluginSettings(Section):
    """Drop-in files: Python and YAML, from folders or single files."""

    paths: tuple[Path, ...] = (Path("plugins"),)
    strict: bool = False
    hook_timeout_seconds: Seconds = 10


class CostSettings(Section):
    """What ``tenkaigen stats`` needs to name a price per picture, in US dollars."""

    gpu_hourly_usd: Annotated[float, Field(ge=0)] | None = None


class LogSettings(Section):
    """How to log: ``auto`` is text on a terminal and JSON lines elsewhere."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["auto", "text", "json"] = "auto"


class Settings(Section):
    """Everything that can be set."""

    state_dir: Path = Path(".tenkaigen")
    database: DatabaseSettings = DatabaseSettings()
    engine: EngineSettings = EngineSettings()
    generation: GenerationSettings = GenerationSettings()
    worker: WorkerSettings = WorkerSettings()
    api: ApiSettings = ApiSettings()
    storage: StorageSettings = StorageSettings()
    plugins: PluginSettings = PluginSettings()
    cost: CostSettings = CostSettings()
    log: LogSettings = LogSettings()
