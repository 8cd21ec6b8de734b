"""Edits, on diffusers' own pipeline for them with small weights.

What this proves: prompts, pictures, seeds, progress, cancel and the cache take the way that they take with the real
model, through the real pipeline, the real processor and the real text encoder's vision tower, so shapes, order and
arguments fit. What it does not prove: that pictures are good, which only trained weights can show. The pipeline scales
pictures to a megapixel before it encodes them; here to a few pixels, for the sake of speed.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.backend import Stopped, load_backend
from tenkaigen_worker.engine.base import Inputs, Picture, Step
from tenkaigen_worker.engine.edit import Edit, load_processor, make_processor
from tenkaigen_worker.engine.qwen import QwenBackend
from tenkaigen_worker.errors import EngineError, InputError
from tenkaigen_worker.recipe import Recipe
from tests.int4 import small_pipeline, small_transformer, standin, write_checkpoint
from tests.random_pipeline import build_pipeline, random_backend
from tests.unit.pictures import gradient

RECIPE = Recipe(
    *("as a woodcut", "", "Standard", 64, 96, "edit", 2, 2.0, "base", (7,), "tiny", "tiny"), references=("a" * 64,)
)


@pytest.fixture(scope="module", autouse=True)
def small_and_on_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def backend() -> QwenBackend:
    return random_backend()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    pictures = [
        gradient(60, 90),
        Image.new("RGB", (64, 64), "teal"),
        gradient(120, 40).transpose(Image.Transpose.ROTATE_180),
    ]
    for number, picture in enumerate(pictures):
        picture.convert("RGB").save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(len(pictures))]


def run(backend: QwenBackend, recipe: Recipe, *files: Path, **more: Any) -> list[Picture]:
    how = {"first": 0, "lean": False, "report": lambda step: None, "cancel": threading.Event(), **more}
    return list(backend.pictures(recipe, Inputs(references=files), **how))


def edit_pipeline() -> Any:
    pipe = build_pipeline()
    edits = QwenImageEditPlusPipeline(**pipe.components, processor=make_processor(pipe.tokenizer))
    edits.set_progress_bar_config(disable=True)
    return edits


def bare(recipe: Recipe, *files: Path) -> bytes:
    """What diffusers' own call makes, with the text encoder told which tokens are pictures."""
    edits = edit_pipeline()
    encoder, forward = edits.text_encoder, edits.text_encoder.forward
    token = encoder.config.image_token_id

    def told(**given: Any) -> Any:
        return forward(**given, mm_token_type_ids=(given["input_ids"] == token).int())

    encoder.forward = told
    image = edits(
        image=[Image.open(file) for file in files],
        prompt=recipe.prompt,
        negative_prompt=" ",
        true_cfg_scale=recipe.guidance_scale,
        width=recipe.width,
        height=recipe.height,
        num_inference_steps=recipe.steps,
        generator=torch.Generator("cpu").manual_seed(recipe.seeds[0]),
        max_sequence_length=1024,
    ).images[0]
    return bytes(image.tobytes())


def test_an_edit_equals_a_bare_call_to_the_bit(backend: QwenBackend, files: list[Path]) -> None:
    (picture,) = run(backend, RECIPE, files[0])
    assert (picture.width, picture.height, len(picture.pixels)) == (64, 96, 64 * 96 * 3)
    assert picture.pixels == bare(RECIPE, files[0])


def test_every_picture_counts_and_their_order_does(backend: QwenBackend, files: list[Path]) -> None:
    recipes = {key: replace(RECIPE, references=tuple(key), guidance_scale=1.0) for key in ("a", "ab", "ba", "abc")}
    drawn = {
        key: run(backend, recipe, *(files["abc".index(letter)] for letter in key))[0].pixels
        for key, recipe in recipes.items()
    }
    assert len(set(drawn.values())) == len(drawn)


