"""What a query or a candidate consists of, by M-BEIR's names."""

MODALITIES = ("text", "image", "image,text")
PREFERRED = ("image", "image,text", "text")  # what is looked for where the person does not say


def modality_of(text: object, image: object) -> str:
    """The name for what is there of a text and an image; one of them has to be."""
    return "image,text" if text and image else "image" if image else "text"
