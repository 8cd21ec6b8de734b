"""``tenkaigen submit``, ``status`` and ``cancel``: jobs from the command line, straight into the table."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from uuid import UUID

import click

from tenkaigen_worker.cli.context import load_settings, opened, run
from tenkaigen_worker.cli.options import request_options
from tenkaigen_worker.cli.pictures import GivenFile, files_among, keep_files, placed

if TYPE_CHECKING:
    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.database.submissions import Submissions
    from tenkaigen_worker.jobs import JobView
    from tenkaigen_worker.request import Request
    from tenkaigen_worker.storage.base import Storage

APPLICATION = "tenkaigen jobs"


def read_job_id(_ctx: click.Context, _parameter: click.Parameter, text: str) -> UUID:
    """Read a job's id; anything else is answered in one line."""
    try:
        return UUID(text)
    except ValueError:
        raise click.ClickException(
            f"{text[:100]!r} is not a job's id; one looks like 3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11"
        ) from None


@click.command()
@click.argument("prompt", required=False)
@click.option("--file", type=click.File(encoding="utf-8"), help="A prompt per line; - is standard input.")
@request_options
@click.option("--wait", is_flag=True, help="Show progress, and end when all are done.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Wait, and save pictures here."
)
@click.pass_context
def submit(
    ctx: click.Context, /, prompt: str | None, file: TextIO | None, wait: bool, output: Path | None, **fields: Any
) -> None:
    """Queue a prompt, or a file of prompts, and print the jobs' ids.

    In a file, empty lines and lines that begin with # are skipped. With --wait it prints where the pictures are in
    place of the ids, and ends with exit status 1 when a job failed.

    \b
    Example:
      tenkaigen submit "A dragon" --style Anime --wait
      tenkaigen submit "A fox" --reference fox.jpg --strength 0.5
      tenkaigen submit "The fox in that coat" --mode edit --reference fox.jpg --reference coat.jpg
      tenkaigen submit "A fox" --template sticker --var mood=sleepy
      tenkaigen submit --file prompts.txt --style "Line Art" --output pictures
      echo "A castle" | tenkaigen submit --file -
    """
    prompts = _prompts(prompt, file, needed=not fields["template"])
    settings = load_settings(ctx).settings
    asked, files = files_among(fields)
    requests = _check(prompts, asked, settings)
    all_well = run(
        _submit(settings, requests, files, wait=wait or output is not None, output=output),
        if_stopped="No longer waiting. What is queued goes on; tenkaigen cancel JOB_ID ends a job.",
    )
    ctx.exit(0 if all_well else 1)


@click.command()
@click.argument("job_id", callback=read_job_id)
@click.option("--json", "as_json", is_flag=True, help="Print everything there is, as JSON.")
@click.pass_context
def status(ctx: click.Context, job_id: UUID, as_json: bool) -> None:
    """Show one job.

    \b
    Example:
      tenkaigen status 3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11
      tenkaigen status 3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11 --json
    """
    from tenkaigen_worker.api.views import job_body

    job = run(_ask(load_settings(ctx).settings, job_id, lambda submissions: submissions.get(job_id)))
    body = job_body(job)
    click.echo(json.dumps(body, indent=2, ensure_ascii=False) if as_json else _as_lines(body))


@click.command()
@click.argument("job_id", callback=read_job_id)
@click.pass_context
def cancel(ctx: click.Context, job_id: UUID) -> None:
    """Ask for a job to be canceled. A job that is finished stays as it is.

    \b
    Example:
      tenkaigen cancel 3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11
    """
    from tenkaigen_worker.jobs import FINAL

    job = run(_ask(load_settings(ctx).settings, job_id, lambda submissions: submissions.cancel(job_id)))
    click.echo(f"{job.id} {job.status}" if job.status in FINAL else f"{job.id} ends as soon as its worker hears of it")


