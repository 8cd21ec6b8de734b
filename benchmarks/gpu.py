"""What pictures cost on a GPU: seconds per step and per picture, the pause between two, memory by phase, and dollars.

The engine's own backend draws, in this process, and a bare diffusers loop draws on the same weights in turns with it.
Every picture has a prompt of its own, so that each is encoded; the empty negative prompt is encoded once by ours, and
for each picture by the bare loop. A picture of few steps warms each mode up, and is not counted.

With ``--random`` the model has its full size and random weights made on the device, so that nothing is downloaded:
the time of a step and the memory are those of real weights in the same format, the pictures are noise. NF4 is not
Nunchaku's INT4: the size is nearly the same, the speed is not.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import gpu_models
from gpu_memory import GIB, Meter
from report import Figure, Machine, Spread, keep
from rich.progress import track
from workbench import run

from tenkaigen_worker.config import Settings, load
from tenkaigen_worker.config_generation import ModeSettings
from tenkaigen_worker.engine.base import NO_INPUTS, Picture, Step
from tenkaigen_worker.recipe import Recipe

PROMPT = "A cyberpunk samurai in the rain, neon lights, a crowded street at night, highly detailed, number {}"
PHASES = ("load", "encode", "denoise", "decode")
WARM_UP_STEPS = 2
AIM = 1.03  # of the bare loop's time


@dataclass(slots=True)
class Samples:
    """Seconds of one mode, measured on pictures of its own; ``switch`` is what its checkpoint took to load."""

    mode: str
    steps: int
    guidance_scale: float
    step: list[float] = field(default_factory=list)
    picture: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    switch: float | None = None


class Watch:
    """Takes the time of every denoising step, and the peak of memory in every phase."""

    def __init__(self, meter: Meter) -> None:
        self.steps: list[float] = []
        self.peaks: dict[str, int] = {}
        self.device = meter.device
        self._meter = meter
        self._phase = "load"
        self._last: float | None = None

    def begin(self) -> None:
        """Begin a picture."""
        self._meter.reset()
        self._phase, self._last = "encode", None
        self.steps.clear()

    def report(self, step: Step) -> None:
        """Hear of a step, as the worker does."""
        now = time.perf_counter()
        if step.phase == "denoise" and self._last is not None:
            self.steps.append(now - self._last)
        self._last = now if step.phase == "denoise" else None
        if step.step:
            self._phase = step.phase
        self.over()
        self._phase = step.phase  # step 0 says that a phase begins, and so that the one before has ended

    def over(self) -> None:
        """Keep the peak of the phase that has ended, or of its first part."""
        self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), self._meter.peak())
        self._meter.reset()


@click.command()
@click.option("-c", "--config", "settings_file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option("--random", "weights", flag_value="random", help="Full size, random weights: no download.")
@click.option("--tiny", "weights", flag_value="tiny", help="The demonstration model, on the CPU: tries this program.")
@click.option("--transformer", type=click.Choice(["bf16", "nf4"]), default="bf16", show_default=True)
@click.option("--text-encoder", type=click.Choice(["bf16", "nf4"]), default="bf16", show_default=True)
@click.option("--cap-gib", type=click.FloatRange(min=0, min_open=True), help="Take no more of the GPU's memory.")
@click.option("--side", type=click.IntRange(64, 2048), default=1024, show_default=True, help="Pixels; multiple of 16.")
@click.option("--pictures", type=click.IntRange(1, 999), default=3, show_default=True, help="Of each mode.")
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write it here.")
def gpu(
    settings_file: Path | None,
    weights: str | None,
    transformer: str,
    text_encoder: str,
    cap_gib: float | None,
    side: int,
    pictures: int,
    file: Path | None,
) -> None:
    """Measure the modes of a configuration; --transformer and --text-encoder say what --random makes.

    \b
    Example:
      python benchmarks/gpu.py --config config/a10g.yaml
      python benchmarks/gpu.py --random
      python benchmarks/gpu.py --random --transformer nf4 --text-encoder nf4 --cap-gib 22.5
      python benchmarks/gpu.py --tiny --side 64 --pictures 1
    """
    os.environ.update(DIFFUSERS_VERBOSITY="error", TRANSFORMERS_VERBOSITY="error")
    settings = load(settings_file).settings
    watch = Watch(gpu_models.meter(settings, weights, cap_gib))
    started = time.perf_counter()
    with gpu_models.device_errors("the model"):
        backend = gpu_models.load(settings, weights, transformer, text_encoder)
    load_seconds = time.perf_counter() - started
    watch.over()

    samples = []
    for name, mode in track(list(modes(settings, weights)), "modes", transient=True):
        with gpu_models.device_errors(f"{name}, {side} x {side},"):
            samples.append(measure(backend, name, mode, side, pictures, watch))

    made = f", random weights ({transformer}, text encoder {text_encoder})" if weights == "random" else ""
    title = (
        f"{backend.model.name}, {backend.model.backend}{made}, {side} x {side}, median of {pictures} (range), on "
        f"{watch.device}; loaded in {load_seconds:.1f} s"
    )
    click.echo("\n".join([title, "", *tables(samples, watch.peaks, settings.cost.gpu_hourly_usd), ""]))
    click.echo(str(Machine.here()))
    details = {
        "load_seconds": load_seconds,
        "stages_ms": dict(backend.stages_ms),
        "modes": [asdict(one) for one in samples],
        "peak_bytes": watch.peaks,
    }
    keep(title, figures(samples), details, file, Machine.here())


def modes(settings: Settings, weights: str | None) -> Iterator[tuple[str, ModeSettings]]:
    """Name the modes that can be measured, and say why another cannot."""
    for name, mode in settings.generation.modes.items():
        if mode.edit:
            click.echo(f"{name}: not measured, it edits pictures", err=True)
        elif mode.lora is not None and weights is None:
            click.echo(f"{name}: not measured, it needs the LoRA {mode.lora}", err=True)
        else:
            yield name, mode


def measure(backend: Any, name: str, mode: ModeSettings, side: int, pictures: int, watch: Watch) -> Samples:
    """Draw pictures of one mode, ours and the bare loop's in turns."""
    samples = Samples(name, mode.steps, mode.guidance_scale)
    for number in range(pictures + 1):
        recipe = make_recipe(backend, name, mode, side, number)
        if number == 0:
            recipe = replace(recipe, steps=min(WARM_UP_STEPS, mode.steps))
        watch.begin()
        started = time.perf_counter()
        picture = draw(backend, recipe, watch)
        taken = time.perf_counter() - started
        bare = timed_bare(backend, recipe)
        if number == 0:
            if "checkpoint" in picture.timings_ms:
                samples.switch = picture.timings_ms["checkpoint"] / 1000
            continue
        samples.picture.append(taken)
        samples.gap.append(max(0.0, taken - sum(picture.timings_ms.values()) / 1000))
        samples.step += watch.steps
        if bare is not None:
            samples.bare.append(bare)
    return samples


