"""From what was asked to a recipe and its files: what counts before what, and what is held for how long."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from tenkaigen_worker.config import ReferenceSettings
from tenkaigen_worker.engine.base import EngineInfo
from tenkaigen_worker.errors import ConfigError, InputError
from tenkaigen_worker.offers import Limits
from tenkaigen_worker.plugin.types import Lora
from tenkaigen_worker.recipe import Model
from tenkaigen_worker.references.uploads import Uploads
from tenkaigen_worker.request import read_request
from tenkaigen_worker.storage.local import LocalStorage
from tenkaigen_worker.worker.prepare import BeyondLimits, Prepared, Sources, prepared
from tests.unit.examples import sources
from tests.unit.lora_bytes import lora_bytes
from tests.unit.pictures import encoded, gradient

MODEL = Model("tiny", "tiny", None, 256, 256, default_steps=8, base="tiny")
ENGINE = EngineInfo(MODEL, "cpu", "float32", 0)
LIGHTNING = {"steps": 4, "guidance_scale": 1.0, "scheduler": "lightning", "max_steps": 8, "max_guidance_scale": 1.0}
MODES = {"quality": {"steps": 50, "guidance_scale": 4.0}, "lightning": LIGHTNING}

STYLES = {
    "ink": "name: Ink\nprompt: '{prompt}, ink'\nsteps: 40\nguidance_scale: 5.0\nwidth: 128\n"
    "loras: [{name: Sumi, weight: 0.5}]",
    "quick": "name: Quick\nmode: Lightning\nsteps: 6",
    "lost": "name: Lost\nmode: warp",
    "bare": "name: Line Art\nreplaces: true",
}
TEMPLATES = {
    "tote": "name: Tote\nvariables: {animal: cat}\nprompt: a {animal} in line art\nnegative_prompt: blur\nstyle: Ink",
    "card": "name: Card\nprompt: a card with {prompt}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, files in {"styles": STYLES, "templates": TEMPLATES}.items():
        (tmp_path / kind).mkdir()
        for name, text in files.items():
            (tmp_path / kind / f"{name}.yaml").write_text(text)
    (tmp_path / "loras").mkdir()
    for fill, (name, said) in enumerate(
        {
            "Sumi": {"trigger_words": ["sumi-e"], "aliases": ["Edo"]},
            "Fast": {},
            "Kaiju": {"match_prompt": True, "trigger_words": ["giant monster"]},
            "Flux": {"base_model": "Flux"},
        }.items()
    ):
        data = lora_bytes(fill)
        (tmp_path / "loras" / f"{name}.safetensors").write_bytes(data)
        lora = {"name": name, "source": f"{name}.safetensors", "sha256": hashlib.sha256(data).hexdigest()}
        lora |= {"base_model": "tiny", "commercial_use": True, **said}
        (tmp_path / "loras" / f"{name}.yaml").write_text(json.dumps(lora))
    return tmp_path


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files", "http://x")


@pytest.fixture
def here(folder: Path, storage: LocalStorage) -> Sources:
    return sources(folder, storage=storage, generation={"modes": MODES}, state_dir=str(folder / "state"))


async def settle(here: Sources, engine: EngineInfo = ENGINE, **fields: Any) -> Prepared:
    request = read_request({"prompt": "a fox", **fields}, here.names)
    async with prepared(request, here, engine) as job:
        return job


async def complaint(here: Sources, engine: EngineInfo = ENGINE, **fields: Any) -> str:
    with pytest.raises(InputError) as error:
        await settle(here, engine, **fields)
    return str(error.value)


# What counts before what


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("quality", 8, 4.0, 256, 256)),  # the model's steps, where more make no sense
        ({"style": "ink"}, ("quality", 40, 5.0, 128, 256)),
        ({"style": "ink", "steps": 7, "guidance_scale": 2, "width": 64}, ("quality", 7, 2.0, 64, 256)),
        ({"style": "ink", "mode": "lightning"}, ("lightning", 4, 1.0, 128, 256)),  # 40 steps are beyond this mode
        ({"style": "quick"}, ("lightning", 6, 1.0, 256, 256)),
        ({"style": "quick", "mode": "quality"}, ("quality", 6, 4.0, 256, 256)),
        ({"style": "quick", "steps": 3}, ("lightning", 3, 1.0, 256, 256)),
    ],
)
async def test_the_job_before_the_style_before_the_mode(
    here: Sources, fields: dict[str, Any], expected: tuple[str, int, float, int, int]
) -> None:
    recipe = (await settle(here, **fields)).recipe
    assert (recipe.mode, recipe.steps, recipe.guidance_scale, recipe.width, recipe.height) == expected
    assert recipe.scheduler == ("lightning" if recipe.mode == "lightning" else "base")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mode": "lightning", "steps": 9}, "steps: must be a whole number from 1 to 8 in the mode lightning, not 9"),
        ({"style": "quick", "steps": 9}, "steps: must be a whole number from 1 to 8 in the mode lightning, not 9"),
        ({"mode": "lightning", "guidance_scale": 1.5}, "guidance_scale: must be 1 in the mode lightning, not 1.5"),
        ({"style": "lost"}, "style: the style Lost cannot be used here: there is no mode 'warp'"),
    ],
)
async def test_beyond_the_modes_bounds(here: Sources, fields: dict[str, Any], says: str) -> None:
    assert says in await complaint(here, **fields)


# Templates and styles


async def test_a_template_comes_before_its_style(here: Sources) -> None:
    fields = {"prompt": None, "template": "tote", "negative_prompt": "text"}
    recipe = (await settle(here, **fields)).recipe
    assert recipe.prompt == "sumi-e, a cat in line art, ink"
    assert (recipe.negative_prompt, recipe.style) == ("text, blur", "Ink")
    recipe = (await settle(here, **fields, template_variables={"animal": "{prompt} fox"}, style="auto")).recipe
    assert (recipe.prompt, recipe.style) == ("a {prompt} fox in line art", "Line Art")
    assert (await settle(here, template="card")).recipe.prompt == "a card with a fox"


async def test_what_is_wrong_with_a_template(here: Sources) -> None:
    assert "prompt: the template Tote says everything" in await complaint(here, template="tote")
    assert "no variable 'anmal'" in await complaint(here, prompt="", template="tote", variables={"anmal": "x"})
    assert "prompt: must not be empty" in await complaint(here, prompt="", template="card")


# LoRAs


async def test_each_lora_once_and_the_jobs_weight_wins(here: Sources) -> None:
    job = await settle(here, prompt="a Kaiju", style="ink", loras=["Fast", {"name": "edo", "weight": 0.9}])
    assert [(lora.name, lora.weight) for lora in job.recipe.loras] == [("Fast", 1.0), ("Sumi", 0.9), ("Kaiju", 1.0)]
    assert job.recipe.prompt == "sumi-e, giant monster, a Kaiju, ink"
    assert set(job.inputs.loras) == {lora.sha256 for lora in job.recipe.loras}
    assert all(path.is_file() for path in job.inputs.loras.values())
    assert (await settle(here, prompt="Sumi-E fox", franchise="EDO")).recipe.prompt == "Sumi-E fox"


async def test_the_modes_lora_comes_with_it(folder: Path, storage: LocalStorage) -> None:
    modes = MODES | {"lightning": LIGHTNING | {"lora": "fast"}, "warp": LIGHTNING | {"lora": "Flux"}}
    here = sources(folder, storage=storage, generation={"modes": modes})
    assert [lora.name for lora in (await settle(here, mode="lightning")).recipe.loras] == ["Fast"]
    assert "mode: warp cannot be used here: the LoRA Flux was made for Flux" in await complaint(here, mode="warp")
    # Nobody is told of what cannot be used.
    assert here.usable_modes(MODEL) == ("quality", "lightning")
    assert here.usable_loras("tiny") == {"Fast": (), "Kaiju": (), "Neon Sign": (), "Sumi": ("Edo",)}
    assert "Neon Sign" not in here.usable_loras("Qwen/Qwen-Image")
    offered = here.offered(replace(MODEL, base="Flux"))
    assert (list(offered.modes), list(offered.loras)) == (["quality", "warp"], ["Flux"])


# What is held, and for how long


async def test_what_a_job_starts_from_is_there_as_long_as_it_is_needed(here: Sources, storage: LocalStorage) -> None:
    uploads = Uploads(storage, ReferenceSettings())
    reference = str((await uploads.keep(encoded(gradient(96, 64)), owner=None)).upload)
    mask = str((await uploads.keep(encoded(Image.new("L", (96, 64), "white")), owner=None)).upload)
    request = read_request({"prompt": "a fox", "reference": reference, "mask": mask}, here.names)
    async with prepared(request, here, ENGINE) as job:
        assert (job.recipe.width, job.recipe.height, job.recipe.strength) == (96, 64, 1.0)
        assert job.inputs.reference is not None
        assert job.inputs.mask is not None
        for file in (job.inputs.reference, job.inputs.mask):
            with Image.open(file) as image:
                assert image.size == (96, 64)
    assert not job.inputs.reference.exists()
    assert not job.inputs.mask.exists()

    recipe = (await settle(here, reference=reference, style="ink")).recipe
    assert (recipe.width, recipe.height, recipe.strength) == (128, 80, 0.6)  # the style's width, the picture's shape


class SlowFiles:
    """A download that never ends."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.given_up = False

    @asynccontextmanager
    async def hold(self, loras: Sequence[Lora]) -> AsyncIterator[Mapping[str, Path]]:
        self.asked.set()
        try:
            await asyncio.Event().wait()
            yield {}
        finally:
            self.given_up = True


