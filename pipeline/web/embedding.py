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

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse

from pipeline.web.engine import Engine
from pipeline.web.inputs import Asked, EmbedBody, read_picture
from pipeline.web.limits import RequestLimits
from stages.contract.context import InputError
from stages.model.rows import Row

HUNG_UP = 499  # as nginx logs a client that did not wait; nobody reads it


async def embed(request: Request, body: EmbedBody, engine: Engine, limits: RequestLimits) -> StreamingResponse:
    """Vectors of the body's inputs, in OpenAI's shape. Raises InputError, HTTPException, Busy, TimeoutError."""
    asked = body.inputs()
    model = await engine.ready(body.model)
    dimensions = engine.leading(model, body.dimensions)
    vectors: list[np.ndarray] = []
    tokens = 0
    is_bulk = len(asked) > limits.batch
    with engine.bulk.entered(1) if is_bulk else nullcontext():
        for start in range(0, len(asked), limits.batch):
            if start and await request.is_disconnected():
                raise HTTPException(HUNG_UP, "the client hung up")
            async with asyncio.timeout(limits.answer_seconds):
                rows = [
                    await read_row(place, asked, body, model, engine, limits)
                    for place in range(start, min(start + limits.batch, len(asked)))
                ]
                vectors += [shortened(vector, dimensions) for vector in await engine.embed(rows, model, is_bulk)]
                tokens += await engine.tokens(rows)
    return StreamingResponse(pieces(vectors, tokens, body, limits.batch), media_type="application/json")


async def read_row(
    place: int, asked: list[Asked], body: EmbedBody, model: str, engine: Engine, limits: RequestLimits
) -> Row:
    """What the model reads for input number `place`. Raises InputError and HTTPException, which name it."""
    text, sent = asked[place]
    with placed(f"input {place}: " if len(asked) > 1 else ""):
        picture = None if sent is None else read_picture(sent, limits)
        return await engine.row(text, picture, model, body.is_query, body.want)


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
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
