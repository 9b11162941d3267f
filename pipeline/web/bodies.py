"""Request bodies to typed questions. Everything in them comes from strangers: closed models, strict types, caps.

Bodies are read by hand and not by FastAPI's parameters, because one path takes JSON and multipart and both must fail
with the same one-line error. Pictures come as bytes or as base64 `data:` URLs; no other URL is ever opened.
"""

import base64
import binascii
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pipeline.web.limits import MAX_CONDITIONS, MAX_INPUTS, MAX_NAME, MAX_RESULTS, MAX_TEXT, MAX_VALUES, RequestLimits

JSON, FORM = "application/json", "multipart/form-data"
Want = Literal["text", "image", "image,text"]
ModelName = Literal["student", "teacher"]
SEARCH_BYTES = 16 * MAX_TEXT  # of /search's JSON: a text of emojis, each escaped as twelve characters, fits
MOST_STRINGS = 4000  # of a JSON body, keys counted: MAX_INPUTS inputs of text and picture have 800
MOST_OUTSIDE = 40_000  # bytes that are in no string, of indentation mostly
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A string of JSON; one that never ends is matched to the end, so that no body is looked at twice."""


WHERE = (
    'conditions on columns of the index that all have to hold, {"brand": ["Arla", "Oatly"], "price": {"<": 20}}: a'
    " value is compared by =, a list holds any of its values, an object holds signs (= != < <= > >=) and values;"
    " in a form the same JSON as text"
)
Name = Annotated[str, Field(max_length=MAX_NAME)]
Value = bool | int | float | Annotated[str, Field(max_length=MAX_NAME)]
Values = Annotated[list[Value], Field(max_length=MAX_VALUES, fail_fast=True)]
Where = Annotated[
    dict[Name, Value | Values | Annotated[dict[Name, Value | Values], Field(max_length=6)]],
    Field(max_length=MAX_CONDITIONS),
]


class Closed(BaseModel):
    """Refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Body = TypeVar("Body", bound=Closed)


class SearchBody(Closed):
    """What to search for; with `multipart/form-data` also a file `image`."""

    text: str | None = Field(None, max_length=MAX_TEXT, description="words to search for")
    want: Want | None = Field(None, description="what to find; left out: pictures where possible")
    k: int = Field(10, ge=1, le=MAX_RESULTS, description="number of results")
    model: ModelName = Field("student", description="who answers; the teacher where the server has one")
    where: Where | None = Field(None, description=WHERE)


class ImageURL(Closed):
    """A picture in place."""

    url: str = Field(description="data:image/…;base64,… and nothing else")
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(Closed):
    """Words."""

    type: Literal["text"]
    text: str = Field(min_length=1, max_length=MAX_TEXT)


class ImagePart(Closed):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Words = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Parts = Annotated[list[Part], Field(min_length=1, max_length=2, fail_fast=True)]


