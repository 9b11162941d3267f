"""What the encoder reads. Without torch: who only asks for vectors need not load it."""

from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge of a part of an image, in shares of its width and height."""


@dataclass(frozen=True)
class Row:
    """One thing to embed: text, an encoded image, or both, and for a query what it is asked for."""

    text: str | None = None
    image: bytes | None = None
    box: Box | None = None
    """The part of the image that is seen; None is the whole."""
    instruction: str | None = None
    """What stands before the text, and what parts them; the backbone's read-out says where it goes."""
