"""Who may import whom, and who never loads torch: docs/architecture.md draws the same picture."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tenkaigen_worker

PACKAGE = Path(tenkaigen_worker.__file__).parent

# From the ground up. A module may import from its own room and from rows below; rooms of one row are strangers, but
# for the rows of friends.
SETTINGS_AND_JOBS = {
    "access",
    "jobs",
    "settings_sources",
    "yaml_lines",
    "config_fields",
    "config_api",
    "config_engine",
    "config_generation",
    "config_storage",
    "config",
    "offers",
}
LAYERS = (
    {"errors", "resources", "redact", "names", "hosts"},
    SETTINGS_AND_JOBS,
    {"logs", "metrics"},
    {"plugin", "database", "storage"},
    {"recipe", "request", "request_rules", "images", "references", "loras"},
    {"engine"},
    {"maintenance", "testing"},
    {"worker", "api"},
    {"cli", "__main__"},
)
ROWS_OF_FRIENDS = (
    {"errors", "resources", "redact", "names", "hosts"},
    SETTINGS_AND_JOBS,
    {"recipe", "request", "request_rules", "images", "references", "loras"},
    {"cli", "__main__"},
)
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft", "nunchaku", "safetensors", "huggingface_hub"}
INSIDE_THE_ENGINE = {
    "adapters.py",
    "branches.py",
    "checkpoints.py",
    "devices.py",
    "edit.py",
    "faults.py",
    "hub.py",
    "int4.py",
    "int4_forward.py",
    "int4_transformer.py",
    "inventory.py",
    "latents.py",
    "layers.py",
    "loaders.py",
    "machine.py",
    "prompts.py",
    "pull.py",
    "qwen.py",
    "reference.py",
    "schedulers.py",
    "tiny.py",
    "weights.py",
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "shipped" not in path.parts)


def room_of(dotted: str) -> str:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> Iterator[str]:
    """Every absolute import of a file, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are written out in full"
            yield node.module or ""


def layer_of(room: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if room in rooms)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards_only(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imports(path):
        if not name.startswith("tenkaigen_worker."):
            continue
        room = room_of(name)
        friends = any({own, room} <= row for row in ROWS_OF_FRIENDS)
        assert room == own or friends or layer_of(room) < layer_of(own), f"{own} must not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_engines_child_imports_torch(path: Path) -> None:
    heavy = {name for name in imports(path) if name.split(".")[0] in HEAVY}
    if path.parent.name == "engine" and path.name in INSIDE_THE_ENGINE:
        return
    assert not heavy


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after running ``code``."""
    script = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_loads_neither_torch_nor_anything_slow() -> None:
    code = (
        "from click.testing import CliRunner; from tenkaigen_worker.cli import cli; CliRunner().invoke(cli, ['--help'])"
    )
    loaded = loaded_by(code)
    assert "click" in loaded
    assert not loaded & {*HEAVY, "asyncpg", "aiohttp", "pydantic", "PIL", "numpy", "rich"}


@pytest.mark.parametrize(
    "module",
    [
        "tenkaigen_worker.worker.worker",
        "tenkaigen_worker.api.app",
        "tenkaigen_worker.engine.host",
        "tenkaigen_worker.cli.doctor",
    ],
)
def test_the_workers_parent_and_the_api_never_load_torch(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert "tenkaigen_worker" in loaded
    assert not loaded & HEAVY
