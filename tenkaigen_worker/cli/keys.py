"""``tenkaigen keys``: keys for programs that call the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tenkaigen_worker.access import Scope
from tenkaigen_worker.cli.context import load_settings, opened, run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime
    from typing import TypeVar

    from tenkaigen_worker.access import ApiKey
    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.database.api_keys import ApiKeys

    T = TypeVar("T")


@click.group()
def keys() -> None:
    """Make, list and revoke keys for programs that call the API.

    They count where api.auth has api_keys in it.

    \b
    Example:
      tenkaigen keys create back-office --scope submit --scope read
      tenkaigen keys list
      tenkaigen keys revoke back-office
    """


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it may do; may be given more than once. admin is everything, with everybody's jobs.",
)
@click.option("--days", type=click.IntRange(1, 36_500), help="How long it counts. Without it: until it is revoked.")
@click.pass_context
def create(ctx: click.Context, name: str, scopes: Sequence[str], days: int | None) -> None:
    """Make a key and print it. It is shown this once: the database keeps no more than its digest.

    \b
    Example:
      tenkaigen keys create back-office --scope submit --scope read --days 365
    """
    if not (name.isprintable() and name.strip() == name and 1 <= len(name) <= 100):
        raise click.BadParameter("should be 1 to 100 visible characters", param_hint="NAME")
    key = _ask(ctx, lambda table: table.create(name, [Scope(scope) for scope in scopes], days=days))
    click.echo(key)
    click.echo("Keep it now: it cannot be shown again. Send it as: Authorization: Bearer tkg_...", err=True)


@keys.command(name="list")
@click.pass_context
def list_keys(ctx: click.Context) -> None:
    """List all keys, also those that count no more. Nothing of them can be read here.

    \b
    Example:
      tenkaigen keys list
    """
    _print(_ask(ctx, lambda table: table.all()))


@keys.command()
@click.argument("name")
@click.pass_context
def revoke(ctx: click.Context, name: str) -> None:
    """Have a key count no more. Running APIs know it within seconds.

    \b
    Example:
      tenkaigen keys revoke back-office
    """
    if not _ask(ctx, lambda table: table.revoke(name)):
        raise click.ClickException(f"there is no key {name!r} that counts; tenkaigen keys list names them all")
    click.echo(f"Revoked {name}.")


def _ask(ctx: click.Context, question: Callable[[ApiKeys], Awaitable[T]]) -> T:
    return run(_asked(load_settings(ctx).settings, question))


async def _asked(settings: Settings, question: Callable[[ApiKeys], Awaitable[T]]) -> T:
    from tenkaigen_worker.database.api_keys import ApiKeys

    async with opened(settings, "tenkaigen keys") as pool:
        return await question(ApiKeys(pool))


def _print(found: Sequence[ApiKey]) -> None:
    from datetime import UTC, datetime

    from tenkaigen_worker.cli.plugins import print_table

    if not found:
        click.echo("There are no keys. Make one: tenkaigen keys create NAME --scope submit")
        return
    now = datetime.now(UTC)
    rows = [
        (
            key.name,
            ", ".join(scope for scope in Scope if scope in key.scopes),
            _day(key.created_at),
            _day(key.last_used_at),
            _until(key, now),
        )
        for key in found
    ]
    print_table(("name", "scopes", "made", "last used", "counts until"), rows)


def _day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d}" if moment else "never"


def _until(key: ApiKey, now: datetime) -> str:
    if key.revoked_at:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is None:
        return "it is revoked"
    return f"{'' if key.counts(now) else 'ended '}{_day(key.expires_at)}"
