"""Pictures on this machine that ``--reference`` and ``--mask`` name: checked, and kept as uploads are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tenkaigen_worker.references.uploads import Uploads

FIELDS = ("reference", "mask")
_ELSEWHERE = ("upload:", "job:", "http://", "https://")


def files_among(fields: Mapping[str, Any]) -> dict[str, Path]:
    """The files that the fields name, by field; raises ``click.BadParameter`` where there is none of that name."""
    named = {field: fields[field] for field in FIELDS if fields.get(field)}
    files = {field: Path(text) for field, text in named.items() if not text.lower().startswith(_ELSEWHERE)}
    for field, file in files.items():
        if not file.is_file():
            raise click.BadParameter(f"there is no file {file}.", param_hint=f"--{field}")
    return files


async def keep_files(files: Mapping[str, Path], uploads: Uploads) -> dict[str, str]:
    """Keep files as nobody's uploads, and answer what the fields say then.

    Raises ``click.BadParameter`` for what is no picture.
    """
    from tenkaigen_worker.errors import PictureError

    kept = {}
    for field, file in files.items():
        try:
            kept[field] = str((await uploads.keep(file.read_bytes(), owner=None)).upload)
        except (OSError, PictureError) as error:
            raise click.BadParameter(f"{file}: {error}", param_hint=f"--{field}") from None
    return kept
