"""``tenkaigen doctor``: is everything here that a worker needs, and if not, what to do."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import click

from tenkaigen_worker.cli.context import load_settings, run
from tenkaigen_worker.errors import EngineError, TenkaigenError

if TYPE_CHECKING:
    import asyncpg

    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.config_engine import EngineSettings
    from tenkaigen_worker.database.pooler import Pooler
    from tenkaigen_worker.engine.inspection import Inspection
    from tenkaigen_worker.engine.machine import Machine

PYTHON_NEEDED = (3, 11)
# Room for pictures and a model's files before things break, in bytes.
DISK_NEEDED = 5 * 1024**3

# How long a notification may take to come back, in seconds.
LISTEN_SECONDS = 5.0

# Those that the server keeps for its superuser are not ours.
ROOM = "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
# One client for each session of its pool, whose size is 15 unless the project has another.
SUPABASE_POOLER = ".pooler.supabase.com"
SUPABASE_SESSIONS = 15


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``remedy`` says what to do; it is empty when nothing needs doing."""

    subject: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return not self.remedy


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check this machine, the database, storage and plugins: each is ok, or says what to do.

    Exits with 1 when something needs doing.

    \b
    Example:
      tenkaigen doctor
      tenkaigen -c config/a10g.yaml doctor
    """
    settings = load_settings(ctx).settings
    findings = run(_examine(settings, quiet=as_json))
    if as_json:
        click.echo(json.dumps([{**asdict(finding), "ok": finding.ok} for finding in findings], indent=2))
    ctx.exit(0 if all(finding.ok for finding in findings) else 1)


async def _examine(settings: Settings, *, quiet: bool) -> list[Finding]:
    findings = []
    for examine in (_python, _engine, _database, _sign_in, _storage, _plugins, _disk):
        async for finding in examine(settings):
            findings.append(finding)
            if not quiet:
                _show(finding)
    return findings


def _show(finding: Finding) -> None:
    mark = click.style("ok  ", fg="green") if finding.ok else click.style("no  ", fg="red", bold=True)
    click.echo(f"{mark}{finding.subject:<12}{finding.found}")
    if finding.remedy:
        click.echo(textwrap.indent(finding.remedy, " " * 16))


async def _python(_: Settings) -> AsyncIterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    needed = ".".join(map(str, PYTHON_NEEDED))
    yield Finding("Python", version, "" if sys.version_info >= PYTHON_NEEDED else f"Use Python {needed} or newer.")


async def _engine(settings: Settings) -> AsyncIterator[Finding]:
    """What the engine would find here, looked at in a process of its own: torch is never loaded into this one."""
    from tenkaigen_worker.engine.inspection import inspect

    try:
        found = await inspect(settings.engine)
    except EngineError as error:
        yield Finding("Machine", "not known", str(error))
        return
    for finding in (*_machine(found.machine, settings.engine), *_nunchaku(found, settings.engine)):
        yield finding
    for problem in found.files:
        yield Finding(problem.subject, problem.found, problem.remedy)


def _machine(machine: Machine, engine: EngineSettings) -> Iterator[Finding]:
    from tenkaigen_worker.engine.plan import gib

    yield Finding("Memory", f"{gib(machine.host_available_bytes)} of {gib(machine.host_bytes)} free")
    versions = f"{machine.torch}, CUDA {machine.cuda or 'none'}; diffusers {machine.diffusers or 'not installed'}"
    remedy = 'Install it: pip install "tenkaigen-worker[inference]"; docs/setup.md names the right torch build.'
    if machine.torch is None or machine.torch_fault:
        cause = machine.torch_fault or "it is not installed"
        yield Finding("torch", f"cannot be imported: {cause}", remedy if engine.backend != "blank" else "")
        return
    yield Finding("torch", versions)

    gpus = ", ".join(f"{gpu.name} ({gib(gpu.total_bytes)}, sm_{gpu.sm})" for gpu in machine.gpus)
    # What nunchaku needs is told below.
    needs_gpu = engine.backend == "auto" or (engine.backend != "nunchaku" and engine.device.startswith("cuda"))
    remedy = (
        "Install an NVIDIA driver and a CUDA build of torch. Without a GPU set engine.backend to tiny for the "
        "demonstration model, or to diffusers, with engine.device: auto, for real pictures (slow)."
    )
    yield Finding("GPU", gpus or "none that torch can use", remedy if needs_gpu and not gpus else "")


def _nunchaku(found: Inspection, engine: EngineSettings) -> Iterator[Finding]:
    """What is missing for the backend ``nunchaku``, and what would go where; ``auto`` takes it where nothing is."""
    from tenkaigen_worker.engine.plan import make_plan
    from tenkaigen_worker.engine.readiness import INT4, loader, missing

    if engine.backend not in ("nunchaku", "auto"):
        return
    machine = found.machine
    problems = missing("nunchaku", machine, engine, found.sizes)
    if engine.backend == "auto":
        for problem in problems[:1]:
            yield Finding("nunchaku", f"not chosen by engine.backend: auto; {problem.subject}: {problem.found}")
    else:
        for problem in problems:
            yield Finding(problem.subject, problem.found, problem.remedy)
    if not problems:
        package = loader(machine, engine)
        version = machine.nunchaku if package == "nunchaku" else machine.nunchaku_lite
        yield Finding("nunchaku", f"{package} {version}; bitsandbytes {machine.bitsandbytes or 'not installed'}")
    gpu = machine.gpu(engine.device)
    if gpu and gpu.sm in INT4 and (engine.backend == "nunchaku" or not problems):
        for line in make_plan(engine, machine, found.sizes).lines():
            yield Finding("Plan", line)


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    from tenkaigen_worker.database.connect import look_for_pooler, open_pool, resolve_dsn
    from tenkaigen_worker.database.migrate import check_schema
    from tenkaigen_worker.database.row_security import users_are_apart

    subject = "Postgres"
    try:
        async with (
            resolve_dsn(settings.database, settings.state_dir) as dsn,
            await open_pool(settings.database, dsn, "tenkaigen doctor") as pool,
        ):
            version = await pool.fetchval("SHOW server_version")
            pooler = await look_for_pooler(settings.database, dsn)
            yield Finding(subject, f"{version}, through {pooler.value}")
            yield await _tls(settings, dsn, pool)
            subject = "Job table"
            await check_schema(pool)
            yield Finding(subject, "as this program needs it")
            subject = "Users"
            apart = await users_are_apart(pool)
            if apart is not None:
                yield _users(apart)
            if not settings.api.asks_nobody:
                yield await _as_a_user(pool)
            yield await _connections(settings, dsn, pool, pooler)
            yield await _listen(settings, dsn, pool)
    except TenkaigenError as error:
        yield Finding(subject, "not usable", str(error))


def _users(apart: bool) -> Finding:
    if apart:
        return Finding("Users", "row-level security lets each see their own jobs")
    return Finding(
        "Users",
        "nothing keeps them apart: this became a database of Supabase after it was migrated",
        "Run: DELETE FROM tenkaigen_migrations WHERE version IN (25, 26, 28); and then: tenkaigen migrate",
    )


async def _as_a_user(pool: asyncpg.Pool) -> Finding:
    """Whether the API could ask for a job on somebody's behalf; it is asked for one that nobody has."""
    from tenkaigen_worker.database.submissions import Submissions
    from tenkaigen_worker.jobs import Asker

    nobody = UUID(int=0)
    try:
        await Submissions(pool).get(nobody, Asker(nobody))
    except TenkaigenError as error:
        remedy = "Let the API log in as the owner, or as a member of tenkaigen_worker, which may become authenticated."
        return Finding("Users", f"the API cannot act for them: {error}", remedy)
    return Finding("Users", "the API can act for them")


