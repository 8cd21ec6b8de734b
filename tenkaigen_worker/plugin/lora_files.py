"""The built-in plugin that reads LoRAs from YAML files, again whenever they change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tenkaigen_worker.plugin.hookspecs import hookimpl
from tenkaigen_worker.plugin.lora_source import anchored, parse_source
from tenkaigen_worker.plugin.types import Lora, check_characters, check_name, check_sha256, check_weight
from tenkaigen_worker.plugin.watched import WatchedFiles, read_yaml

NEEDS = "a LoRA needs at least a name, a source and a sha256; 'tenkaigen loras add' writes them"


def _check_lora_name(name: str) -> str:
    return check_name(name, "LoRA")


def _check_source(text: str) -> str:
    parse_source(text)
    return text


def _lower(digest: object) -> object:
    return digest.lower() if isinstance(digest, str) else digest


Name = Annotated[str, AfterValidator(_check_lora_name)]
Words = Annotated[str, AfterValidator(check_characters)]


class LoraFile(BaseModel):
    """What a LoRA's file may say; see :class:`~tenkaigen_worker.plugin.Lora`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name
    source: Annotated[str, AfterValidator(_check_source)]
    sha256: Annotated[str, BeforeValidator(_lower), AfterValidator(check_sha256)]
    description: str = ""
    aliases: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    match_prompt: bool = False
    trigger_words: Annotated[tuple[Words, ...], Field(strict=False)] = ()
    weight: Annotated[float, AfterValidator(check_weight)] = 1.0
    base_model: Annotated[str, Field(min_length=1)] = "Qwen/Qwen-Image"
    licence: str = ""
    commercial_use: bool | None = None
    replaces: bool = False


def read_lora(file: Path) -> Lora:
    """Read one LoRA's file; raises :class:`BrokenPlugin` with all that is wrong with it."""
    values = read_yaml(file, LoraFile, NEEDS).model_dump()
    source = anchored(values.pop("source"), file.absolute().parent)
    return Lora(**values, source=source, origin=str(file))


class LoraCatalog(WatchedFiles[Lora]):
    """The LoRAs of all YAML files, as a plugin."""

    @hookimpl
    def register_loras(self) -> list[Lora]:
        """Offer the LoRAs that are in the files now."""
        return self.values
