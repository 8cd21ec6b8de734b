"""How long the engine needs for a picture, mode by mode."""

from __future__ import annotations

from collections.abc import Mapping

# How much the latest picture counts: the last ten or so make the average.
WEIGHT = 0.2


class Pace:
    """Moving averages of what the engine measured, in milliseconds per picture."""

    def __init__(self) -> None:
        self._picture_ms: dict[str, float] = {}

    @property
    def picture_ms(self) -> Mapping[str, float]:
        """The average of each mode that was used, rounded to milliseconds."""
        return {mode: round(ms) for mode, ms in self._picture_ms.items()}

    def note(self, mode: str, timings_ms: Mapping[str, int]) -> None:
        """Take one finished picture's time, the sum of its phases."""
        ms = sum(timings_ms.values())
        average = self._picture_ms.get(mode, ms)
        self._picture_ms[mode] = average + WEIGHT * (ms - average)