def test_prompts_are_remembered_with_their_pictures(files: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    backend = random_backend()
    with caplog.at_level("INFO", "tenkaigen.engine"):
        first = run(backend, RECIPE, files[0])
        again = run(backend, RECIPE, files[0])
        other = run(backend, replace(RECIPE, references=("b" * 64,)), files[1])
        words_alone = run(backend, replace(RECIPE, references=()))
    assert [said.message.partition(", ")[2] for said in caplog.records if said.name == "tenkaigen.engine"] == [
        "0 of 2 from the cache",
        "2 of 2 from the cache",
        "0 of 2 from the cache",
        "0 of 2 from the cache",
    ]
    assert first[0].pixels == again[0].pixels
    assert len({picture.pixels for (picture,) in (first, other, words_alone)}) == 3


def test_the_text_encoder_is_told_which_tokens_are_pictures(backend: QwenBackend) -> None:
    edits = edit_pipeline()
    picture = gradient(384, 384).convert("RGB")
    with torch.no_grad():
        embeds, mask = Edit(edits, (picture,), ("a",)).encode("as a woodcut", 1024)
        untold, _ = edits.encode_prompt(prompt="as a woodcut", image=[picture])

        text = edits.prompt_template_encode.format("Picture 1: <|vision_start|><|image_pad|><|vision_end|>as a woodcut")
        given = edits.processor(text=[text], images=[picture], padding=True, return_tensors="pt")
        encoded = edits.text_encoder(**given, output_hidden_states=True).hidden_states[-1]
    assert mask is None
    assert torch.equal(embeds, encoded[:, edits.prompt_template_encode_start_idx :])
    assert not torch.equal(embeds, untold)
    # Nothing of that stays behind: words alone are encoded as before.
    assert not edits.text_encoder._forward_pre_hooks


def test_variations_are_drawn_one_by_one(files: list[Path]) -> None:
    backend = random_backend(max_batch=4)
    told: list[Step] = []
    pictures = run(backend, replace(RECIPE, seeds=(7, 8)), files[0], report=told.append)
    assert [(picture.index, picture.seed) for picture in pictures] == [(0, 7), (1, 8)]
    assert pictures[0].pixels != pictures[1].pixels
    drawn = [(step.index, step.step, step.count) for step in told if step.phase == "denoise"]
    assert drawn == [(0, 1, 1), (0, 2, 1), (1, 1, 1), (1, 2, 1)]


def test_an_edit_stops_in_the_middle_and_the_backend_goes_on(backend: QwenBackend, files: list[Path]) -> None:
    cancel = threading.Event()
    told: list[Step] = []

    def report(step: Step) -> None:
        told.append(step)
        if step.phase == "denoise":
            cancel.set()

    recipe = replace(RECIPE, steps=3, guidance_scale=1.0)
    with pytest.raises(Stopped):
        run(backend, recipe, files[0], report=report, cancel=cancel)
    assert [step.step for step in told if step.phase == "denoise"] == [1]
    assert run(backend, replace(recipe, steps=2), files[0])


def test_what_cannot_be_edited(backend: QwenBackend, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    two = replace(RECIPE, references=("a", "b"))
    with pytest.raises(InputError, match="more_references: cannot be read as PNG"):
        run(backend, two, files[0], tmp_path / "bad.png")
    with pytest.raises(EngineError, match="an edit of 2 pictures came with 1 files"):
        run(backend, two, files[0])
    with pytest.raises(InputError, match=r"prompt: may not contain <\|image_pad\|>"):
        run(backend, replace(RECIPE, prompt="a <|image_pad|>"), files[0])
    pipe = build_pipeline()
    without = QwenBackend(pipe, backend.model, torch.device("cpu"), torch.float32)
    with pytest.raises(EngineError, match=r"makes no edits: name their model in engine\.edit_model"):
        run(without, RECIPE, files[0])


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    """A model and one for edits, as ``engine`` names them: saved as pipelines are, the second with other weights."""
    pipe = build_pipeline()
    pipe.save_pretrained(tmp_path / "fox")
    processor = make_processor(pipe.tokenizer)
    processor.image_processor.save_pretrained(tmp_path / "fox-edit" / "processor")
    processor.tokenizer.save_pretrained(tmp_path / "fox-edit" / "processor")
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.mul_(1.1)
    pipe.transformer.save_pretrained(tmp_path / "fox-edit" / "transformer")
    index = {"_class_name": "QwenImageEditPlusPipeline", "processor": [], "transformer": [], "vae": []}
    (tmp_path / "fox-edit" / "model_index.json").write_text(json.dumps(index))
    return {"model": str(tmp_path / "fox"), "edit_model": str(tmp_path / "fox-edit")}


def load(models: dict[str, Any], **changes: Any) -> QwenBackend:
    settings = EngineSettings.model_validate({"backend": "diffusers", "device": "cpu", **models, **changes})
    backend = load_backend(settings, alive=lambda: None)
    assert isinstance(backend, QwenBackend)
    return backend


def test_diffusers_draws_edits_with_the_transformer_for_edits(
    models: dict[str, str], files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    backend = load(models)
    assert (backend.model.name, backend.model.edit_model, backend.model.edit_revision) == ("fox", "fox-edit", None)
    words = replace(RECIPE, references=(), model="fox", backend="diffusers")
    edit = replace(RECIPE, model="fox-edit", backend="diffusers")
    with caplog.at_level("INFO", "tenkaigen.engine"):
        drawn = [run(backend, words), run(backend, edit, files[0]), run(backend, edit, files[0]), run(backend, words)]
    switched = [record.checkpoint for record in caplog.records if hasattr(record, "checkpoint")]
    assert switched == ["fox-edit", "fox"]
    assert drawn[0][0].pixels == drawn[3][0].pixels
    assert drawn[1][0].pixels == drawn[2][0].pixels

    pipe = build_pipeline()
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.mul_(1.1)
    model, cpu = backend.model, torch.device("cpu")
    heavier = QwenBackend(pipe, model, cpu, torch.float32, processor=make_processor(pipe.tokenizer))
    assert run(heavier, edit, files[0])[0].pixels == drawn[1][0].pixels


def test_nunchaku_draws_edits_with_their_checkpoint(models: dict[str, str], files: list[Path], tmp_path: Path) -> None:
    """Over the stand-in for its kernels: the way of a recipe, not the real kernels' numbers."""
    checkpoints = {name: {"file": str(tmp_path / f"svdq-int4_r32-{name}.safetensors")} for name in ("base", "edit")}
    shutil.rmtree(tmp_path / "fox" / "transformer")
    small_pipeline().save_pretrained(tmp_path / "fox")
    shutil.rmtree(tmp_path / "fox" / "transformer")
    shutil.rmtree(tmp_path / "fox-edit" / "transformer")
    for seed, checkpoint in enumerate(checkpoints.values()):
        write_checkpoint(Path(checkpoint["file"]), small_transformer(seed))
    with standin():
        backend = load(models, backend="nunchaku", checkpoints=checkpoints)
        assert (backend.model.backend, backend.model.edit_model) == ("nunchaku", "fox-edit")
        base, edit = (backend.model.checkpoint(name) for name in ("base", "edit"))
        recipe = replace(RECIPE, backend="nunchaku", model="fox-edit", checkpoint=edit, guidance_scale=1.0)
        drawn = {
            run(backend, recipe, files[0])[0].pixels,
            run(backend, replace(recipe, checkpoint=base), files[0])[0].pixels,
            run(backend, replace(recipe, references=()))[0].pixels,
        }
        assert len(drawn) == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"edit_model": "nowhere"}, "engine.edit_model: there is no folder nowhere; give a folder or a hub id"),
        (
            {"edit_model": "MODEL"},
            "is a QwenImagePipeline; only a QwenImageEditPlusPipeline can be used, such as Qwen/",
        ),
    ],
)
def test_a_model_for_edits_that_is_not_here(models: dict[str, str], changes: dict[str, str], says: str) -> None:
    changes = {name: models["model"] if value == "MODEL" else value for name, value in changes.items()}
    with pytest.raises(EngineError, match=re.escape(says)):
        load(models, **changes)


def test_a_processor_as_it_was_saved_needs_no_torchvision(tmp_path: Path) -> None:
    pipe = build_pipeline()
    processor = make_processor(pipe.tokenizer)
    processor.image_processor.save_pretrained(tmp_path / "processor")
    processor.tokenizer.save_pretrained(tmp_path / "processor")
    loaded = load_processor(tmp_path)
    given = {"text": ["<|image_pad|> in red"], "images": [gradient(56, 84).convert("RGB")], "return_tensors": "pt"}
    one, other = processor(**given), loaded(**given)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert QwenImageEditPlusPipeline(**pipe.components, processor=loaded).processor is loaded
