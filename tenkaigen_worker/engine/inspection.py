"""Looks at this machine, and at which of a model's files are here, in a process of its own: a parent imports no torch.

``python -m tenkaigen_worker.engine.inspection`` reads the engine's settings as JSON from its input, and prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass

from tenkaigen_worker.config_engine import EngineSettings
from tenkaigen_worker.engine.machine import Machine, Problem, inspect_here
from tenkaigen_worker.engine.plan import Sizes, published
from tenkaigen_worker.engine.readiness import missing
from tenkaigen_worker.errors import Code, EngineError

MODULE = "tenkaigen_worker.engine.inspection"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found: the machine, the sizes of the model's files, as far as they are here, and which are not."""

    machine: Machine
    sizes: Sizes
    files: tuple[Problem, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> Inspection:
        """What the process printed."""
        said = json.loads(text)
        files = tuple(Problem(**problem) for problem in said["files"])
        return cls(Machine.from_json(said["machine"]), Sizes(**said["sizes"]), files)


async def inspect(settings: EngineSettings) -> Inspection:
    """Start the process and wait for what it finds. Raises ``EngineError`` with its last words."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", MODULE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    answer, complaint = await process.communicate(settings.model_dump_json().encode())
    if process.returncode != 0:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["no answer"]
        raise EngineError(Code.ENGINE_FAILED, f"this machine could not be looked at: {last[0]}")
    # Libraries may print while they are imported; the answer is what comes last.
    return Inspection.from_json(answer.decode().strip().splitlines()[-1])


def look_here(settings: EngineSettings) -> Inspection:
    """Look at this machine; what is missing where ``auto`` takes ``nunchaku`` is what that one lacks. Imports torch."""
    machine, sizes = inspect_here(settings.device), find_sizes(settings)
    if settings.backend == "auto" and sizes.measured and not missing("nunchaku", machine, settings, sizes):
        settings = settings.model_copy(update={"backend": "nunchaku"})
    return Inspection(machine, sizes, tuple(find_missing(settings)))


def find_sizes(settings: EngineSettings) -> Sizes:
    """The sizes of the files that a ``nunchaku`` backend loads: as they are here, or as published where one is not."""
    try:
        from tenkaigen_worker.engine.weights import find_checkpoint, find_weights

        folder = find_weights(settings, download=False, alive=_nothing, without=("transformer",)).folder
        files = [find_checkpoint(one, download=False, alive=_nothing) for one in settings.checkpoints.values()]
    except (EngineError, ImportError, OSError):
        return published(settings)
    return Sizes.of(files, folder)


def find_missing(settings: EngineSettings) -> list[Problem]:
    """What of the model's files is not here, or cannot be read; what is here is not compared with its checksum."""
    try:
        from tenkaigen_worker.engine.inventory import look
        from tenkaigen_worker.engine.needs import needed
    except ImportError:
        return []  # without these libraries there is more to say than this
    problems = []
    for source in needed(settings):
        found = look(source)
        if found.complete:
            continue
        extent = "complete" if found.path else "here"
        remedy = "tenkaigen models pull" if source.on_hub else "Put it there, or name one on the hub"
        problems.append(Problem("Model", found.problem or f"{source.setting}: {source.name} is not {extent}", remedy))
    return problems


def _nothing() -> None:
    """What is looked for here is not waited for."""


if __name__ == "__main__":
    asked = EngineSettings.model_validate_json(sys.stdin.read())
    print(json.dumps(asdict(look_here(asked))))