async def _sign_in(settings: Settings) -> AsyncIterator[Finding]:
    """The keys by which the API checks whose tokens it gets."""
    from tenkaigen_worker.api.key_set import KeysUnavailable, fetch_keys, issuer_of, keys_url

    supabase = settings.api.supabase
    if "supabase" not in settings.api.auth or supabase.url is None:
        return
    url = keys_url(issuer_of(supabase.url))
    try:
        keys = await fetch_keys(url)
    except KeysUnavailable as error:
        remedy = "Check api.supabase.url, and that this machine reaches it: without keys no user is let in."
        yield Finding("Sign-in", f"no keys at {url}: {error}", remedy)
        return
    if keys:
        yield Finding("Sign-in", f"{len(keys)} key{'s' * (len(keys) > 1)} at {url}")
    elif supabase.jwt_secret:
        yield Finding("Sign-in", "by api.supabase.jwt_secret; the project has no public keys")
    else:
        remedy = (
            "Move the project to asymmetric JWT signing keys in its settings, or put its JWT secret into "
            "TENKAIGEN_API__SUPABASE__JWT_SECRET."
        )
        yield Finding("Sign-in", f"no user can be let in: there are no public keys for signatures at {url}", remedy)


async def _tls(settings: Settings, dsn: str, pool: asyncpg.Pool) -> Finding:
    """What our own end of the connection has; a pooler's way to the server is another one."""
    from tenkaigen_worker.database.address import parse_address
    from tenkaigen_worker.database.tls import check_way, is_local, mode_of, negotiated, server_side

    address = parse_address(dsn)
    async with pool.acquire() as connection:
        ours, servers = negotiated(connection), await server_side(connection)
    where = "to this machine" if is_local(address) else "over the network"
    found = f"{ours}, sslmode={mode_of(address)}" if ours else f"plaintext, {where}"
    if ours != servers:
        found += f"; from the pooler to the server {servers or 'plaintext'}"
    remedy = check_way(address, allow_plaintext=True)
    return Finding("TLS", found, remedy or "")


