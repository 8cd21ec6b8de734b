"""What workers say of themselves, what they offer together, and how long a job will wait for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from tenkaigen_worker.names import find, fold

# The fields of a request whose values are names that some workers have and others lack.
NAMED = frozenset({"style", "mode", "loras", "franchise", "template"})
# How many jobs before a queued one are counted.
LINE_AT_MOST = 1000


class WorkerState(StrEnum):
    """Whether a worker takes jobs."""

    READY = "ready"  # it does
    UNREADY = "unready"  # not now: its engine cannot be used, or it is stopping


@dataclass(frozen=True, slots=True)
class Limits:
    """What one engine can draw at most, for want of memory: pixels of a picture. ``None`` is no bound of its own."""

    max_pixels: int | None = None

    def allow(self, pixels: int) -> bool:
        """Whether a picture of so many pixels can be drawn."""
        return self.max_pixels is None or pixels <= self.max_pixels

    @classmethod
    def widest(cls, limits: Sequence[Limits]) -> Limits:
        """What at least one of several engines can draw."""
        bounds = [one.max_pixels for one in limits if one.max_pixels is not None]
        return cls(max(bounds)) if bounds and len(bounds) == len(limits) else cls()


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Announcement:
    """What one worker says of itself: a row of ``generation_workers``.

    ``styles`` and ``templates`` map a name to its description, ``loras`` to its aliases. The first of ``modes`` is for
    jobs that ask for none. ``picture_ms`` maps a mode to the milliseconds that the engine needs for a picture, as far
    as that is known. ``limits`` bound what it can draw.
    """

    worker_id: str
    host: str
    version: str
    backend: str
    model: str
    demo: bool
    state: WorkerState
    styles: Mapping[str, str]
    modes: tuple[str, ...]
    picture_ms: Mapping[str, float]
    loras: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = NO_LIMITS


class Workers(Protocol):
    """The workers of all machines.

    Any of these may raise :class:`~tenkaigen_worker.errors.DatabaseError` when the database cannot be reached.
    """

    async def announce(self, announcement: Announcement) -> None:
        """Say what a worker is now; others believe it for 45 s."""

    async def leave(self, worker_id: str) -> None:
        """Say that a worker is gone."""

    async def live(self) -> Sequence[Announcement]:
        """What all workers said that were seen lately, the oldest worker first."""


@dataclass(frozen=True, slots=True)
class Work:
    """Pictures to be made in one mode; ``None`` is the default mode. Of a running job only what is left counts."""

    mode: str | None
    pictures: float


@dataclass(frozen=True, slots=True)
class Line:
    """A queued job that is due and what is before it: ``position`` jobs that are queued, and the work they are.

    ``ahead`` also has the work that is running. Beyond ``LINE_AT_MOST`` jobs nobody counts.
    """

    position: int
    ahead: tuple[Work, ...]
    own: Work


@dataclass(frozen=True, slots=True)
class Offer:
    """What can be asked for: styles and templates with their descriptions, modes, LoRAs, and how fast all this is.

    ``ready`` is how many workers take jobs now. The first mode is the default one. ``limits`` are the widest.
    """

    styles: Mapping[str, str]
    modes: tuple[str, ...]
    picture_ms: Mapping[str, float]
    ready: int
    loras: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = NO_LIMITS

    @classmethod
    def of(cls, announcements: Iterable[Announcement]) -> Offer:
        """Join what workers offer. Of names that mean the same, the first spelling counts; of times, the average."""
        styles: dict[str, tuple[str, str]] = {}
        loras: dict[str, tuple[str, tuple[str, ...]]] = {}
        templates: dict[str, tuple[str, str]] = {}
        modes: dict[str, str] = {}
        times: dict[str, list[float]] = {}
        limits: list[Limits] = []
        ready = 0
        for worker in announcements:
            ready += worker.state is WorkerState.READY
            limits.append(worker.limits)
            for name, description in worker.styles.items():
                styles.setdefault(fold(name), (name, description))
            for name, aliases in worker.loras.items():
                loras.setdefault(fold(name), (name, aliases))
            for name, description in worker.templates.items():
                templates.setdefault(fold(name), (name, description))
            for mode in worker.modes:
                modes.setdefault(fold(mode), mode)
            for mode, ms in worker.picture_ms.items():
                times.setdefault(fold(mode), []).append(ms)
        averages = {name: sum(times[key]) / len(times[key]) for key, name in modes.items() if key in times}
        return cls(
            dict(styles.values()),
            tuple(modes.values()),
            averages,
            ready,
            dict(loras.values()),
            dict(templates.values()),
            Limits.widest(limits),
        )

    def seconds_until_done(self, line: Line) -> int | None:
        """Estimate when a queued job will be done, in seconds from now.

        The work ahead is shared by the workers that are ready; its own is done by one. ``None`` when nobody is ready,
        when a mode was not measured yet, or when the line is too long to be counted.
        """
        if not self.ready or line.position >= LINE_AT_MOST:
            return None
        ms = self._ms(line.ahead) / self.ready + self._ms([line.own])
        return None if math.isnan(ms) else math.ceil(ms / 1000)

    def _ms(self, work: Iterable[Work]) -> float:
        """How long one worker needs for all this; NaN when that cannot be known."""
        total = 0.0
        for part in work:
            mode = find(part.mode, self.modes) if part.mode else next(iter(self.modes), None)
            if mode is not None:  # a mode that nobody has fails at once, and costs nothing
                total += part.pictures * self.picture_ms.get(mode, math.nan)
        return total
