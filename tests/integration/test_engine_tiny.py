"""The demonstration model in a real child: what comes out is what diffusers makes, at every size."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from PIL import Image, ImageChops

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.base import Inputs, Step
from tenkaigen_worker.engine.host import EngineProcess
from tenkaigen_worker.engine.tiny import load_demo_model
from tenkaigen_worker.errors import EngineError, InputError
from tenkaigen_worker.recipe import AppliedLora, Recipe
from tenkaigen_worker.resources import DEMO_MODEL
from tests.loras import DEMO, make_lora
from tests.unit.pictures import gradient

pytestmark = pytest.mark.asyncio(loop_scope="module")

RECIPE = Recipe("a red fox", "blurry", "Standard", 128, 128, "quality", 3, 4.0, "base", (7,), "tiny", "tiny")


class Listener(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.actions: dict[str, str] = {}
        self._news = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.actions[record.getMessage()] = getattr(record, "action", "")
        self._news.set()

    async def until(self, line: str) -> None:
        """Wait for a line: what the child logs comes by a pipe of its own."""
        while line not in self.lines:
            self._news.clear()
            await self._news.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def logged() -> AsyncIterator[Listener]:
    """Everything that the engine logs, from its start on."""
    listener, logger = Listener(), logging.getLogger("tenkaigen.engine")
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    yield listener
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(listener)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(logged: Listener) -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(EngineSettings(backend="tiny", threads=1))
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture(scope="module")
def pipe() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_demo_model(EngineSettings(backend="tiny", threads=1))._pipe
    torch.set_num_threads(threads)


async def pictures(engine: EngineProcess, recipe: Recipe) -> list[bytes]:
    run = engine.generate(recipe, on_step=lambda step: None)
    return [picture.pixels async for picture in run]


async def picture(engine: EngineProcess, **changes: Any) -> bytes:
    (pixels,) = await pictures(engine, replace(RECIPE, **changes))
    return pixels


def bare(pipe: Any, *, seed: int, **arguments: Any) -> bytes:
    generator = torch.Generator("cpu").manual_seed(seed)
    size = {"width": RECIPE.width, "height": RECIPE.height, "num_inference_steps": RECIPE.steps}
    image = pipe(**size, generator=generator, max_sequence_length=1024, **arguments).images[0]
    pixels: bytes = image.tobytes()
    return pixels


async def test_a_picture_equals_a_bare_call_of_the_pipeline_to_the_bit(engine: EngineProcess, pipe: Any) -> None:
    expected = bare(pipe, seed=7, prompt="a red fox", negative_prompt="blurry", true_cfg_scale=4.0)

    assert await picture(engine) == expected


async def test_guidance_without_a_negative_prompt_is_guidance_against_nothing(engine: EngineProcess, pipe: Any) -> None:
    expected = bare(pipe, seed=7, prompt="a red fox", negative_prompt=" ", true_cfg_scale=4.0)

    assert await picture(engine, negative_prompt="") == expected


async def test_without_guidance_the_negative_prompt_is_not_used(engine: EngineProcess, pipe: Any) -> None:
    expected = bare(pipe, seed=7, prompt="a red fox", true_cfg_scale=1.0)

    assert await picture(engine, guidance_scale=1.0) == expected


async def test_each_picture_depends_on_its_own_seed_alone(engine: EngineProcess) -> None:
    together = await pictures(engine, replace(RECIPE, seeds=(1, 2, 1)))

    assert together[0] == together[2]
    assert together[0] != together[1] == await picture(engine, seeds=(2,))


async def test_the_largest_seed_is_a_seed(engine: EngineProcess) -> None:
    assert len(await picture(engine, seeds=(2**32 - 1,))) == 128 * 128 * 3


@pytest.mark.parametrize(
    ("one", "other"),
    [("a red fox", "a blue whale"), ("Fox", "Cat"), ("fox " * 160 + "cat", "fox " * 160 + "dog")],
    ids=["other words", "the first word", "the end of a long prompt"],
)
async def test_every_word_of_the_prompt_counts(engine: EngineProcess, one: str, other: str) -> None:
    assert await picture(engine, prompt=one) != await picture(engine, prompt=other)


async def test_every_phase_is_reported(engine: EngineProcess) -> None:
    steps: list[Step] = []
    async for finished in engine.generate(RECIPE, on_step=steps.append):
        assert set(finished.timings_ms) == {"encode", "denoise", "decode"}

    assert [(step.phase, step.step, step.total) for step in steps] == [
        ("encode", 1, 1),
        ("denoise", 1, 3),
        ("denoise", 2, 3),
        ("denoise", 3, 3),
        ("decode", 0, 1),
    ]


@pytest.mark.parametrize("phase", ["encode", "denoise", "decode"])
async def test_a_cancel_in_any_phase_ends_the_run_and_spoils_nothing(engine: EngineProcess, phase: str) -> None:
    expected, pid = await picture(engine), engine.pid

    def cancel_in_phase(step: Step) -> None:
        if step.phase == phase:
            running.cancel()

    run = engine.generate(replace(RECIPE, width=256, height=256), on_step=cancel_in_phase)
    running = asyncio.ensure_future(anext(run))
    with pytest.raises(asyncio.CancelledError):
        await running

    assert await picture(engine) == expected
    assert engine.pid == pid


async def test_a_lora_and_a_wrong_one_come_to_the_child_and_leave_it_usable(
    engine: EngineProcess, tmp_path: Path
) -> None:
    plain, pid = await picture(engine), engine.pid
    right = make_lora(tmp_path / "right.safetensors", sizes=DEMO)
    wrong = make_lora(tmp_path / "wrong.safetensors", targets=["blocks.0.qkv"])
    loras = tuple(AppliedLora(file.stem, file.stem, 1.0) for file in (right, wrong))
    inputs = Inputs(loras={file.stem: file for file in (right, wrong)})

    async def draw(*loras: AppliedLora) -> bytes:
        run = engine.generate(replace(RECIPE, loras=loras), inputs, on_step=lambda step: None)
        (drawn,) = [picture.pixels async for picture in run]
        return drawn

    assert await draw(loras[0]) != plain
    with pytest.raises(InputError, match=r"^loras: wrong was made for another model: there is no blocks\.0\.qkv"):
        await draw(*loras)
    assert (await picture(engine), engine.pid) == (plain, pid)


async def test_the_libraries_do_not_chatter(engine: EngineProcess, logged: Listener) -> None:
    await picture(engine)

    said = "Engine: tenkaigen.engine: "
    ours = (
        "Model tiny is ready on cpu (float32)",
        f"{said}Prompts encoded in ",
        f"{said}LoRAs applied in ",
        f"{said}tiny draws 128 x 128 pixels; scaled to ",
    )
    assert [line for line in logged.lines if not line.startswith(ours)] == []


async def test_the_demo_model_says_that_it_is_one(engine: EngineProcess) -> None:
    assert engine.info is not None
    assert engine.info.model.demo
    assert (engine.info.device, engine.info.dtype) == ("cpu", "float32")


async def test_another_size_is_scaled_from_its_own_and_says_so(engine: EngineProcess, logged: Listener) -> None:
    native = Image.frombytes("RGB", (128, 128), await picture(engine))
    logged.lines.clear()
    (made,) = [made async for made in engine.generate(replace(RECIPE, width=256), on_step=lambda step: None)]

    assert (made.width, made.height) == (256, 128)
    wide = Image.frombytes("RGB", (256, 128), made.pixels)
    assert wide.crop((64, 0, 192, 128)).tobytes() == native.tobytes()
    line = "Engine: tenkaigen.engine: tiny draws 128 x 128 pixels; scaled to 256 x 128"
    await logged.until(line)
    assert logged.actions[line] == "picture_scaled"


async def test_what_is_not_masked_stays_as_it_was_at_every_size(engine: EngineProcess, tmp_path: Path) -> None:
    original, mask = gradient(256, 192).convert("RGB"), Image.new("L", (256, 192))
    mask.paste(255, (128, 0, 256, 192))
    original.save(tmp_path / "reference.png")
    mask.save(tmp_path / "mask.png")
    inputs = Inputs(reference=tmp_path / "reference.png", mask=tmp_path / "mask.png")
    recipe = replace(RECIPE, width=256, height=192, reference="r" * 64, mask="m" * 64, strength=1.0)
    (made,) = [made async for made in engine.generate(recipe, inputs, on_step=lambda step: None)]

    drawn = Image.frombytes("RGB", original.size, made.pixels)
    changed = ImageChops.difference(drawn, original).getbbox()
    assert changed is not None
    assert changed[0] >= 128


async def test_damaged_files_say_how_to_get_them_anew(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO_MODEL, tmp_path / "demo_model"))
    os.truncate(folder / "vae" / "diffusion_pytorch_model.safetensors", 1000)

    words = "^engine.backend: tiny: the files of the demonstration model are .*install tenkaigen-worker anew$"
    with pytest.raises(EngineError, match=words):
        load_demo_model(EngineSettings(backend="tiny"), folder)
