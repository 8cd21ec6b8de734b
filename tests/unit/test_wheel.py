"""What travels in the wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tenkaigen_worker.resources import DEMO_MODEL, shipped

ROOT = Path(__file__).parents[2]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_the_demonstration_model_and_the_shipped_folders_are_in_it_whole(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    package = tmp_path / "tenkaigen_worker"
    assert {"model_index.json", "transformer/config.json"} < files(DEMO_MODEL)
    assert files(package / "demo_model") == files(DEMO_MODEL)
    for folder in ("config", "migrations", "plugins"):
        assert files(package / "shipped" / folder) == files(shipped(folder))
