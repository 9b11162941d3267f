"""What may be embedded, in the shapes that clients send: OpenAI's, vLLM's `messages`, Jina's and Cohere's inputs.

Which shape an input has is told by its looks, before it is checked, so that a complaint is about that shape and not
about every other one as well. Pictures stay as they were sent until their batch has its turn: `read_picture`.
"""

import base64
import binascii
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pipeline.web.bodies import JSON, MODEL, Closed, Name, Want, content_type, parse
from pipeline.web.limits import MAX_INPUTS, MAX_MESSAGES, MAX_TEXT, RequestLimits

MOST_STRINGS = 12 * MAX_INPUTS  # of a JSON body, keys counted: an input of text and picture has eleven
MOST_OUTSIDE = 100 * MAX_INPUTS  # bytes that are in no string
TOO_MANY = f"the JSON has more than {MAX_INPUTS:,} inputs have; send fewer inputs, and texts instead of token numbers"
NO_INPUT = (
    "an input is a text, a list of parts, or an object of text and image; numbers of tokens are not read: send the"
    " texts (LangChain: check_embedding_ctx_length=False)"
)
QUERIES = ("query", "search_query", "retrieval.query")
Side = Literal[
    "query",
    "search_query",
    "retrieval.query",
    "candidate",
    "document",
    "search_document",
    "passage",
    "retrieval.passage",
    "image",
]


class Asked(NamedTuple):
    """An input as it was sent."""

    text: str | None
    picture: str | None
    told: str | None = None
    """What system messages say."""


class ImageURL(Closed):
    """A picture in place."""

    url: str = Field(description="data:image/…;base64,… and nothing else")
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(Closed):
    """Words."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)


class ImagePart(Closed):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageURL | str


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Words = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Parts = Annotated[list[Part], Field(min_length=1, max_length=2, fail_fast=True)]


class Pair(Closed):
    """Jina's input: a text, a picture, or both."""

    text: Words | None = None
    image: str | None = Field(None, description="the picture in base64, or as a data: URL")


class Content(Closed):
    """Cohere's input: one of parts."""

    content: Parts


