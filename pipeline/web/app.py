"""The HTTP interface: routes, in the order of what a person uses. `build_app` makes a fresh one around an engine.

OpenAPI is at /openapi.json. There is no documentation page: FastAPI's own loads scripts from elsewhere.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from importlib.resources import files

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipeline.web import bodies, embedding, inputs
from pipeline.web.batching import Busy
from pipeline.web.engine import Engine
from pipeline.web.guard import Access, Guard, busy, error
from pipeline.web.limits import RequestLimits
from pipeline.web.meters import Meters
from pipeline.web.schemas import (
    ASKING,
    About,
    EmbedAnswer,
    Health,
    Models,
    SearchAnswer,
    describe,
    embed_bodies,
    refusals,
    search_bodies,
)
from stages.contract.context import InputError, StageError

API_VERSION = "1"
FOREVER = "max-age=31536000, immutable"
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def build_app(engine: Engine, access: Access, limits: RequestLimits, meters: Meters) -> FastAPI:
    """The ASGI application around an engine that is made for the same limits and meters."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    app = FastAPI(
        title="Puma search",
        version=API_VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Guard, access=access, limits=limits, meters=meters)
    for kind in (HTTPException, InputError, StageError, Busy, TimeoutError):
        app.add_exception_handler(kind, answer_problem)
    add_model_routes(app, engine, limits)
    add_reading_routes(app, engine, meters)
    app.openapi = partial(describe, app, engine.names)  # type: ignore[method-assign]
    return app


async def answer_problem(request: Request, problem: Exception) -> Response:
    """One shape for whatever goes wrong."""
    if isinstance(problem, HTTPException):
        told = str(problem.detail)
        if told in (HTTPStatus.NOT_FOUND.phrase, HTTPStatus.METHOD_NOT_ALLOWED.phrase):  # of the router
            told = f"{told}: {request.method} {request.url.path[:80]} is not answered here; /openapi.json has what is"
        return error(problem.status_code, told, problem.headers)
    if isinstance(problem, Busy):
        return busy("the model has more to do than it can; come again in a second")
    if isinstance(problem, TimeoutError):
        return busy("no answer in time; come again in a second")
    return error(400 if isinstance(problem, InputError) else 500, str(problem))


def add_model_routes(app: FastAPI, engine: Engine, limits: RequestLimits) -> None:
    """What a model answers: searches and vectors."""

    @app.post("/search", response_model=SearchAnswer, responses=ASKING, openapi_extra=search_bodies(engine.names))
    async def search(request: Request) -> Response:
        """The nearest candidates to a text, a picture or both."""
        body, image = await bodies.read_search(request, limits)
        async with asyncio.timeout(limits.answer_seconds):
            query = await engine.ask(body.text, image, body.want, body.k, body.where)
            results = await engine.search(query, body.k, body.model)
        found = [result.to_json() for result in results]
        return JSONResponse({"results": found, "query": query.to_json(), "index": engine.index, "model": body.model})

    @app.post("/embed", response_model=EmbedAnswer, responses=ASKING, openapi_extra=embed_bodies())
    @app.post("/v1/embeddings", response_model=EmbedAnswer, responses=ASKING, openapi_extra=embed_bodies())
    async def embed(request: Request) -> Response:
        """Vectors in the shape of OpenAI's /v1/embeddings, also of pictures and of texts with pictures."""
        return await embedding.embed(request, await inputs.read_embed(request), engine, limits)


def add_reading_routes(app: FastAPI, engine: Engine, meters: Meters) -> None:
    """What is only read: pictures, facts, numbers, and the page."""

    @app.get(
        "/image/{image_id}",
        response_class=Response,
        responses={200: {"content": {"image/*": {}}, "description": "The picture"}, **refusals(404)},
    )
    async def image(image_id: str, request: Request) -> Response:
        """A picture of the index by the id that results name; ids are hashes of the content, so it never changes."""
        try:
            data, kind = await engine.picture(image_id)
        except KeyError:
            raise HTTPException(404, "the index shows no picture of this id") from None
        headers = {"cache-control": f"private, {FOREVER}", "etag": f'"{image_id}"'}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=f"image/{kind}", headers=headers)

    @app.get("/about", response_model=About, responses=refusals())
    async def about() -> Response:
        """What is served: the size of the index, the models, and some candidates to start from."""
        return JSONResponse(engine.about())

    started = int(time.time())

    @app.get("/v1/models", response_model=Models, responses=refusals())
    async def models() -> Response:
        """The names that `model` may have, in the shape of OpenAI's list."""
        facts = {"object": "model", "created": started, "owned_by": "puma"}
        return JSONResponse({"object": "list", "data": [{"id": name, **facts} for name in engine.names]})

    @app.get("/health", response_model=Health)
    async def health() -> Response:
        """Answers as soon as the model is loaded."""
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", response_class=Response, responses=refusals())
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, (name, kind) in PAGE.items():
        app.add_api_route(path, page(name, kind), methods=["GET"], include_in_schema=False)


def page(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    """A route that gives one file of the page."""
    content = (files("pipeline.web") / "page" / name).read_bytes()

    async def give() -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return give
