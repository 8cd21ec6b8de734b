"""A tour of what people get wrong: each ends in a message that names the culprit and what would be right.

Wrong HTTP requests have a tour of their own in ``tests/unit/test_api_http.py``.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import asyncpg
import pytest

from tests.scenarios.program import Start

CONFIG = "TENKAIGEN_DATABASE__URL"


async def complaint(start: Start, *arguments: str, **environ: str) -> str:
    """Run a command that must fail, and answer what it said: never a traceback, and no more than a screen."""
    program = await start(*arguments, **environ)
    assert await program.wait() in (1, 2)
    await program.close()
    said = "".join(program.raw)
    assert "Traceback" not in said
    assert len(said.splitlines()) < 25, said
    return said


WRONG_SUBMISSIONS = {
    "empty prompt": (["  "], ["prompt"]),
    "prompt too long": (["x" * 4001], ["prompt", "4000"]),
    "unknown style": (["A fox", "--style", "Anima"], ["style", "Anime"]),
    "unknown mode": (["A fox", "--mode", "qualty"], ["mode", "quality"]),
    "size off the grid": (["A fox", "--width", "1000"], ["width", "16", "992", "1008"]),
    "size out of bounds": (["A fox", "--height", "8192"], ["height", "4096"]),
    "seed is no number": (["A fox", "--seed", "abc"], ["seed", "abc"]),
    "seed too big": (["A fox", "--seed", "4294967296"], ["seed", "4294967295"]),
    "too many pictures": (["A fox", "--count", "9"], ["count", "8"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG_SUBMISSIONS.values(), ids=WRONG_SUBMISSIONS.keys())
async def test_wrong_submission(arguments: list[str], words: list[str], start: Start, pool: asyncpg.Pool) -> None:
    said = await complaint(start, "submit", *arguments)
    assert all(word in said for word in words), said
    assert await pool.fetchval("SELECT count(*) FROM generation_jobs") == 0


@pytest.mark.parametrize("command", ["status", "cancel"])
async def test_wrong_job_id(command: str, start: Start) -> None:
    assert "not-an-id" in await complaint(start, command, "not-an-id")
    nobody = "00000000-0000-4000-8000-000000000000"
    assert nobody in await complaint(start, command, nobody)


@pytest.mark.parametrize("command", ["worker", "api", "stats", "up"])
async def test_unreachable_database(command: str, start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said = await complaint(start, command, **{CONFIG: f"postgresql://shop:secret@127.0.0.1:{port}/shop"})
    assert f"port {port}" in said
    assert "secret" not in said


async def test_a_database_without_our_tables(start: Start, server: str) -> None:
    assert "tenkaigen migrate" in await complaint(start, "worker", **{CONFIG: server})


async def test_unreadable_configuration(start: Start, tmp_path: Path) -> None:
    (tmp_path / "worker.yaml").write_text("worker:\n  lease_secondz: 60\napi: [\n")
    assert "worker.yaml:4" in await complaint(start, "worker")

    (tmp_path / "worker.yaml").write_text("worker:\n  lease_secondz: 60\n")
    said = await complaint(start, "worker")
    assert "worker.yaml:2" in said
    assert "worker.lease_seconds" in said


async def test_a_default_mode_without_its_lora(start: Start, tmp_path: Path) -> None:
    (tmp_path / "worker.yaml").write_text("generation: {modes: {quality: {steps: 9, guidance_scale: 1, lora: Warp}}}")
    said = await complaint(start, "worker")
    assert "generation.default_mode is quality" in said
    assert "no LoRA Warp" in said


@pytest.mark.parametrize(("command", "setting"), [("api", "API__PORT"), ("worker", "WORKER__HEALTH_PORT")])
async def test_port_in_use(command: str, setting: str, start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = await complaint(start, command, **{f"TENKAIGEN_{setting}": port})
    assert port in said
    assert setting.lower().replace("__", ".") in said


async def test_a_broken_plugin_is_named_and_stops_nobody(start: Start, pool: asyncpg.Pool, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "broken.py").write_text("import json\n\nraise RuntimeError('not today')\n")
    worker = await start("worker")
    problem = await worker.until("plugin_problem")
    assert "broken.py:3" in problem["message"]
    assert "not today" in problem["message"]

    await pool.execute("INSERT INTO generation_jobs (prompt, style) VALUES ('A phoenix rising', 'Anime')")
    await worker.until("job_completed")
    assert "broken.py:3" in await complaint(start, "plugins")


async def test_a_backend_that_cannot_load_says_what_to_do(start: Start, tmp_path: Path) -> None:
    missing = str(tmp_path / "qwen")
    said = await complaint(start, "worker", TENKAIGEN_ENGINE__BACKEND="diffusers", TENKAIGEN_ENGINE__MODEL=missing)
    assert "qwen" in said


WRONG_ROWS: Mapping[str, tuple[str, str, str]] = {
    "blank prompt": ("prompt", "'  '", "generation_jobs_prompt_not_blank"),
    "long prompt": ("prompt", "repeat('x', 4001)", "generation_jobs_prompt_at_most_4000_characters"),
    "width off the grid": ("width", "1000", "generation_jobs_width_multiple_of_16"),
    "height out of bounds": ("height", "8192", "generation_jobs_height_64_to_4096"),
    "negative seed": ("seed", "-1", "generation_jobs_seed_0_to_4294967295"),
    "status of their own": ("status", "'pending'", "generation_jobs_status_known"),
}


@pytest.mark.parametrize(("column", "value", "constraint"), WRONG_ROWS.values(), ids=WRONG_ROWS.keys())
async def test_a_row_that_sql_can_refuse(column: str, value: str, constraint: str, pool: asyncpg.Pool) -> None:
    columns, values = (column, value) if column == "prompt" else (f"prompt, {column}", f"'A fox', {value}")
    with pytest.raises(asyncpg.CheckViolationError) as refusal:
        await pool.execute(f"INSERT INTO generation_jobs ({columns}) VALUES ({values})")
    assert refusal.value.constraint_name == constraint


async def test_rows_that_only_the_worker_can_refuse_fail_and_stop_nobody(start: Start, pool: asyncpg.Pool) -> None:
    worker = await start("worker")
    await worker.until("worker_ready")
    await pool.execute(
        """
        INSERT INTO generation_jobs (prompt, style, mode, width, height, reference) VALUES
            ('style', 'Anima', NULL, NULL, NULL, NULL),
            ('mode', 'Anime', 'qualty', NULL, NULL, NULL),
            ('pixels', 'Anime', NULL, 4096, 4096, NULL),
            ('reference', 'Anime', NULL, NULL, NULL, 'https://example.com/a.png'),
            ('?!', 'Anime', NULL, NULL, NULL, NULL),
            ('fine', 'Anime', NULL, NULL, NULL, NULL)
        """
    )
    await worker.until("job_completed")
    await worker.until("job_failed", times=5)

    rows = {row["prompt"]: row for row in await pool.fetch("SELECT * FROM generation_jobs")}
    assert rows.pop("fine")["status"] == "completed"
    assert {(row["status"], row["attempt"]) for row in rows.values()} == {("failed", 1)}
    codes = {prompt: row["error_code"] for prompt, row in rows.items()}
    assert codes == {
        "style": "invalid_request",
        "mode": "invalid_request",
        "pixels": "invalid_request",
        "reference": "invalid_request",
        "?!": "refused",
    }
    assert "Anime" in rows["style"]["error_message"]
    assert "quality" in rows["mode"]["error_message"]
    assert "pixels" in rows["pixels"]["error_message"]
    assert "references.allowed_hosts" in rows["reference"]["error_message"]
