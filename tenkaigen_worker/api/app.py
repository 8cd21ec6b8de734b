"""The application, put together from its parts. It holds no state of its own."""

from __future__ import annotations

from aiohttp import web

from tenkaigen_worker.api import files, routes, uploads
from tenkaigen_worker.api.errors import answer_errors, finish_headers
from tenkaigen_worker.api.hosts import AllowedHosts, check_hosts
from tenkaigen_worker.api.parts import PARTS, Parts
from tenkaigen_worker.config import ApiSettings


def make_app(parts: Parts, settings: ApiSettings) -> web.Application:
    """Build the application; raises nothing and connects to nothing."""
    app = web.Application(
        middlewares=[answer_errors, check_hosts(AllowedHosts.of(settings))], client_max_size=settings.max_body_bytes
    )
    app[PARTS] = parts
    app.on_response_prepare.append(finish_headers)
    app.router.add_get("/", routes.get_index)
    app.router.add_get("/healthz", routes.get_healthz)
    app.router.add_get("/readyz", routes.get_readyz)
    app.router.add_get("/api/styles", routes.get_styles)
    app.router.add_get("/api/offer", routes.get_offer)
    app.router.add_post("/api/generate", routes.post_generate)
    app.router.add_get("/api/generate/status/{job_id:[^/]+}", routes.get_status, name="status")
    app.router.add_post("/api/generate/{job_id:[^/]+}/cancel", routes.post_cancel)
    app.router.add_post("/api/generate/{job_id:[^/]+}/retry", routes.post_retry)
    app.router.add_post("/api/uploads", uploads.post_upload)
    app.router.add_get("/files/{key:.+}", files.get_file)
    return app