def _prompts(prompt: str | None, file: TextIO | None, *, needed: bool) -> Sequence[tuple[str, str]]:
    """Each prompt, after the words that say where it stands."""
    if prompt is None and file is None and not needed:
        return [("", "")]
    if (prompt is None) == (file is None):
        raise click.UsageError("Give either a prompt or --file, such as: tenkaigen submit 'A dragon'")
    if file is None:
        return [("", prompt or "")]
    try:
        lines = [line.strip() for line in file]
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{file.name} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    prompts = [(f"{file.name}:{number}: ", line) for number, line in enumerate(lines, 1) if line and line[0] != "#"]
    if not prompts:
        raise click.ClickException(f"{file.name} holds no prompt; write one per line")
    return prompts


def _check(prompts: Sequence[tuple[str, str]], fields: Mapping[str, Any], settings: Settings) -> list[Request]:
    """Apply the rules to all of it before anything is queued."""
    from tenkaigen_worker.errors import InputError
    from tenkaigen_worker.plugin.manager import Plugins
    from tenkaigen_worker.request import Names, every_spelling, read_request

    plugins = Plugins.load(settings.plugins)
    names = Names(
        plugins.style_names,
        settings.generation.mode_names,
        every_spelling(plugins.loras.aliases),
        [template.name for template in plugins.templates],
    )
    requests, problems = [], []
    for where, prompt in prompts:
        try:
            requests.append(read_request({**fields, "prompt": prompt}, names))
        except InputError as error:
            problems += [f"{where}{problem}" for problem in error.problems] or [f"{where}{error}"]
    if problems:
        raise click.ClickException("\n  ".join(["Nothing was queued.", *problems]))
    return requests


async def _ask(
    settings: Settings, job_id: UUID, question: Callable[[Submissions], Awaitable[JobView | None]]
) -> JobView:
    from tenkaigen_worker.database.submissions import Submissions

    async with opened(settings, APPLICATION) as pool:
        job = await question(Submissions(pool))
    if job is None:
        raise click.ClickException(f"there is no job {job_id}")
    return job


async def _submit(
    settings: Settings, requests: Sequence[Request], files: Mapping[str, GivenFile], *, wait: bool, output: Path | None
) -> bool:
    from tenkaigen_worker.database.submissions import Submissions
    from tenkaigen_worker.references.uploads import Uploads
    from tenkaigen_worker.storage.factory import open_storage

    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(opened(settings, APPLICATION))
        kept: dict[str, str] = {}
        if files or wait:
            # Before anything is queued: its key may be missing.
            storage = await stack.enter_async_context(open_storage(settings))
            kept = await keep_files(files, Uploads(storage, settings.references))
        submissions = Submissions(pool)
        jobs = []
        for request in requests:
            job = await submissions.submit(placed(request.columns(), kept))
            jobs.append(job)
            if not wait:
                click.echo(job.id)
        return await _wait(storage, submissions, jobs, output) if wait else True


async def _wait(storage: Storage, submissions: Submissions, jobs: Sequence[JobView], output: Path | None) -> bool:
    """Follow the jobs to their end; answers whether all of them made their pictures."""
    from rich.console import Console

    from tenkaigen_worker.cli.follow import follow

    return all(
        [await _report(job, storage, output) async for job in follow(jobs, submissions.get, Console(stderr=True))]
    )


async def _report(job: JobView, storage: Storage, output: Path | None) -> bool:
    """Print where a job's pictures are, or why there are none; answers whether there are."""
    from tenkaigen_worker.cli.follow import fetch
    from tenkaigen_worker.errors import StorageError
    from tenkaigen_worker.jobs import Status

    if job.status is not Status.COMPLETED:
        click.echo(f"{job.id} {job.status}: {job.error_message or 'no reason was given'}", err=True)
        return False
    try:
        for place in await fetch(job, storage, output):
            click.echo(place)
    except StorageError as error:
        click.echo(f"{job.id} {job.status}, but {error}", err=True)
        return False
    return True


def _as_lines(body: Mapping[str, Any]) -> str:
    """One line per field that says something."""
    rows = {**body, "outputs": "\n".join(output["url"] for output in body["outputs"])}
    if body["outputs"]:
        del rows["result_url"]  # the first of them
    shown = {name: str(value) for name, value in rows.items() if value not in (None, "") and value is not False}
    return "\n".join(f"{name:<20}{value}".replace("\n", "\n" + " " * 20) for name, value in shown.items())