class Message(Closed):
    """A turn of vLLM's `messages`."""

    role: Literal["system", "user", "assistant"]
    content: (
        Annotated[str, Field(max_length=MAX_TEXT)]
        | Annotated[list[Part], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    )


def shape_of(value: Any) -> str | None:
    """The shape of one input, by its looks."""
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        return "a list of parts" if value and isinstance(value[0], dict) else None
    if isinstance(value, dict):
        return "an object of parts" if "content" in value else "an object of text and image"
    return None


def shape_of_all(value: Any) -> str | None:
    """The shape of `input`: nothing, one input, or a list; a list of parts is one input."""
    if value is None:
        return "nothing"
    if isinstance(value, list) and not (value and isinstance(value[0], dict) and "type" in value[0]):
        return "a list of inputs"
    return "one input"


One = Annotated[
    Annotated[Words, Tag("a text")]
    | Annotated[Parts, Tag("a list of parts")]
    | Annotated[Pair, Tag("an object of text and image")]
    | Annotated[Content, Tag("an object of parts")],
    Discriminator(shape_of, custom_error_type="no_input", custom_error_message=NO_INPUT),
]
Many = Annotated[list[One], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
Inputs = Annotated[
    Annotated[SkipJsonSchema[None], Tag("nothing")]
    | Annotated[One, Tag("one input")]
    | Annotated[Many, Tag("a list of inputs")],
    Discriminator(shape_of_all),
]
Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


def only_one(value: Any) -> Any:
    """The kind in a list of one, as Cohere's clients send it."""
    if isinstance(value, list):
        if len(value) != 1:
            raise PydanticCustomError("one_kind", "ask for one kind of numbers at a time")
        return value[0]
    return value


Kind = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
OneKind = Annotated[
    Kind,
    BeforeValidator(only_one, json_schema_input_type=Kind | Annotated[list[Kind], Field(min_length=1, max_length=1)]),
]


class EmbedBody(Closed):
    """OpenAI's embeddings request, whose inputs may also be pictures and texts with pictures."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["input"]}, {"required": ["messages"]}]})

    input: Inputs = Field(
        None,
        validation_alias=AliasChoices("input", "inputs"),
        description=f"an input or a list of at most {MAX_INPUTS:,}: texts, lists of parts, objects of text and image,"
        " or objects of parts; a list of parts alone is one input; `inputs` is the same",
    )
    messages: Messages | SkipJsonSchema[None] = Field(
        None, description="instead of input: one input as a conversation, whose texts the chat template joins"
    )
    model: Name | None = Field(None, description=MODEL)
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="numbers, or base64 of float32, which OpenAI's client asks for"
    )
    embedding_type: OneKind | None = Field(
        None,
        validation_alias=AliasChoices("embedding_type", "embedding_types", "output_dtype"),
        description="float, base64 (as encoding_format), or fewer bytes as sentence-transformers makes them: binary"
        " and ubinary hold eight signs in a number, int8 and uint8 are made by the ranges of an index of"
        " index.precision=int8; `embedding_types`, a list of one, and `output_dtype` are the same",
    )
    dimensions: int | None = Field(
        None, ge=1, description="leading values of a vector, at unit length; those that the model was trained for"
    )
    normalized: Literal[True] | None = Field(None, description="vectors always have unit length")
    user: str | None = Field(None, max_length=256, description="not used")
    input_type: Side | None = Field(
        None,
        validation_alias=AliasChoices("input_type", "task"),
        description="queries get the instruction of their task in front, candidates none; left out: candidates;"
        " `task` is the same",
    )
    want: Want | None = Field(None, description="for queries: what they look for, which chooses the instruction")

    @model_validator(mode="after")
    def check_given(self) -> "EmbedBody":
        """Raises where there is nothing to embed, or two of it."""
        if (self.input is None) == (self.messages is None):
            raise PydanticCustomError("given", "give either 'input' or 'messages'")
        if self.kind != "float" and self.encoding_format == "base64":
            raise PydanticCustomError(
                "packed", "base64 holds float32; with this embedding_type set encoding_format=float"
            )
        return self

    @property
    def kind(self) -> str:
        """What numbers a vector has: float, int8, uint8, binary or ubinary."""
        return "float" if self.embedding_type in (None, "base64") else str(self.embedding_type)

    @property
    def is_packed(self) -> bool:
        """Whether the numbers travel as base64."""
        return "base64" in (self.encoding_format, self.embedding_type)

    @property
    def is_query(self) -> bool:
        """Whether the inputs are queries."""
        return self.input_type in QUERIES

    def inputs(self) -> list[Asked]:
        """Text and picture of each input. Raises HTTPException where one has none or too many."""
        if self.messages is not None:
            return [read_messages(self.messages)]
        if isinstance(self.input, list) and not isinstance(self.input[0], TextPart | ImagePart):
            return [read_one(item, f"input {place}: ") for place, item in enumerate(self.input)]
        return [read_one(self.input)]


def read_one(item: Any, place: str = "") -> Asked:
    """Text and picture of one input. Raises HTTPException."""
    if isinstance(item, str):
        return Asked(item, None)
    if isinstance(item, Pair):
        texts, pictures = [item.text or ""], [item.image] if item.image else []
    else:
        texts, pictures = split_parts(item.content if isinstance(item, Content) else item)
    texts = [text for text in texts if text]
    if len(texts) > 1 or len(pictures) > 1:
        raise HTTPException(400, f"{place}an input holds at most one text part and one image part")
    if not texts and not pictures:
        raise HTTPException(400, f"{place}an input needs a text, an image or both")
    return Asked(next(iter(texts), None), next(iter(pictures), None))


def read_messages(messages: list[Message]) -> Asked:
    """Texts and picture of a conversation, joined as the student's chat template joins them. Raises HTTPException."""
    turns = [([one.content], []) if isinstance(one.content, str) else split_parts(one.content) for one in messages]
    said = [("".join(texts), one.role == "system") for one, (texts, _) in zip(messages, turns, strict=True)]
    told, text = ("".join(words for words, by_system in said if by_system == system) for system in (True, False))
    pictures = [picture for _, found in turns for picture in found]
    if len(told + text) > MAX_TEXT:
        raise HTTPException(400, f"messages: the texts together have more than {MAX_TEXT:,} characters; send fewer")
    if len(pictures) > 1:
        raise HTTPException(400, "messages: an input holds at most one image; send each in a request of its own")
    if not (told or text or pictures):
        raise HTTPException(400, "messages: an input needs a text, an image or both")
    return Asked(text or None, next(iter(pictures), None), told or None)


def split_parts(parts: list[TextPart | ImagePart]) -> tuple[list[str], list[str]]:
    """The texts and the pictures of a list of parts."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    urls = [part.image_url for part in parts if isinstance(part, ImagePart)]
    return texts, [url if isinstance(url, str) else url.url for url in urls]


async def read_embed(request: Request) -> EmbedBody:
    """The inputs to embed. Raises HTTPException."""
    if content_type(request) != JSON:
        raise HTTPException(415, f"send {JSON}")
    return parse(EmbedBody, await request.body(), MOST_STRINGS, MOST_OUTSIDE, TOO_MANY)


def read_picture(sent: str, limits: RequestLimits) -> bytes:
    """The bytes of a `data:…;base64,…` URL or of base64 alone, whose lines may be wrapped. Raises HTTPException.

    What kind of picture it is, its bytes tell and not the URL, which names none for a file whose ending its sender did
    not know. No other URL is opened: the server would fetch for strangers what only it can reach.
    """
    head, comma, data = sent.partition(",") if ":" in sent[:64] else ("data:;base64", ",", sent)
    head = head.lower()
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise HTTPException(400, "a picture must be base64 or a data:image/…;base64,… URL; other URLs are not opened")
    data = "".join(data.split())
    if len(data) * 3 // 4 > limits.image_bytes:
        raise HTTPException(413, f"a picture has more than {limits.image_bytes:,} bytes; send a smaller one")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(400, "the picture is not base64; encode the file's bytes") from None
