"""Styles as YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo

from tenkaigen_worker.plugin.bounds import check_area, check_guidance_scale, check_side, check_steps
from tenkaigen_worker.plugin.catalog import Catalog, File, FindFiles, read_file
from tenkaigen_worker.plugin.hookspecs import hookimpl
from tenkaigen_worker.plugin.types import (
    PLACEHOLDER,
    LoraUse,
    Style,
    check_characters,
    check_style_name,
    check_template,
    check_words,
)


def _lora_use(value: object) -> LoraUse:
    """A LoRA's name alone, or its name and weight."""
    asked = {"name": value} if isinstance(value, str) else value
    if isinstance(asked, dict) and asked.keys() <= {"name", "weight"}:
        name, weight = asked.get("name"), asked.get("weight")
        if isinstance(name, str) and (weight is None or type(weight) in (int, float)):
            return LoraUse(name, weight)
    raise ValueError("must be a name, such as Ink, or a name with a weight, such as {name: Ink, weight: 0.8}")


def _height(height: int, info: ValidationInfo) -> int:
    check_side(height)
    if width := info.data.get("width"):
        check_area(width, height)
    return height


class StyleFile(File):
    """What a style file may say; see :class:`~tenkaigen_worker.plugin.Style`."""

    name: Annotated[str, AfterValidator(check_style_name)]
    description: Annotated[str, AfterValidator(check_characters)] = ""
    prompt: Annotated[str, AfterValidator(check_template)] = PLACEHOLDER
    negative_prompt: Annotated[str, AfterValidator(check_words)] = ""
    mode: str | None = None
    steps: Annotated[int, AfterValidator(check_steps)] | None = None
    guidance_scale: Annotated[float, AfterValidator(check_guidance_scale)] | None = None
    width: Annotated[int, AfterValidator(check_side)] | None = None
    height: Annotated[int, AfterValidator(_height)] | None = None
    loras: Annotated[tuple[Annotated[LoraUse, PlainValidator(_lora_use)], ...], Field(strict=False)] = ()
    replaces: bool = False


def read_style(file: Path) -> Style:
    """Read one style file; raises :class:`~tenkaigen_worker.plugin.problems.BrokenPlugin`."""
    needs = "a style needs at least a name, as in 'name: Anime'"
    return read_file(file, StyleFile, lambda said: Style(**dict(said), origin=str(file)), needs=needs)


class StyleFiles(Catalog[Style]):
    """The built-in plugin that offers the styles of all files that ``find_files`` lists."""

    def __init__(self, find_files: FindFiles) -> None:
        super().__init__(find_files, read_style)

    @hookimpl
    def register_styles(self) -> list[Style]:
        """Offer the styles that are in the files now."""
        return self.items