def make_recipe(backend: Any, name: str, mode: ModeSettings, side: int, number: int) -> Recipe:
    """Write a job of a mode with nothing left to choose."""
    model = backend.model
    return Recipe(
        prompt=PROMPT.format(number),
        negative_prompt="",
        style="",
        width=side,
        height=side,
        mode=name,
        steps=mode.steps,
        guidance_scale=mode.guidance_scale,
        scheduler=mode.scheduler,
        seeds=(number,),
        backend=model.backend,
        model=model.name,
        checkpoint=model.checkpoint(mode.checkpoint),
    )


def draw(backend: Any, recipe: Recipe, watch: Watch) -> Picture:
    """Draw one picture as the engine's child does."""
    (picture,) = backend.pictures(recipe, NO_INPUTS, first=0, lean=False, report=watch.report, cancel=threading.Event())
    watch.over()
    assert isinstance(picture, Picture)
    return picture


def timed_bare(backend: Any, recipe: Recipe) -> float | None:
    """Seconds for the same picture by diffusers' own call, on the same weights; ``None`` when it does not fit.

    The scheduler in the pipeline is still the one that our run left there: the mode's.
    """
    import torch

    from tenkaigen_worker.engine.faults import free_memory

    negative = {"negative_prompt": " "} if recipe.guidance_scale > 1 else {}
    started = time.perf_counter()
    try:
        backend._pipe(
            prompt=recipe.prompt,
            true_cfg_scale=recipe.guidance_scale,
            width=recipe.width,
            height=recipe.height,
            num_inference_steps=recipe.steps,
            generator=torch.Generator("cpu").manual_seed(recipe.seeds[0]),
            **negative,
        )
        return time.perf_counter() - started
    except torch.OutOfMemoryError:
        pass
    # Not sooner: as long as the error is handled, its frames hold the tensors.
    free_memory(torch.device(backend.device))
    return None


def tables(samples: Sequence[Samples], peaks: dict[str, int], hourly_usd: float | None) -> list[str]:
    """Two Markdown tables: the modes, and memory by phase."""
    lines = [
        "| mode | steps | guidance | s per step | s per picture | bare diffusers, s | pause, ms | change, s | USD |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in samples:
        picture = Spread.of(one.picture)
        cells = (
            one.mode,
            str(one.steps),
            f"{one.guidance_scale:g}",
            Spread.of(one.step).text(3) if one.step else "",
            picture.text(2),
            Spread.of(one.bare).text(2) if one.bare else "does not fit",
            f"{1000 * Spread.of(one.gap).median:.1f}",
            f"{one.switch:.1f}" if one.switch is not None else "",
            f"{picture.median / 3600 * hourly_usd:.5f}" if hourly_usd is not None else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| phase | peak memory, GiB |", "|---|---:|"]
    return lines + [f"| {phase} | {peaks[phase] / GIB:.2f} |" for phase in PHASES if phase in peaks]


def figures(samples: Sequence[Samples]) -> list[Figure]:
    """How each mode compares with the bare loop of the same turns."""
    lines = []
    for one in (one for one in samples if len(one.bare) == len(one.picture)):
        ratio = Spread.of([ours / bare for ours, bare in zip(one.picture, one.bare, strict=True)])
        met = ratio.median <= AIM
        lines.append(Figure(f"{one.mode} / bare diffusers, seconds", ratio.text(2), f"at most {AIM}", met))
    return lines


if __name__ == "__main__":
    run(gpu)
