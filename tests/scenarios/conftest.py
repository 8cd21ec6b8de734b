"""What the stories start from: commands of the program as real processes, on a database of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.scenarios.program import Program, Start

# Quick leases, so that a story about a lost worker does not take a minute.
DEFAULTS: Mapping[str, str] = {
    "TENKAIGEN_ENGINE__BACKEND": "blank",
    "TENKAIGEN_LOG__FORMAT": "json",
    "TENKAIGEN_WORKER__LEASE_SECONDS": "2",
    "TENKAIGEN_WORKER__HEARTBEAT_SECONDS": "0.5",
    "TENKAIGEN_WORKER__RESCUE_SECONDS": "0.2",
    "TENKAIGEN_WORKER__HEALTH_PORT": "0",
    "TENKAIGEN_API__PORT": "0",
    "TENKAIGEN_STORAGE__LOCAL__PUBLIC_URL": "http://127.0.0.1/files",
}


def clean_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TENKAIGEN_")}


@pytest.fixture
async def start(tmp_path: Path, database: str) -> AsyncIterator[Start]:
    """Give a function that starts a command on this test's database; settings are given as environment."""
    async with AsyncExitStack() as stack:

        async def start(*arguments: str, **environ: str) -> Program:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tenkaigen_worker", *arguments),
                cwd=tmp_path,
                env={**clean_environ(), **DEFAULTS, "TENKAIGEN_DATABASE__URL": database, **environ},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            program = Program(process)
            stack.push_async_callback(program.close)
            return program

        yield start
