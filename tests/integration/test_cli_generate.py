"""``tenkaigen generate`` with all it can be asked for, and no network and no database."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path

from PIL import Image

from tenkaigen_worker.images import read_recipe
from tests.loras import DEMO, make_lora
from tests.unit.pictures import gradient

# A test that hangs must end some time; nothing is measured with this.
PATIENCE_SECONDS = 120.0


async def test_a_style_a_mode_a_lora_and_a_picture(tmp_path: Path) -> None:
    weights = tmp_path / "plugins" / "loras" / "weave.safetensors"
    weights.parent.mkdir(parents=True)
    make_lora(weights, sizes=DEMO)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    lora = {"name": "Weave", "source": weights.name, "sha256": digest, "base_model": "tiny", "commercial_use": True}
    weights.with_suffix(".yaml").write_text(json.dumps(lora))
    gradient(96, 64).save(tmp_path / "fox.jpg")
    mask = Image.new("L", (96, 64))
    mask.paste(255, (0, 0, 48, 64))
    mask.save(tmp_path / "mask.png")

    arguments = ["A dragon", "--style", "line_art", "--mode", "lightning", "--lora", "WEAVE:0.5", "-o", "out.png"]
    pictures = ["--reference", "fox.jpg", "--mask", "mask.png", "--strength", "0.8"]
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TENKAIGEN_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tenkaigen_worker", "generate", *arguments, *pictures),
        cwd=tmp_path,
        env={**environ, **nowhere, "TENKAIGEN_ENGINE__BACKEND": "tiny", "TENKAIGEN_ENGINE__THREADS": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert out.decode() == "out.png\n"

    recipe = read_recipe(tmp_path / "out.png").recipe
    assert (recipe.style, recipe.mode, recipe.steps, recipe.scheduler) == ("Line Art", "lightning", 4, "lightning")
    assert [(one.name, one.sha256, one.weight) for one in recipe.loras] == [("Weave", digest, 0.5)]
    assert (recipe.width, recipe.height, recipe.strength) == (96, 64, 0.8)
    assert recipe.reference
    assert recipe.mask
    left = set(os.listdir(tmp_path))
    assert left == {"plugins", "fox.jpg", "mask.png", "out.png", ".tenkaigen"}
    assert not os.listdir(tmp_path / ".tenkaigen" / "references")
