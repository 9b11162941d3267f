"""What the routes answer, and the OpenAPI document, which also describes the bodies that are read by hand."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from pipeline.web import bodies, inputs


class FoundCandidate(BaseModel):
    """One result."""

    id: str
    score: float = Field(description="cosine of query and candidate")
    text: str | None
    image: str | None = Field(description="read it at /image/{image}")
    modality: str
    metadata: dict[str, Any] | None = Field(None, description="the other columns of a corpus of your own")


class AskedQuery(BaseModel):
    """The query as it was asked of the model."""

    text: str | None
    image: str | None
    modality: str
    want: str | None
    instruction: str | None


class SearchAnswer(BaseModel):
    """The results, best first."""

    results: list[FoundCandidate]
    query: AskedQuery
    index: str
    model: str


class Vector(BaseModel):
    """One embedding."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbedAnswer(BaseModel):
    """Embeddings in the order of the inputs."""

    object: str = "list"
    data: list[Vector]
    model: str
    usage: Usage


class About(BaseModel):
    """What is served."""

    index: str
    rows: int
    modalities: dict[str, int]
    candidates: str = Field(description="whose vectors the index holds, the student's or the teacher's")
    models: dict[str, dict[str, int]]
    examples: list[FoundCandidate]


class Model(BaseModel):
    """One name of a model."""

    id: str
    object: str = "model"
    created: int = Field(description="seconds since 1970 when the server started")
    owned_by: str


class Models(BaseModel):
    """The names that may be asked."""

    object: str = "list"
    data: list[Model]


class Health(BaseModel):
    """That it works."""

    status: str = "ok"


class Problem(BaseModel):
    """What is wrong, in one line."""

    message: str
    type: str


class Refusal(BaseModel):
    """Any answer that is not 200."""

    error: Problem


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its documentation."""
    return {status: {"model": Refusal} for status in (401, 421, *statuses)}


ASKING = refusals(400, 403, 408, 413, 415, 503)


def search_bodies(models: Iterable[str]) -> dict[str, Any]:
    """/search's two kinds of body, for OpenAPI."""
    schema = with_models(bodies.SearchBody.model_json_schema(), models)
    file = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP or GIF"}
    form = {**schema, "properties": {**schema["properties"], "image": file}}
    content = {bodies.JSON: {"schema": schema}, bodies.FORM: {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def embed_bodies() -> dict[str, Any]:
    """/embed's body, for OpenAPI."""
    reference = {"$ref": "#/components/schemas/EmbedBody"}
    return {"requestBody": {"required": True, "content": {bodies.JSON: {"schema": reference}}}}


def with_models(schema: dict[str, Any], models: Iterable[str]) -> dict[str, Any]:
    """A body's schema that names the models of this server."""
    schema["properties"]["model"]["enum"] = list(models)
    return schema


def describe(app: FastAPI, models: Iterable[str]) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that are read by hand."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schema = inputs.EmbedBody.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        schemas |= schema.pop("$defs")
        schemas["EmbedBody"] = with_models(schema, models)
        bearer = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"token": bearer}
        document["security"] = [{}, {"token": []}]
        app.openapi_schema = document
    return app.openapi_schema
