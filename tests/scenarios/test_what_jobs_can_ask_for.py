"""Rows that ask for LoRAs, templates, modes, variations and pictures from pictures, on the demonstration model.

One worker makes them all; what is wrong with some of them is said before any GPU time, and the others are made.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from PIL import Image, ImageChops

from tenkaigen_worker.config import ReferenceSettings
from tenkaigen_worker.images import read_recipe
from tenkaigen_worker.recipe import Recipe
from tenkaigen_worker.references.given import Upload
from tenkaigen_worker.references.uploads import Uploads, upload_key
from tenkaigen_worker.storage.local import LocalStorage
from tests.loras import DEMO, make_lora
from tests.scenarios.program import Program, Start
from tests.scenarios.rows import until_final
from tests.unit.lora_bytes import lora_bytes
from tests.unit.pictures import bomb, encoded, gradient

SIDE = 64
SOMEBODY = UUID("00000000-0000-4000-8000-00000000beef")


def register(folder: Path, name: str, data: bytes, **said: Any) -> str:
    """Put a LoRA's file and its YAML, which JSON is, into a folder; answers the SHA-256."""
    place = folder / "loras" / name.replace(" ", "_")
    place.parent.mkdir(parents=True, exist_ok=True)
    file = place.with_suffix(".safetensors")
    file.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    lora = {"name": name, "source": file.name, "sha256": digest, "base_model": "tiny", "commercial_use": True}
    place.with_suffix(".yaml").write_text(json.dumps(lora | said))
    return digest


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / ".tenkaigen" / "files", "http://127.0.0.1/files")


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    (folder / "templates").mkdir(parents=True)
    (folder / "templates" / "tote.yaml").write_text(
        "name: Tote\nvariables: {animal: null}\nprompt: a {animal} on a bag\n"
    )
    return folder


async def insert(pool: asyncpg.Pool, **columns: Any) -> UUID:
    """Queue one small job with these columns."""
    row = {"prompt": "A dragon", "width": SIDE, "height": SIDE, "steps": 2, "seed": 7, **columns}
    row = {name: value for name, value in row.items() if value is not None}
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    query = f"INSERT INTO generation_jobs ({', '.join(row)}) VALUES ({places}) RETURNING id"
    return await pool.fetchval(query, *row.values())


async def made(pool: asyncpg.Pool, job_id: UUID) -> asyncpg.Record:
    row = await until_final(pool, job_id)
    assert row["status"] == "completed", row["error_message"]
    return row


def picture(storage: LocalStorage, row: asyncpg.Record, index: int = 0) -> Image.Image:
    """A picture of a job; its recipe is the row's."""
    path = storage.root / row["outputs"][index]["key"]
    assert read_recipe(path).recipe == Recipe.from_json(row["recipe"])
    return Image.open(path).convert("RGB")


@pytest.fixture
async def worker(start: Start, plugins: Path) -> Program:
    return await start("worker", TENKAIGEN_ENGINE__BACKEND="tiny", TENKAIGEN_ENGINE__THREADS="1")