async def test_a_download_can_be_given_up(here: Sources, storage: LocalStorage, folder: Path) -> None:
    upload = (await Uploads(storage, ReferenceSettings()).keep(encoded(gradient()), owner=None)).upload
    files = SlowFiles()
    slow = replace(here, lora_files=cast("Any", files))
    preparing = asyncio.create_task(settle(slow, loras="Sumi", reference=str(upload)))
    await files.asked.wait()
    assert list((folder / "state" / "references").iterdir())
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert files.given_up
    assert not list((folder / "state" / "references").iterdir())


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (None, None),
        ("fast", None),
        ("Warp", "there is no LoRA Warp"),
        ("Flux", "the LoRA Flux was made for Flux, and the model here takes those for tiny"),
    ],
)
def test_a_default_mode_that_no_job_could_use(folder: Path, lora: str | None, says: str | None) -> None:
    modes = {**MODES, "lightning": {**LIGHTNING, "lora": lora}}
    here = sources(folder, generation={"modes": modes, "default_mode": "lightning"}, state_dir=str(folder / "state"))
    if says is None:
        here.check_modes(MODEL)
    else:
        with pytest.raises(ConfigError, match=f"generation.default_mode is lightning, .*: {says}"):
            here.check_modes(MODEL)


# Edits

