"""The read-out prompt: one user turn that asks for a one-word summary, one assistant turn that is `[RET]` alone.

The embedding of a row is the hidden state at `[RET]`, after the final norm, L2-normalised (PUMA's read-out, from its
figure and `ret_oneword.py`). The prompt names the modalities that the message holds. An instruction counts as text: a
chat template sees content types only, and every loader must build the same tokens from the same message.

How a text is read stands here alone: its control tokens become spaces, blank ends go, and so do the characters after
the first so many. Characters and not tokens, for a chat template can count those, so that every loader stops at the
same one; a loader that reads on gives another vector without an error.

The same prompt exists twice, as `render` for the pipeline (fast, no Jinja) and as `chat_template` for stock loaders;
a test holds them equal.
"""

RETRIEVAL_TOKEN = "[RET]"
IMAGE_PAD = "<|image_pad|>"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    IMAGE_PAD,
    "<|video_pad|>",
    RETRIEVAL_TOKEN,
)

_SUBJECT = {(True, True): "image and sentence", (True, False): "image", (False, True): "sentence"}


def render(text: str | None, has_image: bool, most: int) -> str:
    """The prompt of one row, with a single `<|image_pad|>` where the image's tokens go.

    Args:
        text: instruction and content, or None.
        has_image: whether the row has an image; images come before the text.
        most: characters of the text that are read.

    Raises:
        ValueError: the row has neither text nor image.
    """
    text = clean(text or "")[:most]
    if not text and not has_image:
        raise ValueError("a row needs a text or an image")
    vision = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>" if has_image else ""
    subject = _SUBJECT[has_image, bool(text)]
    return (
        f"<|im_start|>user\n{vision}{text}\nSummarize above {subject} in one word:<|im_end|>\n"
        f"<|im_start|>assistant\n{RETRIEVAL_TOKEN}"
    )


def clean(text: str) -> str:
    """Text without blank ends and control tokens: it must not open a turn, an image or a read-out of its own.

    A space in their place, which none of them holds, and so what stands around it can't become another.
    """
    for token in SPECIAL_TOKENS:
        text = text.replace(token, " ")
    return text.strip()


def chat_template(most: int) -> str:
    """The prompt as a Jinja template, in which the first `most` characters of a text are read."""
    spaces = "".join(f".replace('{token}', ' ')" for token in SPECIAL_TOKENS)
    return _TEMPLATE.replace("CLEAN", f"{spaces}.strip()[:{most}]")


# Loaders pass a user message whose content is a string or a list of typed parts, in any order of parts.
_TEMPLATE = """\
{%- set found = namespace(images=0, text='') -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set found.text = found.text + message['content'] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set found.images = found.images + 1 -%}
{%- elif part['type'] == 'text' -%}
{%- set found.text = found.text + part['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- set found.text = found.textCLEAN -%}
{{- '<|im_start|>user\\n' -}}
{%- for _ in range(found.images) -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- endfor -%}
{{- found.text -}}
{{- '\\nSummarize above ' -}}
{{- 'image and sentence' if found.images and found.text else 'image' if found.images else 'sentence' -}}
{{- ' in one word:<|im_end|>\\n<|im_start|>assistant\\n[RET]' -}}
"""
