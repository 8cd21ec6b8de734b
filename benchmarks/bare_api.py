"""The least that does what the API does: one insert, one select. Run by ``api.py``: ``bare_api.py DSN``.

No checks, no limits, no errors in words.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import asyncpg
from aiohttp import web

CONNECTIONS = 4
POOL: web.AppKey[Any] = web.AppKey("pool")

INSERT = """
INSERT INTO generation_jobs (prompt, style, width, height, seed) VALUES ($1, $2, $3, $4, $5) RETURNING id, status
"""
SELECT = """
SELECT id, status, progress, stage, result_url, outputs, error_code, error_message, prompt, style, width, height, seed,
    attempt, max_attempts, cancel_requested_at, retry_of, created_at, started_at, completed_at, processing_time_ms
FROM generation_jobs WHERE id = $1
"""


async def submit(request: web.Request) -> web.Response:
    """Queue a job."""
    body = await request.json()
    values = [body[name] for name in ("prompt", "style", "width", "height", "seed")]
    row = await request.app[POOL].fetchrow(INSERT, *values)
    return web.json_response({"jobId": str(row["id"]), "status": row["status"]}, status=202)


async def status(request: web.Request) -> web.Response:
    """Answer for one."""
    row = await request.app[POOL].fetchrow(SELECT, request.match_info["job_id"])
    body = {**row, "outputs": json.loads(row["outputs"])}
    return web.json_response(body, dumps=lambda value: json.dumps(value, default=str))


async def serve(dsn: str) -> None:
    """Serve until standard input closes."""
    # asyncpg's own reset is one more round trip, which our pool does not make either.
    async with asyncpg.create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, reset=_leave_as_is) as pool:
        app = web.Application()
        app[POOL] = pool
        app.router.add_post("/api/generate", submit)
        app.router.add_get("/api/generate/status/{job_id}", status)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        print(json.dumps({"action": "api_started", "url": f"http://{host}:{port}"}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()


async def _leave_as_is(_: Any) -> None: ...


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
