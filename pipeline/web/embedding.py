"""Many inputs to many vectors in bounded memory: batch after batch, and the answer written piece by piece.

A request of more than a batch waits in a queue of its own, at most one batch at a time, so that it neither fills the
queue of short questions nor holds more decoded pictures than a batch has. How many such requests are under way is
bounded as well; the next one is told to come again.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse

from pipeline.web.engine import Engine
from pipeline.web.inputs import Asked, EmbedBody, read_picture
from pipeline.web.limits import RequestLimits
from stages.contract.context import InputError
from stages.model.rows import Row
from stages.search.precision import quantize

HUNG_UP = 499  # as nginx logs a client that did not wait; nobody reads it


async def embed(request: Request, body: EmbedBody, engine: Engine, limits: RequestLimits) -> StreamingResponse:
    """Vectors of the body's inputs, in OpenAI's shape. Raises InputError, HTTPException, Busy, TimeoutError."""
    model = await engine.ready(body.model)
    engine.check_side(model, body.is_query)
    dimensions = engine.leading(model, body.dimensions)
    coding = Coding(dimensions, body.kind, engine.ranges(model, body.kind, dimensions))
    work = Embedding(body, body.inputs(), model, coding, engine, limits)
    vectors, tokens = await work.run(request)
    return StreamingResponse(pieces(vectors, tokens, body, limits.batch), media_type="application/json")


@dataclass(frozen=True)
class Coding:
    """What a vector is answered as: its leading values, and the kind of numbers with the ranges that it needs."""

    dimensions: int
    kind: str
    ranges_2D: np.ndarray | None

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        """The numbers to answer."""
        shorter = shortened(vector, self.dimensions)
        return shorter if self.kind == "float" else quantize(shorter, self.kind, self.ranges_2D)


@dataclass(frozen=True)
class Embedding:
    """A request under way: its inputs, and what which model's vectors are answered as."""

    body: EmbedBody
    asked: list[Asked]
    model: str
    coding: Coding
    engine: Engine
    limits: RequestLimits

    @property
    def is_bulk(self) -> bool:
        """Whether there is more than a batch."""
        return len(self.asked) > self.limits.batch

    async def run(self, request: Request) -> tuple[list[np.ndarray], int]:
        """All vectors, and how many tokens were read. Raises HTTPException where the client hung up meanwhile."""
        vectors: list[np.ndarray] = []
        tokens = 0
        with self.engine.bulk.entered(1) if self.is_bulk else nullcontext():
            for start in range(0, len(self.asked), self.limits.batch):
                if start and await request.is_disconnected():
                    raise HTTPException(HUNG_UP, "the client hung up")
                async with asyncio.timeout(self.limits.answer_seconds):
                    found, read = await self.batch(range(start, min(start + self.limits.batch, len(self.asked))))
                vectors, tokens = vectors + found, tokens + read
        return vectors, tokens

    async def batch(self, places: range) -> tuple[list[np.ndarray], int]:
        """The vectors of some inputs, and their tokens."""
        rows = [await self.row(place) for place in places]
        vectors = await self.engine.embed(rows, self.model, self.is_bulk)
        return [self.coding(vector) for vector in vectors], await self.engine.tokens(rows)

    async def row(self, place: int) -> Row:
        """What the model reads for an input. Raises InputError and HTTPException, which name it among several."""
        text, sent, told = self.asked[place]
        with placed(f"input {place}: " if len(self.asked) > 1 else ""):
            picture = None if sent is None else read_picture(sent, self.limits)
            return await self.engine.row(text, picture, self.body.is_query, self.body.want, told)


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Puts `where` before the words of what is raised inside."""
    try:
        yield
    except HTTPException as error:
        raise HTTPException(error.status_code, f"{where}{error.detail}") from None
    except InputError as error:
        raise InputError(f"{where}{error}") from None


def shortened(vector: np.ndarray, dimensions: int) -> np.ndarray:
    """The leading values, at unit length again; a vector that has no more is given as it is."""
    if dimensions == len(vector):
        return vector
    leading = vector[:dimensions]
    return leading / max(float(np.linalg.norm(leading)), 1e-12)


async def pieces(vectors: list[np.ndarray], tokens: int, body: EmbedBody, batch: int) -> AsyncIterator[str]:
    """The JSON of an answer, some vectors at a time: as numbers they take ten times the room of what they are."""
    yield '{"object": "list", "data": ['
    for start in range(0, len(vectors), batch):
        some = [
            json.dumps({"object": "embedding", "index": place, "embedding": encode(vectors[place], body)})
            for place in range(start, min(start + batch, len(vectors)))
        ]
        yield (", " if start else "") + ", ".join(some)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    yield f'], "model": {json.dumps(body.model or "student")}, "usage": {json.dumps(usage)}}}'


def encode(vector: np.ndarray, body: EmbedBody) -> list[float] | str:
    """A list of numbers, or base64 of little-endian float32, which OpenAI's own client asks for."""
    if body.is_packed:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