EDIT = {"steps": 40, "guidance_scale": 4.0, "edit": True, "max_steps": 60}
EDITOR = replace(MODEL, edit_model="tiny-edit", edit_revision="r9")


@pytest.fixture
def editing(folder: Path, storage: LocalStorage) -> Sources:
    state = str(folder / "state")
    return sources(folder, storage=storage, generation={"modes": {**MODES, "edit": EDIT}}, state_dir=state)


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file, formats=("PNG",)) as picture:
        assert picture.mode == "RGB"
        return picture.size


async def three_uploads(storage: LocalStorage) -> list[str]:
    uploads = Uploads(storage, ReferenceSettings())
    sizes = [(96, 48), (2000, 1500), (40, 80)]
    return [str((await uploads.keep(encoded(gradient(*size)), owner=None)).upload) for size in sizes]


async def test_an_edit_gets_its_pictures_in_order_and_uncropped(editing: Sources, storage: LocalStorage) -> None:
    given = await three_uploads(storage)
    request = read_request(
        {"prompt": "as a woodcut", "mode": "edit", "reference": given[0], "more_references": given[1:]}, editing.names
    )
    async with prepared(request, editing, replace(ENGINE, model=EDITOR)) as job:
        recipe, sizes = job.recipe, [size_of(file) for file in job.inputs.references]
    # The second is shrunk to what the pipeline sees of it; the first one's shape gets the model's number of pixels.
    assert sizes == [(96, 48), (1184, 896), (40, 80)]
    assert (recipe.width, recipe.height) == (368, 176)
    assert len(set(recipe.references)) == 3
    assert (recipe.reference, recipe.mask, recipe.strength, job.inputs.reference) == (None, None, None, None)
    assert (recipe.model, recipe.revision, recipe.steps, recipe.prompt) == ("tiny-edit", "r9", 8, "as a woodcut")
    assert not any(file.exists() for file in job.inputs.references)

    reordered = {"mode": "edit", "reference": given[2], "more_references": given[:2], "width": 128}
    async with prepared(
        read_request({"prompt": "x", **reordered}, editing.names), editing, replace(ENGINE, model=EDITOR)
    ) as job:
        assert job.recipe.references == (recipe.references[2], recipe.references[0], recipe.references[1])
        assert (job.recipe.width, job.recipe.height) == (128, 256)


