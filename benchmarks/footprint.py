"""What stands idle: the memory of the worker's parent and of the API, and how quickly the command line answers.

Memory is taken a while after both have said that they are ready; the engine's child, which holds the model, stands
apart. RSS counts pages that processes share in each of them, PSS divides them. Whether torch is loaded is read from
the kernel's list of a process's mapped files; that the engine's child has it shows that looking there would tell.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil
from report import Figure, Spread, publish
from rich.progress import track
from workbench import run, workbench

from tenkaigen_worker.errors import TenkaigenError

SETTLE_SECONDS = 5.0
MB = 1_000_000
RSS_AIM_MB = 100.0
HELP_AIM_SECONDS = 0.35

BARE = (sys.executable, "-c", "pass")
HELP = (str(Path(sys.executable).with_name("tenkaigen")), "--help")


@dataclass(frozen=True, slots=True)
class Memory:
    """What one process holds, in MB, and whether it has torch loaded."""

    rss_mb: float
    pss_mb: float
    torch: bool

    def __str__(self) -> str:
        return f"{self.rss_mb:.1f} MB RSS, {self.pss_mb:.1f} MB PSS"


@click.command()
@click.option("--runs", type=click.IntRange(1, 999), default=15, show_default=True, help="Starts of each command.")
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write it here.")
def footprint(runs: int, file: Path | None) -> None:
    """Measure idle memory and the start of the command line.

    \b
    Example:
      python benchmarks/footprint.py
      python benchmarks/footprint.py --json footprint.json
    """
    memory = measure_memory()
    help_seconds, bare_seconds = measure_starts(runs)
    report(memory, help_seconds, bare_seconds, file)


def measure_memory() -> dict[str, Memory]:
    """Start the worker and the API, wait until both are idle, and look at each process."""
    with workbench() as bench, bench.tenkaigen("api") as api, bench.tenkaigen("worker") as worker:
        api.until("api_started")
        worker.until("worker_ready")
        for _ in track(range(int(SETTLE_SECONDS * 10)), "worker and API settle", transient=True):
            time.sleep(0.1)

        children = psutil.Process(worker.pid).children(recursive=True)
        if len(children) != 1:
            raise TenkaigenError(f"the worker should have one engine process, but has {len(children)} children")
        memory = {name: look_at(pid) for name, pid in (("worker", worker.pid), ("api", api.pid))}
        memory["engine"] = look_at(children[0].pid)
    if not memory["engine"].torch:
        raise TenkaigenError("no libtorch among the engine's mapped files: this way of looking does not work here")
    return memory


def look_at(pid: int) -> Memory:
    """Ask the kernel about a process."""
    used = psutil.Process(pid).memory_full_info()
    return Memory(used.rss / MB, used.pss / MB, "libtorch" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8"))


def measure_starts(runs: int) -> tuple[Spread, Spread]:
    """Seconds from start to end of ``tenkaigen --help`` and of an interpreter that does nothing, in turns."""
    times: dict[Sequence[str], list[float]] = {HELP: [], BARE: []}
    for counts in track([False] + [True] * runs, "tenkaigen --help", transient=True):
        for command, taken in times.items():
            started = time.monotonic()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            if counts:  # the first start fills the disk's cache
                taken.append(time.monotonic() - started)
    return Spread.of(times[HELP]), Spread.of(times[BARE])


def report(memory: dict[str, Memory], help_seconds: Spread, bare_seconds: Spread, file: Path | None) -> None:
    """Print and keep what came out."""
    aim = f"RSS under {RSS_AIM_MB:g} MB"
    worker, api = memory["worker"], memory["api"]
    loaded = [name for name in ("worker", "api") if memory[name].torch]
    figures = [
        Figure("worker's parent, idle", str(worker), aim, worker.rss_mb < RSS_AIM_MB),
        Figure("API, idle", str(api), aim, api.rss_mb < RSS_AIM_MB),
        Figure("engine's child, tiny model loaded", str(memory["engine"])),
        Figure("torch in parent or API", ", ".join(loaded) or "no", "no", not loaded),
        Figure(
            "tenkaigen --help",
            f"{help_seconds.text(3)} s",
            f"under {HELP_AIM_SECONDS:g} s",
            help_seconds.median < HELP_AIM_SECONDS,
        ),
        Figure("python -c pass", f"{bare_seconds.text(3)} s"),
    ]
    details = {
        "memory": {name: asdict(used) for name, used in memory.items()},
        "help_seconds": asdict(help_seconds),
        "bare_interpreter_seconds": asdict(bare_seconds),
    }
    publish("Footprint: memory when idle, and starts as median (range)", figures, details, file)


if __name__ == "__main__":
    run(footprint)
