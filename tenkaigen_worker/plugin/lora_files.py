"""LoRAs as YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from tenkaigen_worker.plugin.catalog import Catalog, File, FindFiles, read_file
from tenkaigen_worker.plugin.hookspecs import hookimpl
from tenkaigen_worker.plugin.lora_source import anchored, parse_source
from tenkaigen_worker.plugin.types import Lora, check_characters, check_name, check_sha256, check_weight


def _check_lora_name(name: str) -> str:
    return check_name(name, "LoRA")


def _check_source(text: str) -> str:
    parse_source(text)
    return text


def _lower(digest: object) -> object:
    return digest.lower() if isinstance(digest, str) else digest


Name = Annotated[str, AfterValidator(_check_lora_name)]
Words = Annotated[str, AfterValidator(check_characters)]


class LoraFile(File):
    """What a LoRA's file may say; see :class:`~tenkaigen_worker.plugin.Lora`."""

    name: Name
    source: Annotated[str, AfterValidator(_check_source)]
    sha256: Annotated[str, BeforeValidator(_lower), AfterValidator(check_sha256)]
    description: Words = ""
    aliases: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    match_prompt: bool = False
    trigger_words: Annotated[tuple[Words, ...], Field(strict=False)] = ()
    weight: Annotated[float, AfterValidator(check_weight)] = 1.0
    base_model: Annotated[str, Field(min_length=1)] = "Qwen/Qwen-Image"
    licence: str = ""
    commercial_use: bool | None = None
    replaces: bool = False


def read_lora(file: Path) -> Lora:
    """Read one LoRA's file; raises :class:`~tenkaigen_worker.plugin.problems.BrokenPlugin`."""

    def make(said: LoraFile) -> Lora:
        source = anchored(said.source, file.absolute().parent)
        return Lora(**{**dict(said), "source": source}, origin=str(file))

    needs = "a LoRA needs at least a name, a source and a sha256; 'tenkaigen loras add' writes them"
    return read_file(file, LoraFile, make, needs=needs)


class LoraFiles(Catalog[Lora]):
    """The built-in plugin that offers the LoRAs of all files that ``find_files`` lists."""

    def __init__(self, find_files: FindFiles) -> None:
        super().__init__(find_files, read_lora)

    @hookimpl
    def register_loras(self) -> list[Lora]:
        """Offer the LoRAs that are in the files now."""
        return self.items
