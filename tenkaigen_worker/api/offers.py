"""What can be asked for now: what live workers have, or, while nobody is live, what this process knows itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from math import inf
from time import monotonic
from typing import Any

from tenkaigen_worker.config_generation import GenerationSettings
from tenkaigen_worker.errors import Code, InputError
from tenkaigen_worker.names import fold
from tenkaigen_worker.offers import NAMED, Offer, Workers
from tenkaigen_worker.plugin.manager import STANDARD, Plugins
from tenkaigen_worker.request import Names, Request, check_size, read_request

# How old an answer about the workers may be, in seconds: not every request asks the database.
KEPT_SECONDS = 2.0


class Offers:
    """The offer of all live workers, read from the database every now and then.

    Every method may raise :class:`~tenkaigen_worker.errors.DatabaseError` when the database cannot be reached.
    """

    def __init__(
        self,
        workers: Workers,
        plugins: Plugins,
        generation: GenerationSettings,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._workers = workers
        self._plugins = plugins
        self._generation = generation
        self._clock = clock
        self._live: Offer | None = None
        self._kept_until = -inf
        self._reading = asyncio.Lock()

    async def now(self) -> Offer:
        """The offer, at most ``KEPT_SECONDS`` old."""
        async with self._reading:
            if self._clock() >= self._kept_until:
                workers = await self._workers.live()
                self._live = Offer.of(workers) if workers else None
                self._kept_until = self._clock() + KEPT_SECONDS
        return self._live or self._own()

    async def read_request(self, fields: Mapping[str, Any]) -> Request:
        """Check a request against the offer. A name that is not in it may be new: that is looked up before it is wrong.

        So may be a worker with more memory.

        Raises :class:`~tenkaigen_worker.errors.InputError` as :func:`~tenkaigen_worker.request.read_request` does.
        """
        try:
            return self._read(fields, await self.now())
        except InputError as error:
            if error.code is not Code.TOO_LARGE and not any(problem.field in NAMED for problem in error.problems):
                raise
        self._kept_until = -inf
        self._plugins.refresh(at_once=True)
        return self._read(fields, await self.now())

    def _read(self, fields: Mapping[str, Any], offer: Offer) -> Request:
        request = read_request(fields, Names.of(offer))
        width, height = request.width, request.height
        if request.reference is None and request.style is None and request.template is None:
            # Else a side that is left open may come from there.
            width, height = width or self._generation.default_width, height or self._generation.default_height
        check_size(width, height, offer.limits, where="the workers that are live can draw")
        return request

    async def styles(self) -> Mapping[str, str]:
        """Every style with its description: Standard first, the others by name."""
        offered = (await self.now()).styles
        return dict(sorted(offered.items(), key=lambda style: (fold(style[0]) != fold(STANDARD), style[0].casefold())))

    def _own(self) -> Offer:
        styles = {style.name: style.description for style in self._plugins.styles}
        templates = {template.name: template.description for template in self._plugins.templates}
        return Offer(styles, self._generation.mode_names, {}, 0, self._plugins.loras.aliases, templates)
