"""``tenkaigen demo``: rows inserted by plain SQL, for pictures from words, then for what can be made of the first."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tenkaigen_worker.cli.signals import cancel_on_stop
from tenkaigen_worker.errors import TenkaigenError
from tenkaigen_worker.jobs import Status

if TYPE_CHECKING:
    import asyncpg

    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.jobs import JobView

# What each picture is called on the sheet, and the statement that asks for it.
FROM_WORDS = {
    "Anime": "INSERT INTO generation_jobs (prompt, style) VALUES ('A castle', 'Anime')",
    "Watercolor": "INSERT INTO generation_jobs (prompt, style) VALUES ('A penguin', 'Watercolor')",
    "Line Art": "INSERT INTO generation_jobs (prompt, style) VALUES ('A rocket', 'Line Art')",
}

# Each beside the first picture, so that one sees what it changes. {seed}, {picture} and {mask} are filled in.
FROM_THE_FIRST = {
    "the first, with a LoRA": (
        "INSERT INTO generation_jobs (prompt, style, seed, loras) "
        "VALUES ('A castle', 'Anime', {seed}, '[\"Neon Sign\"]')"
    ),
    "drawn from the first": (
        "INSERT INTO generation_jobs (prompt, style, reference, strength) "
        "VALUES ('A castle', 'Watercolor', '{picture}', 0.7)"
    ),
    "its right half drawn anew": (
        "INSERT INTO generation_jobs (prompt, style, reference, mask) "
        "VALUES ('A dragon', 'Anime', '{picture}', '{mask}')"
    ),
}

SIDE = 256  # of each picture on the sheet, in pixels

FAREWELL = (
    "This is the real Qwen-Image pipeline around a demonstration model that comes with the program: small, trained on "
    "the pictures of Noto Emoji, for about a hundred words such as cat, dragon and rocket, and for the shipped styles. "
    "From words that it does not know it draws something arbitrary. For pictures of anything, on a machine with a GPU, "
    "set engine.backend to diffusers and engine.model to Qwen/Qwen-Image: docs/setup.md."
)


@click.command()
@click.pass_context
def demo(ctx: click.Context) -> None:
    """Make six pictures: start everything, insert rows by plain SQL, follow them, end everything.

    Three are made from words alone; then the first again with a LoRA, one in another style from the first, and the
    first with a half drawn anew. All six are side by side in ./.tenkaigen/demo.png. Whatever the configuration says,
    it uses a database of its own, the shipped plugins and the demonstration model. All that it leaves is in
    ./.tenkaigen.

    \b
    Example:
      tenkaigen demo
    """
    try:
        asyncio.run(_demo())
    except asyncio.CancelledError:
        click.echo("Stopped; everything is shut down.", err=True)
        ctx.exit(130)


async def _demo() -> None:
    from tenkaigen_worker.cli.stack import running_stack
    from tenkaigen_worker.config import load

    cancel_on_stop()
    # Nothing of what is configured here may lead a demonstration to somebody's real database.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TENKAIGEN_")}
    loaded = load(_configuration(), environ)
    logs = loaded.settings.state_dir / "logs"
    click.echo(f"Starting PostgreSQL, the API and a worker; their logs are in {logs}")
    async with running_stack(loaded, environ, log_dir=logs) as stack:
        jobs = await _insert_and_follow(stack.dsn, loaded.settings)
    click.echo()
    pictures = {name: await _show(job, loaded.settings) for name, job in jobs.items()}
    click.echo(f"\nAll six, side by side: {_sheet(pictures, loaded.settings)}\n{FAREWELL}")


def _configuration() -> Path:
    """Write the demonstration's configuration: the defaults, the demonstration model, and ports that nobody uses."""
    from tenkaigen_worker.config import Settings

    api_port, health_port = _free_ports(2)
    folder = Settings().state_dir
    settings = {
        "engine": {"backend": "tiny"},
        "api": {"port": api_port},
        "worker": {"health_port": health_port},
        "plugins": {"paths": []},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "demo.yaml"
    file.write_text(json.dumps(settings, indent=2), encoding="utf-8")  # JSON is YAML
    return file


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


async def _insert_and_follow(dsn: str, settings: Settings) -> dict[str, JobView]:
    from tenkaigen_worker.config import DatabaseSettings
    from tenkaigen_worker.database.connect import open_pool

    async with await open_pool(DatabaseSettings(), dsn, "tenkaigen demo") as pool:
        jobs = await _follow(pool, FROM_WORDS)
        first = next(iter(jobs.values()))
        known = {
            "seed": first.outputs[0].seed,
            "picture": f"job:{first.id}/0",
            "mask": await _half_mask(first, settings),
        }
        more = {name: statement.format(**known) for name, statement in FROM_THE_FIRST.items()}
        return jobs | await _follow(pool, more)


async def _follow(pool: asyncpg.Pool, statements: Mapping[str, str]) -> dict[str, JobView]:
    """Run named statements that insert a job each, and answer the completed jobs by these names."""
    from rich.console import Console

    from tenkaigen_worker.cli.follow import follow
    from tenkaigen_worker.database.submissions import Submissions

    submissions = Submissions(pool)
    jobs, names = [], {}
    for name, statement in statements.items():
        click.echo(f"  {statement};")
        job = await submissions.get(await pool.fetchval(f"{statement} RETURNING id"))
        assert job is not None  # noqa: S101 - it was inserted a moment ago
        jobs.append(job)
        names[job.id] = name
    finished = {}
    async for job in follow(jobs, submissions.get, Console()):
        click.echo(f"  {names[job.id]} ({job.prompt}): {job.status}")
        if job.status is not Status.COMPLETED:
            raise TenkaigenError(f"Job {job.id} {job.status}: {job.error_message}")
        finished[job.id] = job
    return {name: finished[id_] for id_, name in names.items()}


async def _half_mask(job: JobView, settings: Settings) -> str:
    """Upload a mask that has a job's picture drawn anew in its right half."""
    from PIL import Image

    from tenkaigen_worker.references.uploads import Uploads, encode
    from tenkaigen_worker.storage.factory import open_storage

    width, height = job.outputs[0].width, job.outputs[0].height
    mask = Image.new("L", (width, height), "black")
    mask.paste(255, (width // 2, 0, width, height))
    async with open_storage(settings) as storage:
        kept = await Uploads(storage, settings.references).keep(encode(mask), owner=None)
    return str(kept.upload)


async def _show(job: JobView, settings: Settings) -> Path:
    from tenkaigen_worker.images import read_recipe
    from tenkaigen_worker.storage.factory import open_storage

    async with open_storage(settings) as storage:
        path = await storage.find(job.outputs[0].key)
    if path is None:
        raise TenkaigenError(f"The picture of job {job.id} is not where it was stored: {job.outputs[0].url}")
    made = read_recipe(path)
    click.echo(path)
    recipe = made.recipe
    extras = [f"the LoRA {lora.name}" for lora in recipe.loras]
    if recipe.reference:
        extras.append(f"{'a part drawn anew' if recipe.mask else 'from a picture'}, strength {recipe.strength:g}")
    about = ", ".join([recipe.style, f"seed {made.seed}", f"{recipe.steps} steps", *extras])
    click.echo(f"  {about}: {recipe.prompt}")
    return path


def _sheet(pictures: Mapping[str, Path], settings: Settings) -> Path:
    from PIL import Image

    from tenkaigen_worker.cli.sheet import save_sheet

    file = settings.state_dir / "demo.png"
    images = [(name, Image.open(path)) for name, path in pictures.items()]
    save_sheet(file, images, side=SIDE, columns=3)
    return file.absolute()
