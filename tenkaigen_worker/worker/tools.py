"""What a job needs on its way from row to picture, given to it by the command line's wiring."""

from __future__ import annotations

from dataclasses import dataclass, field

from tenkaigen_worker.engine.base import Engine
from tenkaigen_worker.jobs import Queue
from tenkaigen_worker.metrics import Metrics
from tenkaigen_worker.offers import Workers
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.storage.base import Storage
from tenkaigen_worker.worker.pace import Pace
from tenkaigen_worker.worker.prepare import Sources
from tenkaigen_worker.worker.spool import Spool


@dataclass(frozen=True, slots=True)
class Tools:
    """The collaborators of one worker."""

    queue: Queue
    engine: Engine
    storage: Storage
    spool: Spool
    sources: Sources
    metrics: Metrics
    workers: Workers
    pace: Pace = field(default_factory=Pace)

    @property
    def plugins(self) -> Plugins:
        return self.sources.plugins
