"""What the engine saves: remembered prompts, LoRAs switched without a reload, variations drawn together.

The weights are the demonstration model's, and its text encoder is tiny: what a remembered prompt saves on the real one
is far more. For LoRAs the transformer has as many layers as Qwen-Image, 840 of them in 60 blocks, each far narrower:
that is what switching has to go through. All of a round runs in turns, in one process.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
from report import Figure, Spread, publish
from rich.progress import track
from workbench import THREADS, run

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.base import NO_INPUTS
from tenkaigen_worker.recipe import AppliedLora, Recipe

BLOCKS = 60
RANK = 16
VARIATIONS = 4
LONG_PROMPT = "a red fox in the snow, " * 20
RECIPE = Recipe(
    "a red fox", "blurry", "", 128, 128, "", 8, 4.0, "base", tuple(range(VARIATIONS)), "tiny", "tiny", demo=True
)

# The names of what is measured, ours first in each group, and what it is compared with.
HIT, MISS = "prompt remembered", "prompt encoded"
KEPT, READ = "LoRA switch, kept", "LoRA switch, read"
PEFT, RELOAD = "LoRA switch, PEFT", "pipeline reload"
TOGETHER, SINGLE = f"{VARIATIONS} variations together", f"{VARIATIONS} variations one by one"
BASELINES = {HIT: MISS, KEPT: RELOAD, READ: RELOAD, PEFT: RELOAD, TOGETHER: SINGLE}
AIMED = (HIT, KEPT, READ)


@dataclass(slots=True)
class Samples:
    """Milliseconds of every round, by name."""

    ms: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, work: Callable[[], object]) -> None:
        """Do the work once, and keep how long it took."""
        started = time.perf_counter()
        work()
        self.ms.setdefault(name, []).append(1000 * (time.perf_counter() - started))


@click.command()
@click.option("--rounds", type=click.IntRange(1, 999), default=5, show_default=True)
@click.option("--json", "file", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write it here.")
def engine(rounds: int, file: Path | None) -> None:
    """Measure what the engine saves, each beside what it would cost without.

    \b
    Example:
      python benchmarks/engine.py
      python benchmarks/engine.py --rounds 9 --json engine.json
    """
    os.environ.update(DIFFUSERS_VERBOSITY="error", TRANSFORMERS_VERBOSITY="error")
    samples = Samples()
    with tempfile.TemporaryDirectory(prefix="tenkaigen-bench-") as folder:
        measures = (prompts(), loras(Path(folder)), variations())
        for counts in track([False] + [True] * rounds, "rounds", transient=True):
            taken = samples if counts else Samples()  # the first of each warms up
            for measure in measures:
                measure(taken)

    parameters = {"rounds": rounds, "blocks": BLOCKS, "rank": RANK, "threads": THREADS}
    title = f"Engine: median of {rounds} rounds (range), {THREADS} torch thread"
    publish(title, figures(samples.ms), {"parameters": parameters, "ms": samples.ms}, file)


def figures(samples: Mapping[str, Sequence[float]]) -> list[Figure]:
    """Each measurement, and how it compares with its baseline of the same rounds."""
    lines = []
    for name, taken in samples.items():
        line = Figure(name, f"{Spread.of(taken).text(2)} ms")
        if baseline := samples.get(BASELINES.get(name, "")):
            ratio = Spread.of([ours / theirs for ours, theirs in zip(taken, baseline, strict=True)])
            line = replace(line, measured=f"{line.measured} = {ratio.median:.3f} x {BASELINES[name]}")
            if name in AIMED:
                line = replace(line, aim="under 1 x", met=ratio.median < 1)
        lines.append(line)
    return lines


Measure = Callable[[Samples], None]


def prompts() -> Measure:
    """A long prompt, encoded and remembered."""
    encoder = _tiny()._prompts
    numbers = iter(range(1_000_000))

    def measure(samples: Samples) -> None:
        text = f"{LONG_PROMPT} {next(numbers)}"
        samples.add(HIT if encoder.knows(text) else MISS, lambda: encoder.encode(text))
        samples.add(HIT if encoder.knows(text) else MISS, lambda: encoder.encode(text))

    return measure


def loras(folder: Path) -> Measure:
    """A LoRA for all layers of a deep model: taken up while another is kept, read, or in diffusers' own way."""
    from diffusers import QwenImageTransformer2DModel
    from diffusers.utils.logging import disable_progress_bar as hide_diffusers_bars
    from transformers.utils.logging import disable_progress_bar as hide_transformers_bars

    from tenkaigen_worker.engine.loaders import load_diffusers

    hide_diffusers_bars()
    hide_transformers_bars()
    pipe = _tiny()._pipe
    pipe.transformer = QwenImageTransformer2DModel.from_config({**pipe.transformer.config, "num_layers": BLOCKS}).eval()
    pipe.save_pretrained(folder / "model")
    files = {name: _write_lora(pipe.transformer, folder / f"{name}.safetensors") for name in ("one", "other")}
    settings = EngineSettings(
        backend="diffusers", model=str(folder / "model"), device="cpu", threads=THREADS, lora_cache_bytes=1024**3
    )
    adapters = load_diffusers(settings, alive=lambda: None)._adapters

    def use(name: str) -> None:
        with adapters.applied([AppliedLora(name, name, 1.0)], files):
            pass

    def with_peft() -> None:
        pipe.load_lora_weights(folder, weight_name="other.safetensors", adapter_name="other", use_safetensors=True)
        pipe.unload_lora_weights()

    def measure(samples: Samples) -> None:
        adapters.forget()
        use("one")
        samples.add(READ, lambda: use("other"))
        samples.add(KEPT, lambda: use("one"))
        samples.add(PEFT, with_peft)
        samples.add(RELOAD, lambda: load_diffusers(settings, alive=lambda: None))

    return measure


def variations() -> Measure:
    """Pictures of one prompt, together and one by one."""
    together, single = _tiny(max_batch=VARIATIONS), _tiny()

    def draw(backend: Any) -> None:
        pictures = backend.pictures(
            RECIPE, NO_INPUTS, first=0, lean=False, report=lambda step: None, cancel=threading.Event()
        )
        for _ in pictures:
            pass

    def measure(samples: Samples) -> None:
        samples.add(TOGETHER, lambda: draw(together))
        samples.add(SINGLE, lambda: draw(single))

    return measure


def _tiny(**changes: Any) -> Any:
    from tenkaigen_worker.engine.tiny import load_demo_model

    return load_demo_model(EngineSettings.model_validate({"backend": "tiny", "threads": THREADS, **changes}))


def _write_lora(transformer: Any, file: Path) -> Path:
    """Write a LoRA for every linear layer of the blocks."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("transformer_blocks."):
            tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(RANK, module.in_features)
            tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(module.out_features, RANK)
    save_file(tensors, file)
    return file


if __name__ == "__main__":
    run(engine)