async def test_all_that_a_row_can_ask_for(
    worker: Program, pool: asyncpg.Pool, storage: LocalStorage, plugins: Path, tmp_path: Path
) -> None:
    demo = tmp_path / "demo.safetensors"
    make_lora(demo, sizes=DEMO)
    digest = register(plugins, "Weave", demo.read_bytes(), aliases=["Loomland"], trigger_words=["woven"])
    await worker.until("worker_ready")

    # A LoRA changes the picture, and the next job does not see it.
    plain = picture(storage, await made(pool, await insert(pool)))
    row = await made(pool, await insert(pool, loras=[{"name": "weave", "weight": 0.5}]))
    assert row["recipe"]["loras"] == [{"name": "Weave", "sha256": digest, "weight": 0.5}]
    assert row["recipe"]["prompt"] == "woven, A dragon"
    assert picture(storage, row) != plain
    row = await made(
        pool,
        await insert(pool, prompt=None, franchise="loomland", template="tote", template_variables={"animal": "fox"}),
    )
    assert (row["recipe"]["loras"][0]["weight"], row["recipe"]["prompt"]) == (1.0, "woven, a fox on a bag")
    first = await insert(pool)
    assert picture(storage, await made(pool, first)) == plain

    # A template needs no prompt; a mode has its own steps and scheduler; variations have seeds of their own.
    columns = {"prompt": None, "template": "TOTE", "template_variables": {"animal": "cat"}, "style": "auto"}
    row = await made(pool, await insert(pool, **columns, mode="lightning", steps=None, count=2))
    assert (row["recipe"]["prompt"], row["recipe"]["style"]) == ("a cat on a bag", "Standard")
    assert (row["recipe"]["mode"], row["recipe"]["steps"], row["recipe"]["scheduler"]) == ("lightning", 4, "lightning")
    assert [output["seed"] for output in row["outputs"]] == [7, 8]
    assert picture(storage, row) != picture(storage, row, 1)

    # From a picture of an earlier job, and a part of an uploaded one drawn anew.
    row = await made(
        pool, await insert(pool, prompt="A fox", reference=f"job:{first}/0", strength=0.5, width=None, height=None)
    )
    assert (row["width"], row["height"], row["recipe"]["strength"]) == (SIDE, SIDE, 0.5)
    uploads = Uploads(storage, ReferenceSettings())
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (SIDE // 2, 0, SIDE, SIDE))
    references = {
        "reference": str((await uploads.keep(encoded(plain), owner=None)).upload),
        "mask": str((await uploads.keep(encoded(mask), owner=None)).upload),
    }
    row = await made(pool, await insert(pool, prompt="A moon", **references))
    box = ImageChops.difference(picture(storage, row), plain).getbbox()
    assert box is not None
    assert box[0] >= SIDE // 2  # what is black in the mask is kept
    assert row["recipe"]["mask"]


async def test_a_style_of_this_moment_beside_a_broken_one(start: Start, pool: asyncpg.Pool, plugins: Path) -> None:
    worker = await start("worker")  # no pixel counts here: the blank backend is quicker
    await worker.until("worker_ready")
    (plugins / "broken.yaml").write_text("name: Broken\nprompt: no place for words\n")
    (plugins / "quick.yaml").write_text("name: Quick\nmode: lightning-8\nwidth: 64\nheight: 80\n")
    row = await made(pool, await insert(pool, style="quick", width=None, height=None, steps=None))
    assert (row["width"], row["height"], row["recipe"]["mode"]) == (64, 80, "lightning-8")
    problem = await worker.until("plugin_problem")
    assert (problem["file"], problem["line"]) == (str(Path("plugins/broken.yaml")), 2)


async def test_what_is_wrong_costs_no_gpu_time(
    worker: Program, pool: asyncpg.Pool, storage: LocalStorage, plugins: Path
) -> None:
    fits = lora_bytes()
    register(plugins, "Flux", fits, base_model="Flux")
    register(plugins, "Pickle", pickle.dumps({"a": 1}))
    register(plugins, "Short", fits[:-8])
    register(plugins, "Changed", fits, sha256="0" * 64)
    register(plugins, "Lokr", lora_bytes(words=("lokr_w1", "lokr_w2")))
    register(plugins, "Wide", lora_bytes(into=3072, out=3072))
    register(plugins, "Unknown", fits, commercial_use=None)
    uploads = Uploads(storage, ReferenceSettings())
    mine = str((await uploads.keep(encoded(gradient(SIDE, SIDE)), owner=None)).upload)
    small = str((await uploads.keep(encoded(gradient(32, 32, "L")), owner=None)).upload)
    theirs = str((await uploads.keep(encoded(gradient()), owner=SOMEBODY)).upload)
    put = {"text": b"hello", "huge": bomb(30_000, 30_000)}
    raw = {name: Upload(UUID(int=number)) for number, name in enumerate(put, 1)}
    for name, upload in raw.items():
        await storage.put(upload_key(upload, None), put[name], content_type="image/png")

    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "another model's LoRA": ({"loras": ["Flux"]}, "made for Flux"),
        "a pickle": ({"loras": ["Pickle"]}, "the LoRA Pickle cannot be used"),
        "a cut file": ({"loras": ["Short"]}, "the LoRA Short cannot be used"),
        "a wrong checksum": ({"loras": ["Changed"]}, "SHA-256"),
        "a format that nobody knows": ({"loras": ["Lokr"]}, "the LoRA Lokr cannot be used"),
        "other sizes": ({"loras": ["Wide"]}, "Wide"),
        "a licence that nobody knows": ({"loras": ["Unknown"]}, "commercial use is not known"),
        "an unknown LoRA": ({"loras": ["Flax"]}, "loras: there is no LoRA 'Flax'; did you mean Flux?"),
        "an unknown franchise": ({"franchise": "Atlantis"}, "franchise: there is no LoRA 'Atlantis'"),
        "too strong": ({"loras": [{"name": "Flux", "weight": 40}]}, "loras: must be a number from -4 to 4"),
        "no list": ({"loras": [[1]]}, "loras: "),
        "another size": ({"reference": mine, "mask": small}, "mask: must have the size of the reference"),
        "a mask alone": ({"mask": mine}, "mask: needs a picture to start from"),
        "no picture": ({"reference": str(raw["text"])}, "reference: "),
        "a bomb": ({"reference": str(raw["huge"])}, "pixels"),
        "somebody else's": ({"reference": theirs}, "reference: you have no upload"),
        "no strength": ({"reference": mine, "strength": 0.0}, "strength: must be a number above 0"),
        "an unknown mode": ({"mode": "lightening"}, "mode: there is no mode 'lightening'; did you mean lightning?"),
        "beyond its mode": ({"mode": "lightning", "steps": 50}, "steps: must be a whole number from 1 to 8"),
        "an unknown template": ({"template": "tot"}, "template: there is no template 'tot'; did you mean Tote?"),
        "an unknown variable": (
            {"prompt": None, "template": "tote", "template_variables": {"animl": "fox"}},
            "no variable 'animl'; did you mean animal?",
        ),
        "words too many": ({"template": "tote", "template_variables": {"animal": "fox"}}, "prompt: the template Tote"),
    }
    await worker.until("worker_ready")
    jobs = {name: await insert(pool, **columns) for name, (columns, _) in wrong.items()}
    fine = await insert(pool)
    await made(pool, fine)
    for name, job_id in jobs.items():
        row = await until_final(pool, job_id)
        assert (row["status"], row["attempt"]) == ("failed", 1), name
        assert row["error_code"] in ("invalid_request", "lora_unusable"), name
        assert wrong[name][1] in row["error_message"], name
    at_engine = [line["job_id"] for line in worker.lines if line.get("action") == "job_generating"]
    # Which layers the demonstration model has, its engine alone knows; it looks before it draws.
    assert set(at_engine) == {str(fine), str(jobs["other sizes"])}
