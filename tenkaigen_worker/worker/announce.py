"""Telling the others that this worker is there, and what it can make."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic

from tenkaigen_worker import __version__
from tenkaigen_worker.engine.base import EngineInfo
from tenkaigen_worker.errors import DatabaseError
from tenkaigen_worker.offers import Announcement, WorkerState
from tenkaigen_worker.worker.tools import Tools

log = logging.getLogger("tenkaigen.worker")

# Between two looks at what there is to say, in seconds: style files are read again then.
LOOK_SECONDS = 1.0
# How long to say nothing while nothing changes, in seconds. The others believe what was said three times as long.
REPEAT_SECONDS = 15.0
# How long to wait after the database did not take it, in seconds.
PAUSE_SECONDS = 5.0
# How long an ending worker waits for a database that does not answer, in seconds; nobody believes its row for long.
LEAVE_SECONDS = 2.0


class Announcer:
    """Says what one worker is and can make, when that changes and from time to time.

    ``problems`` says why the worker takes no jobs now; empty when it does.
    """

    def __init__(
        self,
        worker_id: str,
        engine: EngineInfo,
        tools: Tools,
        problems: Callable[[], Sequence[str]],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._worker_id = worker_id
        self._engine = engine
        self._tools = tools
        self._problems = problems
        self._clock = clock
        self._said: Announcement | None = None
        self._said_at = 0.0

    async def run(self) -> None:
        """Announce until cancelled, and take it back then."""
        try:
            while True:
                heard = await self.look()
                await asyncio.sleep(LOOK_SECONDS if heard else PAUSE_SECONDS)
        finally:
            await self._leave()

    async def look(self) -> bool:
        """Say what there is to say, if anything, and answer whether the others know it now."""
        now = self._describe()
        # How fast the engine is changes with every picture: no reason to speak.
        news = self._said is None or replace(self._said, picture_ms={}) != replace(now, picture_ms={})
        if not news and self._clock() - self._said_at < REPEAT_SECONDS:
            return True

        try:
            await self._tools.workers.announce(now)
        except DatabaseError as error:
            log.warning("%s", error, extra={"action": "announce_failed"})
            return False
        self._said, self._said_at = now, self._clock()
        if news:
            extra = {"action": "worker_announced", "worker_id": now.worker_id, "state": now.state.value}
            log.info("This worker is announced as %s, with %d styles", now.state, len(now.styles), extra=extra)
        return True

    def _describe(self) -> Announcement:
        sources, model = self._tools.sources, self._engine.model
        return Announcement(
            worker_id=self._worker_id,
            host=socket.gethostname(),
            version=__version__,
            backend=model.backend,
            model=model.name,
            demo=model.demo,
            state=WorkerState.UNREADY if self._problems() else WorkerState.READY,
            styles={style.name: style.description for style in self._tools.plugins.styles},
            modes=sources.usable_modes(model),
            picture_ms=self._tools.pace.picture_ms,
            loras=sources.usable_loras(model.base),
            templates=sources.templates,
            limits=self._engine.limits,
        )

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._tools.workers.leave(self._worker_id)
        except (DatabaseError, TimeoutError) as error:
            log.warning("This worker is announced still: %s", error, extra={"action": "announce_failed"})
