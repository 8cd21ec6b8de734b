"""The least that makes the same pictures: the pipeline in a loop, PNG encoding, and a file. Run by ``overhead.py``.

Reads recipes as a JSON list from a file, and says after each picture when it was done and what it is.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.tiny import load_demo_model
from tenkaigen_worker.images import encode_png
from tenkaigen_worker.recipe import Recipe


def main() -> None:
    """Make one picture after another: ``bare_loop.py RECIPES FOLDER THREADS``."""
    recipes = [Recipe.from_json(recipe) for recipe in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]
    folder = Path(sys.argv[2])
    pipe = load_demo_model(EngineSettings(backend="tiny", threads=int(sys.argv[3])))._pipe

    for number, recipe in enumerate(recipes):
        png = make(pipe, recipe)
        (folder / f"{number}.png").write_bytes(png)
        done = time.monotonic()
        print(json.dumps({"done": done, "sha256": hashlib.sha256(png).hexdigest()}), flush=True)


def make(pipe: Any, recipe: Recipe) -> bytes:
    """One picture as diffusers' documentation makes it."""
    image = pipe(
        prompt=recipe.prompt,
        negative_prompt=recipe.negative_prompt or " ",
        true_cfg_scale=recipe.guidance_scale,
        width=recipe.width,
        height=recipe.height,
        num_inference_steps=recipe.steps,
        generator=torch.Generator("cpu").manual_seed(recipe.seeds[0]),
    ).images[0]
    return encode_png(image, recipe, seed=recipe.seeds[0])


if __name__ == "__main__":
    main()
