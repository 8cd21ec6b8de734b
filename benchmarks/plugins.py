"""What plugins cost a job: finding its style among 100, and 20 plugins that do nothing but be called.

Measured is all that a worker asks of the plugin layer for one job of one picture, in its order: the names of all
styles, the style that a prompt names, and the three hooks of each plugin. The plugins are plain functions, as most are.
Whether one of the files has changed is looked up once a second, whatever jobs there are, and is measured by itself.

Jobs come once one after the other, and once after a pause each: by then the processor's and the kernel's caches hold
something else, and the same work takes longer.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import click
from PIL import Image
from report import Figure, percentile, publish
from rich.progress import track
from workbench import run

from tenkaigen_worker.config import PluginSettings
from tenkaigen_worker.errors import TenkaigenError
from tenkaigen_worker.plugin import FinishedJob, PictureInfo
from tenkaigen_worker.plugin.manager import Plugins
from tenkaigen_worker.recipe import apply_style

STYLES, PLUGINS = 100, 20
PAUSE_SECONDS = 0.02
AIM_MS = 2.0
WARM_UP = 20
SIZE = 256

STYLE = 'name: Look {number}\nprompt: "{{prompt}}, look {number}"\nnegative_prompt: "photo"\nsteps: 20\n'
PLUGIN = """
from dataclasses import replace
from tenkaigen_worker.plugin import hookimpl

@hookimpl
def transform_prompt(prompt):
    return replace(prompt, text=prompt.text + ".")

@hookimpl
def process_image(image):
    return image

@hookimpl
def job_finished(job):
    pass
"""

Times = defaultdict[str, list[float]]


@click.command()
@click.option("--jobs", type=click.IntRange(1, 100_000), default=500, show_default=True, help="Jobs to measure.")
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write it here.")
def plugins(jobs: int, file: Path | None) -> None:
    """Measure the plugin layer's cost per job.

    \b
    Example:
      python benchmarks/plugins.py
      python benchmarks/plugins.py --jobs 50
      python benchmarks/plugins.py --json plugins.json
    """
    with tempfile.TemporaryDirectory(prefix="tenkaigen-bench-") as folder:
        loaded = load(Path(folder))
        at_once = asyncio.run(measure(loaded, jobs, pause_seconds=0))
        paused = asyncio.run(measure(loaded, jobs, pause_seconds=PAUSE_SECONDS))
    report(at_once, paused, jobs, file)


def load(folder: Path) -> Plugins:
    """Write the files and load them; what ships counts towards both numbers."""
    shipped = Plugins.load(PluginSettings(paths=()))
    there = len(shipped.describe()) - 2  # the styles and the templates themselves
    for number in range(STYLES - len(shipped.styles)):
        (folder / f"look_{number}.yaml").write_text(STYLE.format(number=number), encoding="utf-8")
    for number in range(PLUGINS - there):
        (folder / f"plugin_{number}.py").write_text(PLUGIN, encoding="utf-8")
    loaded = Plugins.load(PluginSettings(paths=(folder,), strict=True))
    if len(loaded.styles) != STYLES:
        raise TenkaigenError(f"{len(loaded.styles)} styles were loaded, not {STYLES}: there is nothing to measure")
    return loaded


async def measure(loaded: Plugins, jobs: int, *, pause_seconds: float) -> Times:
    """Ask for ``jobs`` what a worker asks; answers milliseconds, one for each job, by what they were spent on."""
    times: Times = defaultdict(list)

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        begun = perf_counter()
        yield
        times[what].append(1000 * (perf_counter() - begun))

    image, text = Image.new("RGB", (SIZE, SIZE)), "A fox in the moonlight, as look 77"
    for number in track(range(WARM_UP + jobs), transient=True):
        if number == WARM_UP:
            times.clear()
            gc.collect()
        await asyncio.sleep(pause_seconds)
        with timed("a look at all files, once a second"):
            loaded.refresh(at_once=True)
        with timed("all of it"):
            with timed("the style"):
                names = loaded.style_names
                style = loaded.style("auto", prompt=text)
            with timed("the prompt"):
                await loaded.transform_prompt(apply_style(style, text, None))
            with timed("the picture"):
                await loaded.process_image(image, PictureInfo(0, number, style.name))
            with timed("the outcome"):
                await loaded.job_finished(FinishedJob(str(number), None, "completed", names[0]))
    return times


def report(at_once: Times, paused: Times, jobs: int, file: Path | None) -> None:
    """Print and keep what came out."""
    total = percentile(at_once["all of it"], 50)
    figures = [
        *(Figure(f"{what}, p50", f"{percentile(at_once[what], 50):.2f} ms") for what in at_once if what != "all of it"),
        Figure("all of it, p50", f"{total:.2f} ms", f"under {AIM_MS:g} ms", total < AIM_MS),
        Figure("all of it, p95", f"{percentile(at_once['all of it'], 95):.2f} ms"),
        Figure("after a pause of 20 ms, p50", f"{percentile(paused['all of it'], 50):.2f} ms"),
    ]
    details = {
        "parameters": {"styles": STYLES, "plugins": PLUGINS, "jobs": jobs},
        "milliseconds": {"at_once": at_once, "paused": paused},
    }
    publish(f"Plugins: {STYLES} styles, {PLUGINS} plugins of three hooks, {jobs} jobs", figures, details, file)


if __name__ == "__main__":
    run(plugins)
