"""The API's parts, made of the real things."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import asyncpg

from tenkaigen_worker.api.parts import Accepted, Files, Parts, StyleList
from tenkaigen_worker.config import GenerationSettings
from tenkaigen_worker.database.migrate import check_schema
from tenkaigen_worker.database.submissions import Submissions
from tenkaigen_worker.errors import DatabaseError
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.request import read_request, request_hash


def make_parts(pool: asyncpg.Pool, files: Files, plugins: Plugins, generation: GenerationSettings) -> Parts:
    """Answer from the job table behind ``pool``, by the rules of the configured plugins and modes."""

    def styles() -> StyleList:
        listed = [(style.name, style.description) for style in plugins.styles]
        return StyleList(listed, [str(problem) for problem in plugins.problems])

    async def problems() -> Sequence[str]:
        try:
            await check_schema(pool)
        except DatabaseError as error:
            return [str(error)]
        return []

    return Parts(Submissions(pool), files, acceptor(plugins, generation), styles, problems)


def acceptor(plugins: Plugins, generation: GenerationSettings) -> Callable[[Mapping[str, Any]], Accepted]:
    """The rules for requests; the worker applies the same to rows that came by SQL."""

    def accept(fields: Mapping[str, Any]) -> Accepted:
        request = read_request(fields, styles=plugins.style_names, modes=generation.modes)
        return Accepted(request.columns(), request_hash(request))

    return accept