class EmbedBody(Closed):
    """OpenAI's embeddings request, whose inputs may also be lists of content parts: one text, one picture, or both."""

    input: (
        Words
        | Annotated[list[Words], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
        | Parts
        | Annotated[list[Words | Parts], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    ) = Field(description="a text; a list of texts; a list of parts, which is one input; or a list of both")
    model: ModelName = "student"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="only the model's own")
    user: str | None = Field(None, max_length=256, description="not used")
    input_type: Literal["candidate", "query"] = Field(
        "candidate", description="queries get the instruction of their task in front, candidates none"
    )
    want: Want | None = Field(None, description="for queries: what they look for, which chooses the instruction")

    def inputs(self) -> list[tuple[str | None, str | None]]:
        """(text, picture URL) of each input."""
        if isinstance(self.input, str):
            return [(self.input, None)]
        if not isinstance(self.input[0], str | list):
            return [read_parts(self.input)]
        return [(item, None) if isinstance(item, str) else read_parts(item) for item in self.input]


def read_parts(parts: "list[TextPart | ImagePart]") -> tuple[str | None, str | None]:
    """(text, picture URL) of one input. Raises HTTPException for two of a kind."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    if len(texts) > 1 or len(urls) > 1:
        raise HTTPException(400, "an input holds at most one text part and one image part")
    return next(iter(texts), None), next(iter(urls), None)


def read_data_url(url: str, limits: RequestLimits) -> bytes:
    """The bytes of a `data:image/…;base64,…` URL. Raises HTTPException."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise HTTPException(400, "a picture must be a data:image/…;base64,… URL; other URLs are not opened")
    if len(data) * 3 // 4 > limits.image_bytes:
        raise HTTPException(413, f"a picture has more than {limits.image_bytes:,} bytes; send a smaller one")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(400, "the picture's data: URL is not base64; encode the file's bytes") from None


def content_type(request: Request) -> str:
    """The body's media type without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_search(request: Request, limits: RequestLimits) -> tuple[SearchBody, bytes | None]:
    """The question and the uploaded picture. Raises HTTPException."""
    kind = content_type(request)
    if kind == JSON:
        body = await request.body()
        if len(body) > SEARCH_BYTES:
            raise HTTPException(413, f"the JSON has more than {SEARCH_BYTES:,} bytes; a picture travels as {FORM}")
        return parse(SearchBody, body), None
    if kind != FORM:
        raise HTTPException(415, f"send {JSON}, or {FORM} with a picture as the file 'image'")
    async with read_form(request) as form:
        fields: dict[str, Any] = dict(form.multi_items())
        if len(fields) != len(form.multi_items()):
            raise HTTPException(400, "a form field is given twice; give each once")
        upload = fields.pop("image", None)
        if upload is not None and not isinstance(upload, UploadFile):
            raise HTTPException(400, "'image' must be a file, with a file name; nothing is fetched or opened by name")
        if any(isinstance(value, UploadFile) for value in fields.values()):
            raise HTTPException(400, "the only file is 'image'")
        if upload is not None and (upload.size or 0) > limits.image_bytes:
            raise HTTPException(413, f"the picture has more than {limits.image_bytes:,} bytes; send a smaller one")
        if isinstance(fields.get("where"), str) and fields["where"]:
            fields["where"] = read_where(fields["where"])
        return check(SearchBody, fields), None if upload is None else await upload.read()


@asynccontextmanager
async def read_form(request: Request) -> AsyncIterator[FormData]:
    """The form, whose files are closed at the end. Raises HTTPException."""
    form = request.form(max_files=1, max_fields=8, max_part_size=4 * MAX_TEXT)
    try:
        read = await form
    except UnicodeError:  # Python knows charsets that decode nothing (undefined) or not everything (punycode)
        raise HTTPException(400, "the form can't be read as its charset; send UTF-8 and leave charset out") from None
    try:
        yield read
    finally:
        await read.close()


async def read_embed(request: Request) -> EmbedBody:
    """The inputs to embed. Raises HTTPException."""
    if content_type(request) != JSON:
        raise HTTPException(415, f"send {JSON}")
    return parse(EmbedBody, await request.body())


def parse(model: type[Body], body: bytes) -> Body:
    """The validated JSON body. Raises HTTPException with one line."""
    if not is_small(body):
        raise HTTPException(400, "the JSON has more keys and values than any question here; send fewer")
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise HTTPException(400, first_error(error)) from None


def is_small(body: bytes) -> bool:
    """Whether JSON has no more strings and other values than a sound request, however long the strings are.

    Told before validating, because that would make an error for every one of a million unknown keys.
    """
    outside = end = 0
    for count, match in enumerate(STRING.finditer(body), start=1):
        outside += match.start() - end
        end = match.end()
        if count > MOST_STRINGS or outside > MOST_OUTSIDE:
            return False
    return outside + len(body) - end <= MOST_OUTSIDE


def read_where(text: str) -> Any:
    """The conditions in a form's field. Raises HTTPException."""
    try:
        if is_small(text.encode()):
            return from_json(text)
    except ValueError:  # no JSON, or a lone surrogate
        pass
    raise HTTPException(400, 'where: send a JSON object such as {"brand": "Arla", "price": {"<": 20}}')


def check(model: type[Body], fields: dict[str, Any]) -> Body:
    """The validated fields of a form, whose numbers are text; an empty field is one left out. Raises HTTPException."""
    try:
        return model.model_validate({name: value for name, value in fields.items() if value != ""})
    except ValidationError as error:
        raise HTTPException(400, first_error(error)) from None


def first_error(error: ValidationError) -> str:
    """`k: Input should be greater than or equal to 1`. Of a union's many complaints the one that got furthest."""
    complaints = error.errors(include_url=False, include_input=False, include_context=False)
    deepest = max(complaints, key=lambda complaint: len(complaint["loc"]))
    words = [str(step) for step in deepest["loc"] if isinstance(step, int) or str(step).isidentifier()]
    place = ".".join(word for word in words if word not in ("list", "str", "text", "image_url") or len(words) == 1)
    return f"{place[:80]}: {deepest['msg'][:200]}" if place else deepest["msg"][:200]
