"""Request bodies to typed questions. Everything in them comes from strangers: closed models, strict types, caps.

Bodies are read by hand and not by FastAPI's parameters, because one path takes JSON and multipart and both must fail
with the same one-line error. What may be embedded is in inputs.py.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pipeline.web.limits import MAX_CONDITIONS, MAX_NAME, MAX_RESULTS, MAX_TEXT, MAX_VALUES, RequestLimits

JSON, FORM = "application/json", "multipart/form-data"
Want = Literal["text", "image", "image,text"]
SEARCH_BYTES = 16 * MAX_TEXT  # of /search's JSON: a text of emojis, each escaped as twelve characters, fits
MOST_STRINGS = 4000  # of /search's JSON, keys counted: more than a question has
MOST_OUTSIDE = 40_000  # bytes that are in no string, of indentation mostly
TOO_MANY = "the JSON has more keys and values than any question here; send fewer"
MODEL = "who answers: student, the name that it is registered by, or teacher where the server has one"
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A string of JSON; one that never ends is matched to the end, so that no body is looked at twice."""


WHERE = (
    'conditions on columns of the index that all have to hold, {"brand": ["Arla", "Oatly"], "price": {"<": 20}}: a'
    " value is compared by =, a list holds any of its values, an object holds signs (= != < <= > >=) and values;"
    " in a form the same JSON as text"
)
TAGS = ("list", "str", "text", "image_url", "ImageURL")  # how validation names the parts of a union
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
    model: Name = Field("student", description=MODEL)
    where: Where | None = Field(None, description=WHERE)


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


def parse(
    model: type[Body], body: bytes, strings: int = MOST_STRINGS, outside: int = MOST_OUTSIDE, too_many: str = TOO_MANY
) -> Body:
    """The validated JSON body. Raises HTTPException with one line, `too_many` where `is_small` says no."""
    if not is_small(body, strings, outside):
        raise HTTPException(400, too_many)
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise HTTPException(400, first_error(error)) from None


def is_small(body: bytes, most_strings: int = MOST_STRINGS, most_outside: int = MOST_OUTSIDE) -> bool:
    """Whether JSON has no more strings and other values than a sound request, however long the strings are.

    Told before validating, because that would make an error for every one of a million unknown keys.
    """
    outside = end = 0
    for count, match in enumerate(STRING.finditer(body), start=1):
        outside += match.start() - end
        end = match.end()
        if count > most_strings or outside > most_outside:
            return False
    return outside + len(body) - end <= most_outside


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
    place = ".".join(word for word in words if word not in TAGS or len(words) == 1)
    return f"{place[:80]}: {deepest['msg'][:200]}" if place else deepest["msg"][:200]
