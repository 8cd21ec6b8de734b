"""The ``tiny`` backend: the demonstration model that comes with the program, a Qwen-Image pipeline of small parts.

It takes every step that the real model takes, in a second and without a download. It knows about a hundred words and
the shipped styles; of words that it does not know it draws something arbitrary. ``demo_model/README.md`` says what it
was trained on.
"""

from __future__ import annotations

from pathlib import Path

from diffusers import QwenImagePipeline

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.devices import choose_device, choose_dtype, limit_threads
from tenkaigen_worker.engine.edit import make_processor
from tenkaigen_worker.engine.loaders import load_errors, quiet_libraries
from tenkaigen_worker.engine.native import AtNativeSize
from tenkaigen_worker.engine.qwen import QwenBackend
from tenkaigen_worker.recipe import Model
from tenkaigen_worker.resources import DEMO_MODEL

SIDE = 128  # pixels; it was trained on pictures of this size alone
STEPS = 12


def load_tiny(settings: EngineSettings) -> AtNativeSize:
    """Load the demonstration model, for pictures of any size. Raises ``EngineError`` when its files are damaged."""
    return AtNativeSize(load_demo_model(settings), SIDE)


def load_demo_model(settings: EngineSettings, folder: Path = DEMO_MODEL) -> QwenBackend:
    """Load the demonstration model as it is: what it draws at other sizes than its own makes no sense.

    On the CPU unless a GPU is asked for: it would not be quicker there.
    """
    quiet_libraries()
    limit_threads(settings)
    device = choose_device("cpu" if settings.device == "auto" else settings.device)
    dtype = choose_dtype(settings.dtype, device)
    how = {"setting": "engine.backend: tiny", "advice": "install tenkaigen-worker anew"}
    with load_errors(folder, "the demonstration model", **how):
        pipe = QwenImagePipeline.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, local_files_only=True)
        pipe.to(device)
    model = Model(
        backend="tiny",
        name="tiny",
        revision=None,
        default_width=SIDE,
        default_height=SIDE,
        demo=True,
        default_steps=STEPS,
        base="tiny",
        edit_model="tiny",
    )
    return QwenBackend(pipe, model, device, dtype, settings, processor=make_processor(pipe.tokenizer))