REFERENCE = "upload:00000000-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mode": "edit"}, "reference: is missing: the mode edit changes a picture, so give one"),
        ({"mode": "edit", "reference": REFERENCE, "mask": REFERENCE}, "mask: has no meaning in the mode edit"),
        ({"mode": "edit", "reference": REFERENCE, "strength": 0.5}, "strength: has no meaning in the mode edit"),
        ({"mode": "edit", "reference": REFERENCE, "steps": 61}, "steps: must be a whole number from 1 to 60"),
        (
            {"reference": REFERENCE, "more_references": [REFERENCE]},
            "more_references: cannot be used in the mode quality",
        ),
        ({"reference": REFERENCE, "more_references": [REFERENCE]}, "leave them out, or ask for the mode edit"),
        ({"mode": "edit", "reference": REFERENCE}, "reference: you have no upload:"),
    ],
)
async def test_what_an_edit_needs_and_what_it_does_not_take(
    editing: Sources, fields: dict[str, Any], says: str
) -> None:
    assert says in await complaint(editing, replace(ENGINE, model=EDITOR), **fields)


async def test_an_engine_that_makes_no_edits_says_so(editing: Sources) -> None:
    says = await complaint(editing, mode="edit", reference=REFERENCE)
    assert says.startswith("mode: edit cannot be used here: this engine makes no edits. Name the model")


@pytest.mark.parametrize(
    ("megapixels", "says"),
    [
        (
            2,
            "reference: 256 x 256 with its 3 references is 3211264 pixels, and cpu has memory for at most 2097152: "
            "give fewer of them, or use a worker with more memory",
        ),
        (
            3.03125,
            "height: 256 x 256 with its 3 references is 3211264 pixels, and cpu has memory for at most 3178496, such "
            "as 176 x 176: with width 256 it may be 128",
        ),
    ],
)
async def test_the_references_of_an_edit_need_memory_too(
    editing: Sources, storage: LocalStorage, megapixels: float, says: str
) -> None:
    engine = replace(ENGINE, model=EDITOR, limits=Limits(round(megapixels * 2**20)))
    first, *more = await three_uploads(storage)
    fields = {"mode": "edit", "reference": first, "more_references": more, "width": 256, "height": 256}
    with pytest.raises(BeyondLimits) as error:
        await settle(editing, engine, **fields)
    assert (str(error.value), error.value.pixels) == (says, 256 * 256 + 3 * 2**20)
    await settle(editing, replace(engine, limits=Limits(error.value.pixels)), **fields)


async def test_a_further_picture_that_is_wrong_is_named(editing: Sources, storage: LocalStorage) -> None:
    uploads = Uploads(storage, ReferenceSettings())
    good = str((await uploads.keep(encoded(gradient()), owner=None)).upload)
    narrow = str((await uploads.keep(encoded(gradient(330, 10)), owner=None)).upload)
    fields, engine = {"mode": "edit", "reference": good}, replace(ENGINE, model=EDITOR)
    says = await complaint(editing, engine, **fields, more_references=[REFERENCE])
    assert "more_references: you have no upload:" in says
    says = await complaint(editing, engine, **fields, more_references=[narrow])
    assert says == "more_references: may be at most 32 times as long as wide; it has 330 x 10 pixels"


def test_a_mode_for_edits_is_offered_where_they_can_be_made(editing: Sources, caplog: pytest.LogCaptureFixture) -> None:
    quantised = replace(EDITOR, checkpoints={"base": "base.safetensors"})
    assert [editing.usable_modes(model) for model in (MODEL, EDITOR, quantised)] == [
        ("quality", "lightning"),
        ("quality", "lightning", "edit"),
        ("quality", "lightning"),  # the checkpoint for all else was not made for edits
    ]
    with caplog.at_level("WARNING"):
        editing.check_modes(EDITOR)
        assert caplog.messages == []
        editing.check_modes(MODEL)
    assert "The mode edit is not offered: this engine makes no edits. Name the model" in caplog.text
