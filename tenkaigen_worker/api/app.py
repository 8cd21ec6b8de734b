"""The application, put together from its parts. It holds no state of its own."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler

from tenkaigen_worker.access import Scope
from tenkaigen_worker.api import files, routes, uploads
from tenkaigen_worker.api.callers import CALLER, CALLERS, Callers
from tenkaigen_worker.api.errors import answer_errors, finish_headers
from tenkaigen_worker.api.hosts import AllowedHosts, check_hosts
from tenkaigen_worker.api.origins import Origins, answer_preflight
from tenkaigen_worker.api.parts import ASKS_NOBODY, PARTS, Parts
from tenkaigen_worker.config_api import ApiSettings


@dataclass(frozen=True, slots=True)
class Route:
    """One route, and what its callers must be allowed to do; ``None`` lets everybody in."""

    method: str
    path: str
    handler: Handler
    needs: Scope | None
    name: str | None = None


ROUTES = (
    Route("GET", "/", routes.get_index, None),
    Route("GET", "/healthz", routes.get_healthz, None),
    Route("GET", "/readyz", routes.get_readyz, None),
    Route("GET", "/api/styles", routes.get_styles, None),
    Route("GET", "/api/offer", routes.get_offer, None),
    Route("POST", "/api/generate", routes.post_generate, Scope.SUBMIT),
    Route("GET", "/api/generate/status/{job_id:[^/]+}", routes.get_status, Scope.READ, "status"),
    Route("POST", "/api/generate/{job_id:[^/]+}/cancel", routes.post_cancel, Scope.SUBMIT),
    Route("POST", "/api/generate/{job_id:[^/]+}/retry", routes.post_retry, Scope.SUBMIT),
    Route("POST", "/api/uploads", uploads.post_upload, Scope.SUBMIT),
    # Who asks for the files of a private bucket is asked there.
    Route("GET", "/files/{key:.+}", files.get_file, None),
)


def make_app(parts: Parts, settings: ApiSettings) -> web.Application:
    """Build the application; raises nothing and connects to nothing."""
    origins = Origins.of(settings)
    app = web.Application(
        middlewares=[answer_errors, check_hosts(AllowedHosts.of(settings), origins), answer_preflight(origins)],
        client_max_size=settings.max_body_bytes,
    )
    app[PARTS] = parts
    app[ASKS_NOBODY] = settings.asks_nobody
    app.on_response_prepare.append(finish_headers)
    app.on_response_prepare.append(origins.add_headers)
    callers = app[CALLERS] = Callers(settings, origins, parts)
    for route in ROUTES:
        handler = route.handler if route.needs is None else _for_callers(route.handler, callers, route.needs)
        resource = app.router.add_resource(route.path, name=route.name)
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            resource.add_route(method, handler)
    return app


def _for_callers(handler: Handler, callers: Callers, needs: Scope) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        request[CALLER] = await callers.identify(request, needs)
        return await handler(request)

    return handle
