"""How much a stranger may ask of the server; everything here is refused with a 4xx, or with 503 where it is full."""

from dataclasses import dataclass

from stages.data.images import ImageLimits

MAX_TEXT = 8192  # characters; the model reads far fewer and cuts the rest
MAX_RESULTS = 100
MAX_INPUTS = 2048  # of one /embed request, as many as OpenAI takes
MAX_MESSAGES = 16  # turns of a conversation that is embedded, and parts of a turn
MAX_CONDITIONS = 16  # columns that a search is filtered by
MAX_VALUES = 256  # that one of them is compared with
MAX_NAME = 1024  # characters of a column's name, and of such a value


@dataclass(frozen=True)
class RequestLimits:
    """Of one server."""

    body_bytes: int = 12_000_000
    image_bytes: int = 8_000_000  # in base64 as well it fits into a body
    image_pixels: int = 25_000_000  # decoded at once: with transparency about 300 MB at the worst
    read_seconds: float = 20  # for a request's body to arrive
    answer_seconds: float = 30  # for the answer after that, of many inputs for each batch
    batch: int = 32
    waiting: int = 256  # items that wait for the model
    bulks: int = 4  # requests of more than a batch that are under way at once
    bodies_bytes: int = 300_000_000  # of all requests under way together
    decoders: int = 2  # pictures that are decoded at once

    @property
    def image(self) -> ImageLimits:
        """For `stages.data.images.check`."""
        return ImageLimits(refuse_pixels=self.image_pixels, max_bytes=self.image_bytes)
