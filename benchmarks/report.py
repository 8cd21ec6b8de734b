"""What every benchmark says at its end: the machine, the figures beside their aims, and all of it as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import psutil
from rich.console import Console
from rich.table import Table

from tenkaigen_worker import __version__


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some measurements, and their extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Raises ``statistics.StatisticsError`` when there are none."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """Say it with so many digits behind the point."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that ``percent`` of all values do not exceed."""
    if not values:
        raise ValueError("no values, no percentile")
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. ``met`` is ``None`` where nothing is aimed at."""

    name: str
    measured: str
    aim: str = ""
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures come from."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    torch: str

    @classmethod
    def here(cls) -> Self:
        """Describe this machine; ``cores`` are those that this process may use."""
        return cls(
            cpu=_cpu_name(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            torch=version("torch"),
        )

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_gib:g} GiB, {self.system}, "
            f"Python {self.python}, torch {self.torch}"
        )


def _cpu_name(cpuinfo: str) -> str:
    """The first processor's name; ARM machines have none."""
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def publish(title: str, figures: Sequence[Figure], details: Mapping[str, Any], file: Path | None) -> None:
    """Print the table; with ``file`` also write everything there as JSON, ``details`` included."""
    machine = Machine.here()
    # A file or a pipe has no width of its own, and a figure that is broken over lines is hard to quote.
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(figures_table(title, figures))
    console.print(str(machine), style="dim", highlight=False, soft_wrap=True)
    keep(title, figures, details, file, machine)


def keep(
    title: str, figures: Sequence[Figure], details: Mapping[str, Any], file: Path | None, machine: Machine
) -> None:
    """Write everything to ``file`` as JSON, if there is one."""
    if file is None:
        return
    document = {
        "title": title,
        "version": __version__,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "figures": [asdict(figure) for figure in figures],
        **details,
    }
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def figures_table(title: str, figures: Sequence[Figure]) -> Table:
    """The figures beside their aims."""
    table = Table(title=title, title_justify="left")
    for heading in ("what", "measured", "aim", ""):
        table.add_column(heading)
    for figure in figures:
        verdict = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[figure.met]
        table.add_row(figure.name, figure.measured, figure.aim, verdict)
    return table
