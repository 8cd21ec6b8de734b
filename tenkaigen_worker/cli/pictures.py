"""Pictures on this machine that ``--reference`` and ``--mask`` name: checked, and kept as uploads are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tenkaigen_worker.references.uploads import Uploads

_ELSEWHERE = ("upload:", "job:", "http://", "https://")
# Stands for the file of this number while a request is checked; the file is uploaded when all is well.
_STAND_IN = "upload:00000000-0000-7000-8000-{:012}"


@dataclass(frozen=True, slots=True)
class GivenFile:
    """A file that an option names."""

    option: str
    file: Path


def files_among(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, GivenFile]]:
    """Find the files that ``references`` and ``mask`` name.

    Answers the fields of a request, where the first of ``references`` is ``reference``, with a stand-in for each file;
    and the files, by their stand-ins. Raises ``click.BadParameter`` where there is none of that name.
    """
    files: dict[str, GivenFile] = {}

    def checked(option: str, text: str) -> str:
        if text.lower().startswith(_ELSEWHERE):
            return text
        if not Path(text).is_file():
            raise click.BadParameter(f"there is no file {text}.", param_hint=option)
        stand_in = _STAND_IN.format(len(files))
        files[stand_in] = GivenFile(option, Path(text))
        return stand_in

    given = {name: value for name, value in fields.items() if name not in ("references", "mask")}
    references = [checked("--reference", text) for text in fields["references"] if text]
    given |= {"reference": next(iter(references), None), "more_references": references[1:]}
    given["mask"] = checked("--mask", fields["mask"]) if fields["mask"] else None
    return given, files


async def keep_files(files: Mapping[str, GivenFile], uploads: Uploads) -> dict[str, str]:
    """Keep files as nobody's uploads, and answer what each stand-in stands for then.

    Raises ``click.BadParameter`` for what is no picture.
    """
    from tenkaigen_worker.errors import PictureError

    kept = {}
    for stand_in, given in files.items():
        try:
            kept[stand_in] = str((await uploads.keep(given.file.read_bytes(), owner=None)).upload)
        except (OSError, PictureError) as error:
            raise click.BadParameter(f"{given.file}: {error}", param_hint=given.option) from None
    return kept


def placed(fields: Mapping[str, Any], kept: Mapping[str, str]) -> dict[str, Any]:
    """Put uploads into a request's fields in place of their stand-ins."""
    found: dict[str, Any] = {
        name: kept.get(fields[name], fields[name]) for name in ("reference", "mask") if fields.get(name)
    }
    if more := fields.get("more_references"):
        found["more_references"] = [kept.get(text, text) for text in more]
    return {**fields, **found}
