"""One worker per GPU."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tenkaigen_worker.engine.lock import lock_device
from tenkaigen_worker.errors import EngineError


def lock(folder: Path, owner: int, uid: str = "gpu-1") -> int:
    return lock_device(uid, name="cuda:0 (NVIDIA A10G)", owner=owner, folder=folder)


def test_a_second_worker_is_told_who_has_the_gpu(tmp_path: Path) -> None:
    first = lock(tmp_path, 4711)

    with pytest.raises(EngineError, match=r"cuda:0 \(NVIDIA A10G\) is in use by another worker, process 4711"):
        lock(tmp_path, 4712)
    os.close(first)


def test_the_next_worker_may_have_it(tmp_path: Path) -> None:
    os.close(lock(tmp_path, 1_000_000))

    second = lock(tmp_path, 7)
    with pytest.raises(EngineError, match="process 7;"):
        lock(tmp_path, 8)
    os.close(second)


def test_another_gpu_is_another_lock(tmp_path: Path) -> None:
    first, second = lock(tmp_path, 1), lock(tmp_path, 2, "gpu-2")

    os.close(first)
    os.close(second)


def test_other_users_can_take_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        os.close(lock(tmp_path, 1))
    finally:
        os.umask(before)

    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o666


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "tenkaigen-gpu-1.lock").symlink_to(victim)

    with pytest.raises(EngineError, match="cannot be opened"):
        lock(tmp_path, 1)
    assert victim.read_text() == "precious"
