"""The application: its endpoints, its errors, its page."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from varlora.serve.classify import classify_router
from varlora.serve.errors import RequestError, invalid
from varlora.serve.metrics import CONTENT_TYPE, ServerMetrics
from varlora.serve.middleware import AccessMiddleware, Traffic
from varlora.serve.openai_api import openai_router
from varlora.serve.served import Directory, Served
from varlora.serve.settings import ServeSettings
from varlora.serve.waiting import ClientGone
from varlora.serve.worker import QueueCapacity

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def build_app(
    served: Sequence[Served], room: QueueCapacity, metrics: ServerMetrics, settings: ServeSettings
) -> FastAPI:
    """The application of some models; their threads run while it does."""
    directory = Directory(served, int(time.time()))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for worker in directory.workers:
            worker.start()
        yield
        for worker in directory.workers:
            worker.close()

    app = FastAPI(title="varlora", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.include_router(classify_router(directory, room, settings, metrics))
    app.include_router(openai_router(directory, room, settings))
    _add_states(app, directory, metrics)
    _add_page(app)
    _add_errors(app)
    paths = [*PAGE, *app.openapi()["paths"]]
    app.state.traffic = Traffic()
    guard: Any = AccessMiddleware
    app.add_middleware(guard, settings=settings, metrics=metrics, traffic=app.state.traffic, paths=paths)
    return app


def _add_states(app: FastAPI, directory: Directory, metrics: ServerMetrics) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": directory.cards()}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return directory.card(name)

    @app.get("/healthz")
    async def healthz(request: Request) -> JSONResponse:
        dead = [worker.name for worker in directory.workers if not worker.is_alive]
        state = "stopping" if app.state.traffic.stopping else "broken" if dead else "ok"
        return JSONResponse({"status": state}, status_code=200 if state == "ok" else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})


def _add_page(app: FastAPI) -> None:
    folder = files("varlora.serve") / "page"
    for path, (name, kind) in PAGE.items():
        content = (folder / name).read_bytes()

        async def page(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers={"content-security-policy": POLICY})

        app.get(path, include_in_schema=False)(page)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers())

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await refused(request, _explained(error.errors()))

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> JSONResponse:
        known = {
            400: "the body cannot be read: it must be JSON in UTF-8, not nested deeply, without very long numbers.",
            404: f"there is no {request.url.path[:200]}; see /openapi.json.",
            405: "this path has other methods.",
        }
        return await refused(request, RequestError(error.status_code, known.get(error.status_code, str(error.detail))))

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return await refused(request, RequestError(500, "the server has failed; its log says why."))


def _explained(errors: Sequence[Mapping[str, Any]]) -> RequestError:
    """The first thing that is wrong with a body, and nothing of its content."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "json_invalid":
        return RequestError(400, f"the body is no JSON: {first['ctx']['error']} at {where}.", code="invalid_json")
    if first["type"] == "missing" and not where:
        return RequestError(400, "there is no body; send a JSON object.", code="no_body")
    if not where:
        return RequestError(400, f"the body: {first['msg']}.", code="invalid_value")
    return invalid(where[:200], f"{where[:200]}: {first['msg']}.", code="invalid_value")
