"""Pictures from pictures, variations, schedulers and remembered prompts, on the real pipeline with small weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageImg2ImgPipeline, QwenImageInpaintPipeline
from PIL import Image

from tenkaigen_worker.engine import latents
from tenkaigen_worker.engine.backend import OutOfMemory, Stopped
from tenkaigen_worker.engine.base import NO_INPUTS, Inputs, Picture, Step
from tenkaigen_worker.engine.devices import fitting_batch
from tenkaigen_worker.engine.qwen import QwenBackend
from tenkaigen_worker.engine.reference import read_reference
from tenkaigen_worker.errors import EngineError, InputError
from tenkaigen_worker.recipe import AppliedLora, Recipe, steps_to_run
from tests.loras import make_lora
from tests.random_pipeline import build_pipeline, random_backend

WIDTH, HEIGHT = 64, 96
RECIPE = Recipe("a red fox", "", "Standard", WIDTH, HEIGHT, "quality", 3, 1.0, "base", (7,), "tiny", "tiny")
REFERENCE = replace(RECIPE, reference="r" * 64, steps=4, strength=0.5)
INPAINTING = replace(REFERENCE, mask="m" * 64)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def backend() -> QwenBackend:
    return random_backend()


def fresh(**changes: Any) -> QwenBackend:
    """A backend of its own, with these settings."""
    return random_backend(**changes)


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """A reference with stripes, and a mask that has a white square and a grey edge."""
    stripes = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stripes[:, ::8] = (200, 40, 90)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[16:48, 15:49] = 128
    mask[16:48, 16:48] = 255
    Image.fromarray(stripes).save(tmp_path / "reference.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return Inputs(reference=tmp_path / "reference.png", mask=tmp_path / "mask.png")


def run(
    backend: QwenBackend,
    recipe: Recipe = RECIPE,
    inputs: Inputs = NO_INPUTS,
    *,
    report: Callable[[Step], None] = lambda step: None,
    lean: bool = False,
    first: int = 0,
    cancel: threading.Event | None = None,
) -> list[Picture]:
    cancel = cancel or threading.Event()
    return list(backend.pictures(recipe, inputs, first=first, lean=lean, report=report, cancel=cancel))


def draw(backend: QwenBackend, recipe: Recipe = RECIPE, inputs: Inputs = NO_INPUTS, **changes: Any) -> bytes:
    (picture,) = run(backend, recipe, inputs, **changes)
    return picture.pixels


def array(source: bytes | Path) -> Any:
    if isinstance(source, Path):
        return np.array(Image.open(source)).astype(int)
    return np.frombuffer(source, np.uint8).reshape(HEIGHT, WIDTH, 3).astype(int)


# Image to image.


def bare(kind: Any, inputs: Inputs, **more: Any) -> bytes:
    """What diffusers' own pipeline makes of the reference's most likely latents."""
    pipe = kind(**build_pipeline().components)
    pipe.set_progress_bar_config(disable=True)
    pixels = pipe.image_processor.preprocess(Image.open(inputs.reference)).unsqueeze(2)
    with torch.no_grad():
        encoded = pipe.vae.encode(pixels).latent_dist.mode()
    mean, std = (torch.tensor(pipe.vae.config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std"))
    start = ((encoded - mean) * (1 / std)).squeeze(2)
    image = pipe(
        prompt=RECIPE.prompt,
        image=start,
        strength=REFERENCE.strength,
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=REFERENCE.steps,
        true_cfg_scale=1.0,
        generator=torch.Generator("cpu").manual_seed(7),
        max_sequence_length=1024,
        **({name: start if value is ... else value for name, value in more.items()}),
    ).images[0]
    return bytes(image.tobytes())


def test_a_picture_from_a_picture_equals_a_bare_call_to_the_bit(backend: QwenBackend, inputs: Inputs) -> None:
    expected = bare(QwenImageImg2ImgPipeline, inputs)

    assert draw(backend, REFERENCE, inputs) == expected
    assert draw(backend, REFERENCE, inputs) == expected
    assert draw(backend) not in {expected, draw(backend, replace(REFERENCE, seeds=(8,)), inputs)}


def test_the_weaker_the_closer_to_the_reference(backend: QwenBackend, inputs: Inputs) -> None:
    reference = read_reference(REFERENCE, inputs)
    assert reference is not None
    vae = backend._pipe.vae  # untrained: what it makes of a picture is far from it, but always the same
    original = array(
        latents.to_rgb_bytes(latents.decode(vae, latents.encode(vae, reference.pixels(), CPU).unsqueeze(2))[0])
    )
    recipes = [replace(REFERENCE, strength=strength, steps=8) for strength in (0.125, 0.5, 1.0)]
    distances = [abs(array(draw(backend, recipe, inputs)) - original).mean() for recipe in recipes]

    assert distances == sorted(distances)
    assert distances[0] < distances[2] / 2


@pytest.mark.parametrize("recipe", [REFERENCE, INPAINTING], ids=["image to image", "inpainting"])
def test_progress_counts_the_steps_that_are_run(backend: QwenBackend, inputs: Inputs, recipe: Recipe) -> None:
    told: list[Step] = []
    run(backend, replace(recipe, steps=10, strength=0.25), inputs, report=told.append)

    assert steps_to_run(10, 0.25) == 3
    assert told == [
        Step("encode", 0, 1, 1),
        *(Step("denoise", 0, number, 3) for number in (1, 2, 3)),
        Step("decode", 0, 0, 1),
    ]


@pytest.mark.parametrize("recipe", [REFERENCE, INPAINTING], ids=["image to image", "inpainting"])
def test_the_reference_is_encoded_once_for_all_pictures_in_the_phase_encode(
    backend: QwenBackend, inputs: Inputs, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    encode = latents.encode

    def listen(*args: Any, **kwargs: Any) -> Any:
        told.append("the VAE encodes")
        return encode(*args, **kwargs)

    monkeypatch.setattr(latents, "encode", listen)
    run(backend, replace(recipe, seeds=(1, 2, 3)), inputs, report=lambda step: told.append(step.phase))

    assert told[:2] == ["the VAE encodes", "encode"]
    assert told.count("the VAE encodes") == told.count("encode") == 1


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 20, 50])
@pytest.mark.parametrize("strength", [0.01, 0.1, 0.3, 0.5, 0.6, 0.999, 1.0])
def test_the_number_of_steps_is_the_one_that_diffusers_counts(steps: int, strength: float) -> None:
    scheduler = SimpleNamespace(timesteps=list(range(steps)), order=1)
    pipe = SimpleNamespace(scheduler=scheduler)
    timesteps, count = QwenImageImg2ImgPipeline.get_timesteps(pipe, steps, strength, None)

    assert steps_to_run(steps, strength) == count == len(timesteps)


@pytest.mark.parametrize("recipe", [REFERENCE, INPAINTING], ids=["image to image", "inpainting"])
def test_bfloat16_draws_from_pictures_too(inputs: Inputs, recipe: Recipe) -> None:
    backend = fresh(dtype="bfloat16")
    drawn = draw(backend, recipe, inputs)

    assert len(drawn) == WIDTH * HEIGHT * 3
    assert draw(backend, recipe, inputs) == drawn


def test_text_to_image_is_the_same_after_the_other_pipelines_ran(backend: QwenBackend, inputs: Inputs) -> None:
    before = draw(backend)
    run(backend, INPAINTING, inputs)
    run(backend, REFERENCE, inputs)

    assert draw(backend) == before


# Inpainting.


def test_what_is_not_masked_stays_to_the_bit_and_grey_blends(backend: QwenBackend, inputs: Inputs) -> None:
    drawn, original, mask = array(draw(backend, INPAINTING, inputs)), array(inputs.reference), array(inputs.mask)

    assert (drawn[mask == 0] == original[mask == 0]).all()
    assert abs(drawn - original)[mask == 255].mean() > 10
    assert 0 < abs(drawn - original)[mask == 128].mean() < abs(drawn - original)[mask == 255].mean()


def test_inpainting_equals_a_bare_call_where_it_draws(backend: QwenBackend, inputs: Inputs) -> None:
    # On the grid of the latents, where the brightest of each cell is what diffusers looks at anyway.
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save(inputs.mask)
    expected = array(bare(QwenImageInpaintPipeline, inputs, mask_image=Image.fromarray(mask), masked_image_latents=...))

    drawn = array(draw(backend, INPAINTING, inputs))
    assert (drawn[mask == 255] == expected[mask == 255]).all()


def test_a_line_that_is_thinner_than_a_latent_is_drawn(backend: QwenBackend, inputs: Inputs) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, 27] = 255
    Image.fromarray(mask).save(inputs.mask)
    reference = read_reference(INPAINTING, inputs)
    assert reference is not None

    cells = reference.mask_cells(8)
    assert cells is not None
    assert cells[0, 0, 0].tolist() == [0.0] * 24 + [1.0] * 8 + [0.0] * 32
    # In the latents: decoding alone would change these pixels, too.
    others = array(draw(backend, replace(INPAINTING, seeds=(8,)), inputs))
    assert (array(draw(backend, INPAINTING, inputs)) != others)[:, 27].any()


# What is wrong with them.


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT), kind: str = "PNG") -> Path:
    Image.new(mode, size).save(path, kind)
    return path


WRONG = {
    "no strength": ({"strength": None}, {}, "strength: is missing; a reference needs one, such as 0.6"),
    "a strength of nothing": ({"strength": 0.0}, {}, "strength: 0 of 4 steps is no step at all; take a larger one"),
    "another size": (
        {},
        {"reference": lambda path: save(path, size=(64, 64))},
        r"reference: is 64 x 64 \(RGB\); it should be 64 x 96 \(RGB\)",
    ),
    "a mask of another size": (
        {"mask": "m"},
        {"mask": lambda path: save(path, "L", (32, 96))},
        r"mask: is 32 x 96 \(L\); it should be 64 x 96 \(L\)",
    ),
    "colours in the mask": ({"mask": "m"}, {"mask": save}, r"mask: is 64 x 96 \(RGB\); it should be 64 x 96 \(L\)"),
    "another format": ({}, {"reference": lambda path: save(path, kind="JPEG")}, "reference: cannot be read as PNG"),
    "a file cut short": (
        {},
        {"reference": lambda path: (path.write_bytes(save(path).read_bytes()[:60]), path)[1]},
        "reference: cannot be read as PNG",
    ),
    "a mask alone": ({"reference": None, "mask": "m"}, {}, "mask: there is no reference to draw on; give one too"),
}


@pytest.mark.parametrize(("changes", "files", "complaint"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_used_is_refused_before_anything_is_drawn(
    backend: QwenBackend, inputs: Inputs, tmp_path: Path, changes: Any, files: Any, complaint: str
) -> None:
    given = replace(inputs, **{field: make(tmp_path / f"wrong-{field}") for field, make in files.items()})

    with pytest.raises(InputError, match=f"^{complaint}"):
        run(backend, replace(REFERENCE, **changes), given, report=pytest.fail)


def test_a_reference_that_is_gone_may_be_fetched_again(backend: QwenBackend, tmp_path: Path) -> None:
    for given, complaint in ((NO_INPUTS, "came without its file"), (Inputs(reference=tmp_path / "gone"), "is gone")):
        with pytest.raises(EngineError, match=f"the .*reference {complaint}"):
            run(backend, REFERENCE, given)


# Schedulers.


def sigmas(backend: QwenBackend, recipe: Recipe) -> list[float]:
    """The noise levels that a run really went through."""
    seen: list[float] = []

    def look(step: Step) -> None:
        if step.phase == "denoise" and not seen:
            seen.extend(backend._pipe.scheduler.sigmas.tolist())

    run(backend, recipe, report=look)
    return seen


def test_lightning_takes_four_steps_where_its_authors_say(backend: QwenBackend) -> None:
    lightning = replace(RECIPE, scheduler="lightning", steps=4)

    assert sigmas(backend, lightning) == pytest.approx([1, 0.9, 0.75, 0.5, 0], abs=1e-6)
    assert sigmas(backend, replace(lightning, width=256, height=128)) == pytest.approx([1, 0.9, 0.75, 0.5, 0], abs=1e-6)


def test_the_models_own_scheduler_is_as_before_after_lightning(backend: QwenBackend) -> None:
    before, own = draw(backend), sigmas(backend, RECIPE)
    lightning = draw(backend, replace(RECIPE, scheduler="lightning"))

    assert own[-2] == pytest.approx(0.02)  # its shift_terminal
    assert sigmas(backend, RECIPE) == own
    assert lightning != before == draw(backend)


def test_a_cancelled_run_leaves_no_trace_in_the_next(backend: QwenBackend) -> None:
    before, cancel = draw(backend), threading.Event()

    with pytest.raises(Stopped):
        run(backend, replace(RECIPE, scheduler="lightning"), report=lambda step: cancel.set(), cancel=cancel)
    assert draw(backend) == before


def test_an_unknown_scheduler_is_refused(backend: QwenBackend) -> None:
    with pytest.raises(InputError, match="there is no scheduler euler; there is base, and lightning"):
        run(backend, replace(RECIPE, scheduler="euler"))


# Variations.

FOUR = replace(RECIPE, seeds=(1, 2, 3, 4), guidance_scale=3.0, negative_prompt="blurry")


def test_a_batch_draws_what_single_runs_draw_and_reports_every_step(inputs: Inputs) -> None:
    backend, told = fresh(max_batch=3), []
    batched = run(backend, FOUR, report=told.append)
    single = run(fresh(), FOUR)

    assert [(picture.index, picture.seed) for picture in batched] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    for one, other in zip(batched, single, strict=True):
        assert abs(array(one.pixels) - array(other.pixels)).max() <= 1
    assert told == [
        Step("encode", 0, 1, 1),
        *(Step("denoise", 0, number, 3, 3) for number in (1, 2, 3)),
        *(Step("decode", index, 0, 1) for index in (0, 1, 2)),
        *(Step("denoise", 3, number, 3) for number in (1, 2, 3)),
        Step("decode", 3, 0, 1),
    ]
    assert [bool(picture.timings_ms["denoise"]) for picture in batched] == [True, False, False, True]


@pytest.mark.parametrize("recipe", [REFERENCE, INPAINTING], ids=["image to image", "inpainting"])
def test_variations_of_a_picture_can_be_drawn_together(inputs: Inputs, recipe: Recipe) -> None:
    both = replace(recipe, seeds=(7, 8))

    for one, other in zip(run(fresh(max_batch=2), both, inputs), run(fresh(), both, inputs), strict=True):
        assert abs(array(one.pixels) - array(other.pixels)).max() <= 1


def test_each_picture_of_a_batch_is_there_before_the_next_is_decoded() -> None:
    told: list[Step] = []
    pictures = fresh(max_batch=4).pictures(
        FOUR, NO_INPUTS, first=0, lean=False, report=told.append, cancel=threading.Event()
    )
    for index in range(4):
        assert next(pictures).index == index
        assert told[-1] == Step("decode", index, 0, 1)


def test_a_batch_obeys_a_cancel() -> None:
    backend, cancel = fresh(max_batch=4), threading.Event()

    with pytest.raises(Stopped):
        run(backend, FOUR, cancel=cancel, report=lambda step: cancel.set() if step.phase == "denoise" else None)
    assert len(run(backend, FOUR)) == 4


def test_a_batch_that_does_not_fit_is_drawn_one_by_one() -> None:
    backend, told = fresh(max_batch=4), []

    def full(step: Step) -> None:
        told.append(step)
        if step.count > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert [picture.pixels for picture in run(backend, FOUR, report=full)] == [
        picture.pixels for picture in run(fresh(), FOUR)
    ]
    assert [step.count for step in told if step.phase == "denoise"] == [4, *[1] * 12]


def test_what_does_not_fit_one_by_one_either_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = fresh(max_batch=4)

    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend._pipe.transformer, "forward", full)
    with pytest.raises(OutOfMemory):
        run(backend, FOUR)


def test_the_leaner_way_goes_one_by_one_and_on_from_where_it_was() -> None:
    told: list[Step] = []

    assert [picture.index for picture in run(fresh(max_batch=4), FOUR, lean=True, first=2, report=told.append)] == [
        2,
        3,
    ]
    assert {step.count for step in told} == {1}


@pytest.mark.parametrize(("free_gib", "expected"), [(0.1, 1), (1.4, 2), (2.5, 4), (30.0, 8)])
def test_the_batch_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch, free_gib: float, expected: int) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int((free_gib - 0.05) * 2**30), 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int(0.07 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: int(0.02 * 2**30))
    sizes = SimpleNamespace(num_attention_heads=24, attention_head_dim=128)
    weights = [SimpleNamespace(device=gpu, nbytes=40 * 2**30)]
    transformer = SimpleNamespace(config=sizes, dtype=torch.bfloat16, parameters=lambda: weights)

    # 1024 x 1024 with a prompt of 100 tokens: 0.58 GiB each.
    assert fitting_batch(8, 4196, transformer, gpu) == expected
    weights[0] = SimpleNamespace(device=CPU, nbytes=40 * 2**30)
    assert fitting_batch(8, 4196, transformer, gpu) == 1


# Remembered prompts.


class Counter:
    """Counts how often the text encoder is asked."""

    def __init__(self, backend: QwenBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self._forward = backend._pipe.text_encoder.forward
        monkeypatch.setattr(backend._pipe.text_encoder, "forward", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self._forward(*args, **kwargs)


GUIDED = replace(RECIPE, guidance_scale=3.0, negative_prompt="blurry")


def test_a_known_prompt_needs_no_text_encoder_and_draws_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tenkaigen.engine")
    backend = fresh()
    counter = Counter(backend, monkeypatch)
    first = draw(backend, GUIDED)
    assert counter.calls == 2

    assert draw(backend, GUIDED) == first
    assert draw(backend, replace(GUIDED, seeds=(8,))) != first
    assert counter.calls == 2
    draw(backend, replace(GUIDED, prompt="a blue fox"))
    assert counter.calls == 3
    said = [record.getMessage().partition(", ")[2] for record in caplog.records if "Prompts" in record.getMessage()]
    assert said == [f"{known} of 2 from the cache" for known in (0, 2, 2, 1)]


def test_without_a_cache_every_prompt_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = fresh(prompt_cache_bytes=0)
    counter = Counter(backend, monkeypatch)

    assert draw(backend, GUIDED) == draw(backend, GUIDED)
    assert counter.calls == 4


def test_the_cache_holds_its_bytes_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    size = fresh()._prompts.encode("prompt 0").nbytes
    prompts = fresh(prompt_cache_bytes=3 * size)._prompts
    for number in (0, 1, 2, 0, 3):
        prompts.encode(f"prompt {number}")

    assert [prompts.knows(f"prompt {number}") for number in range(4)] == [True, False, True, True]
    prompts.encode("a prompt that is longer than all that may be kept " * 20)
    assert [prompts.knows(f"prompt {number}") for number in range(4)] == [True, False, True, True]


def test_lora_and_reference_and_lightning_go_together(backend: QwenBackend, inputs: Inputs, tmp_path: Path) -> None:
    file = make_lora(tmp_path / "a.safetensors")
    recipe = replace(INPAINTING, scheduler="lightning", loras=(AppliedLora("a", "5a", 1.0),))
    given = replace(inputs, loras={"5a": file})

    together = draw(backend, recipe, given)
    assert draw(backend, recipe, given) == together
    for left_out in ({"scheduler": "base"}, {"loras": ()}, {"mask": None}):
        assert draw(backend, replace(recipe, **left_out), given) != together