async def _connections(settings: Settings, dsn: str, pool: asyncpg.Pool, pooler: Pooler) -> Finding:
    """How many connections an API and the live workers want, and whether there is room for so many."""
    from tenkaigen_worker.database.address import parse_address
    from tenkaigen_worker.database.pooler import Pooler
    from tenkaigen_worker.database.workers import PostgresWorkers

    size = settings.database.pool_size
    workers = max(1, len(await PostgresWorkers(pool).live()))
    listeners = workers if settings.database.listen_url is None else 0
    wanted = size + workers * size + listeners
    found = f"one API and {workers} worker{'s' * (workers > 1)} hold up to {wanted}"
    if pooler is Pooler.NONE:
        room = await pool.fetchval(ROOM)
        of_whom = "the server lets in"
    elif pooler is Pooler.SESSION and parse_address(dsn).host.endswith(SUPABASE_POOLER):
        room = SUPABASE_SESSIONS
        of_whom = "Supabase's session pooler lets in about"
    else:
        return Finding("Connections", found)
    remedy = "Lower database.pool_size (2 is enough), or go through a pooler in transaction mode."
    return Finding("Connections", f"{found}; {of_whom} {room}", remedy if wanted > room else "")


async def _listen(settings: Settings, dsn: str, pool: asyncpg.Pool) -> Finding:
    from tenkaigen_worker.database.wakeups import Wakeups

    wakeups = Wakeups(settings.database, dsn, pool, on_jobs=lambda: None, on_cancel=lambda job_id: None)
    async with wakeups:
        try:
            await asyncio.wait_for(wakeups.wait_proven(), LISTEN_SECONDS)
        except TimeoutError:
            found = f"nothing arrives; jobs are found by polling, every {settings.worker.poll_seconds:g} s"
            return Finding("LISTEN", found, "Name a direct way in database.listen_url for quicker starts.")
    return Finding("LISTEN", "a notification made the round trip")


async def _storage(settings: Settings) -> AsyncIterator[Finding]:
    from tenkaigen_worker.storage.factory import open_storage

    try:
        async with open_storage(settings) as storage:
            yield Finding("Storage", await storage.check())
    except TenkaigenError as error:
        yield Finding("Storage", "not usable", str(error))


async def _plugins(settings: Settings) -> AsyncIterator[Finding]:
    from tenkaigen_worker.plugin.manager import Plugins

    plugins = Plugins.load(settings.plugins.model_copy(update={"strict": False}))
    offers = {"styles": plugins.styles, "templates": plugins.templates, "LoRAs": plugins.loras.names}
    counts = ", ".join(f"{kind}: {len(names)}" for kind, names in offers.items())
    yield Finding("Plugins", f"{len(plugins.describe())} loaded; {counts}")
    for problem in plugins.problems:
        yield Finding("Plugins", "one is left out", str(problem))


async def _disk(settings: Settings) -> AsyncIterator[Finding]:
    place = settings.state_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    remedy = f"Make room: less than {DISK_NEEDED / 1024**3:.0f} GiB is left." if free < DISK_NEEDED else ""
    yield Finding("Disk", f"{free / 1024**3:.0f} GiB free at {place}", remedy)
