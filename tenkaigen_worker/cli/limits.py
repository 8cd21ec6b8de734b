"""``tenkaigen limits``: how much one user may ask for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import click

from tenkaigen_worker.cli.context import load_settings, opened, run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tenkaigen_worker.config import Settings
    from tenkaigen_worker.database.limits import Limits, PostgresLimits, Values

T = TypeVar("T")

NO_LIMIT = "none"
WORDS = {"queued": "jobs queued", "per_minute": "jobs a minute", "pictures_per_day": "pictures a day"}


def _limit(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | str | None:
    """Read a whole number from 1 on, or ``none``, which stays the word: ``None`` is not given."""
    from tenkaigen_worker.database.limits import LARGEST

    if text is None or text == NO_LIMIT:
        return text
    if not (len(text) <= 10 and text.isascii() and text.isdecimal() and 1 <= int(text) <= LARGEST):
        raise click.BadParameter(f"{text[:40]!r} is no limit: write a whole number from 1 to {LARGEST}, or none")
    return int(text)


user_option = click.option("--user", type=click.UUID, metavar="UUID", help="The user_id of one user.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def limits(ctx: click.Context, as_json: bool) -> None:
    """Show and set how much one user may ask for, by SQL and by HTTP alike.

    Jobs without a user have no limits.

    \b
    Example:
      tenkaigen limits
      tenkaigen limits set --queued 20 --per-minute 5 --pictures-per-day 100
      tenkaigen limits set --user 6f1c2a9e-6d0c-4c8e-9a53-0c9b7e1f2d44 --queued none
      tenkaigen limits show --user 6f1c2a9e-6d0c-4c8e-9a53-0c9b7e1f2d44
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(show, user=None, as_json=as_json)


@limits.command(short_help="Show the limits, or how far one user has come.")
@user_option
@json_option
@click.pass_context
def show(ctx: click.Context, user: UUID | None, as_json: bool) -> None:
    """Show all limits; with --user those of one user, and how far they have come.

    \b
    Example:
      tenkaigen limits show
      tenkaigen limits show --user 6f1c2a9e-6d0c-4c8e-9a53-0c9b7e1f2d44
    """
    settings = load_settings(ctx).settings
    if user is None:
        _show_all(run(_with(settings, lambda table: table.read())), as_json)
        return

    async def look(table: PostgresLimits) -> tuple[Limits, Mapping[str, int]]:
        return await table.read(), await table.usage(user)

    _show_user(user, *run(_with(settings, look)), as_json=as_json)


@limits.command("set", short_help="Set or lift limits.")
@click.option("--queued", callback=_limit, metavar="N|none", help="Jobs of one user that are queued at once.")
@click.option("--per-minute", callback=_limit, metavar="N|none", help="Jobs that one user queues within 60 seconds.")
@click.option(
    "--pictures-per-day",
    callback=_limit,
    metavar="N|none",
    help="Pictures that one user asks for within 24 hours; failed and canceled jobs do not count.",
)
@user_option
@click.pass_context
def set_(ctx: click.Context, /, user: UUID | None, **given: int | str | None) -> None:
    """Set limits of everybody, or with --user of one user; none lifts one. What is not named stays as it is.

    They hold from the next job on. Jobs that are queued already stay.

    \b
    Example:
      tenkaigen limits set --queued 20 --per-minute 5 --pictures-per-day 100
      tenkaigen limits set --pictures-per-day none
      tenkaigen limits set --user 6f1c2a9e-6d0c-4c8e-9a53-0c9b7e1f2d44 --queued 500
    """
    values = {name: None if value == NO_LIMIT else int(value) for name, value in given.items() if value is not None}
    if not values:
        raise click.UsageError("name what to set: --queued, --per-minute or --pictures-per-day")

    async def change(table: PostgresLimits) -> Values:
        await table.set(values, user)
        now = await table.read()
        return now.everybody if user is None else now.of(user)

    now = run(_with(load_settings(ctx).settings, change))
    said = ", ".join(f"{WORDS[name]}: {_number(value)}" for name, value in now.items())
    click.echo(f"{'everybody' if user is None else f'user {user}'}: {said}")


@limits.command(short_help="Take a user's own limits away.")
@click.option("--user", type=click.UUID, metavar="UUID", required=True, help="The user_id of one user.")
@click.pass_context
def remove(ctx: click.Context, user: UUID) -> None:
    """Take a user's own limits away: those of everybody hold for them again.

    \b
    Example:
      tenkaigen limits remove --user 6f1c2a9e-6d0c-4c8e-9a53-0c9b7e1f2d44
    """
    had_some = run(_with(load_settings(ctx).settings, lambda table: table.remove(user)))
    click.echo(f"user {user} {'now has' if had_some else 'had no limits of their own, and has'} those of everybody")


async def _with(settings: Settings, do: Callable[[PostgresLimits], Awaitable[T]]) -> T:
    from tenkaigen_worker.database.limits import PostgresLimits

    async with opened(settings, "tenkaigen limits") as pool:
        return await do(PostgresLimits(pool))


def _show_all(found: Limits, as_json: bool) -> None:
    if as_json:
        users = {str(user): values for user, values in found.users.items()}
        seconds = found.fair_spacing.total_seconds()
        click.echo(
            json.dumps({"everybody": found.everybody, "users": users, "fair_spacing_seconds": seconds}, indent=2)
        )
        return

    from tenkaigen_worker.cli.plugins import print_table

    rows = [("everybody", *map(_number, found.everybody.values()))]
    for user, own in found.users.items():
        rows.append((str(user), *(_number(own[name]) if name in own else "" for name in WORDS)))
    print_table(("who", *WORDS.values()), rows)
    click.echo(f"Jobs of one user stand {found.fair_spacing} apart for each picture (fair_spacing).")


def _show_user(user: UUID, found: Limits, used: Mapping[str, int], *, as_json: bool) -> None:
    own = found.users.get(user, {})
    limits_now = found.of(user)
    if as_json:
        body = {name: {"used": used[name], "limit": limits_now[name], "own": name in own} for name in WORDS}
        click.echo(json.dumps({"user": str(user), **body}, indent=2))
        return
    for name, words in WORDS.items():
        limit = limits_now[name]
        of_what = ", no limit" if limit is None else f" of {limit}"
        click.echo(f"{words:<16}{used[name]}{of_what}{' (their own)' if name in own else ''}")


def _number(limit: int | None) -> str:
    return NO_LIMIT if limit is None else str(limit)
