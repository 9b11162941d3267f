"""The read-outs: what a row becomes before a backbone reads it, and at which token its vector is read.

A read-out is a system turn, a user turn of picture, text and a request, and the start of an assistant turn. The
embedding of a row is the hidden state at the prompt's last token, after the final norm, L2-normalised. The setting
`backbone.readout` names one of `READ_OUTS`; a model directory keeps the name in `puma.json`, and so a student reads as
its backbone does.

How a text is read stands here alone: its control tokens become spaces, blank ends go, and so do the characters after
the first so many. Characters and not tokens, for a chat template can count those, so that every loader stops at the
same one; a loader that reads on gives another vector without an error.

The same prompt exists twice, as `ReadOut.render` for the pipeline (fast, no Jinja) and as `ReadOut.chat_template` for
stock loaders; a test holds them equal.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass

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

SETTING = "readout"
"""Where a model directory's settings file names its read-out; one that names none was made when `puma` was all."""
DEFAULT = "puma"

_SUBJECT = {(True, True): "image and sentence", (True, False): "image", (False, True): "sentence"}
_PICTURE = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"
_SYSTEM, _USER, _ASSISTANT = (f"<|im_start|>{role}\n" for role in ("system", "user", "assistant"))
_END = "<|im_end|>\n"


@dataclass(frozen=True)
class ReadOut:
    """How a row is asked for its vector."""

    name: str
    system: str = ""
    """What the system turn says; without it there is none."""
    instructed: bool = False
    """Whether a row's instruction is said in its place; else it counts as text."""
    request: str = ""
    """What is asked after the text; `{}` are the kinds of content that the row has."""
    token: str = ""
    """The last token; without it, the new line that opens the assistant's turn."""
    families: tuple[str, ...] = ()
    """The model types that were trained with it; none named is all."""

    def render(self, text: str | None, has_image: bool, most: int, instruction: str | None = None) -> str:
        """The prompt of one row, with a single `<|image_pad|>` where the image's tokens go.

        Args:
            text: the content, or None.
            has_image: whether the row has an image; images come before the text.
            most: characters that are read of instruction and text together.
            instruction: what stands before the text, with what parts them; None where nothing does.

        Raises:
            ValueError: the row has neither text nor image.
        """
        told, text = (instruction or "", text or "") if self.instructed else ("", (instruction or "") + (text or ""))
        told = clean(told)[:most]
        text = clean(text)[: most - len(told)]
        if not (told or text or has_image):
            raise ValueError("a row needs a text or an image")
        system = f"{_SYSTEM}{told or self.system}{_END}" if self.system else ""
        request = self.request.format(_SUBJECT[has_image, bool(text)]) if self.request else ""
        return f"{system}{_USER}{_PICTURE * has_image}{text}{request}{_END}{_ASSISTANT}{self.token}"

    def chat_template(self, most: int) -> str:
        """The prompt as a Jinja template, in which the first `most` characters are read.

        The instruction is what system messages say. Where it counts as text, a text may as well begin with it.
        """
        said = _quoted(self.system)
        system = f"(found.told or {said})" if self.instructed else said
        opening = f"{_quoted(_SYSTEM)} ~ {system} ~ {_quoted(_END + _USER)}" if self.system else _quoted(_USER)
        before, _, after = self.request.partition("{}")
        request = f" ~ {_quoted(before)} ~ ({_KINDS}) ~ {_quoted(after)}" if self.request else ""
        closing = _quoted(f"{_END}{_ASSISTANT}{self.token}")
        head, tail = f"{{{{- {opening} -}}}}\n", f"{{{{- found.text{request} ~ {closing} -}}}}\n"
        return f"{_READ}{self._cut(most)}{head}{_PICTURES}{tail}"

    def _cut(self, most: int) -> str:
        """Jinja that cleans and cuts what was found, as `render` does it."""
        clean = "".join(f".replace('{token}', ' ')" for token in SPECIAL_TOKENS) + ".strip()"
        if not self.instructed:
            return f"{{%- set found.text = (found.told + found.text){clean}[:{most}] -%}}\n"
        return (
            f"{{%- set found.told = found.told{clean}[:{most}] -%}}\n"
            f"{{%- set found.text = found.text{clean}[:{most} - found.told|length] -%}}\n"
        )

    def fits(self, model_type: str) -> bool:
        """Whether a backbone of this type can have it."""
        return not self.families or model_type in self.families

    def refusal(self, model_type: str) -> str:
        """Why a backbone of this type can't have it, in words; empty where it can."""
        if self.fits(model_type):
            return ""
        others = ", ".join(one.name for one in READ_OUTS.values() if one.fits(model_type))
        return (
            f"{SETTING}={self.name} is the prompt of {' and '.join(self.families)} models, and this is a {model_type};"
            f" choose one of {others}"
        )

    def lacking(self, vocabulary: Collection[str]) -> list[str]:
        """The control tokens of the prompt that a tokenizer does not know."""
        prompt = self.render("a", True, 1)
        return [token for token in SPECIAL_TOKENS if token in prompt and token not in vocabulary]


QWEN = "You are a helpful assistant."
"""Qwen2-VL's own chat template opens with it where no system message is given."""
ONE_WORD = "\nSummarize above {} in one word:"

READ_OUTS = {
    read_out.name: read_out
    for read_out in (
        # PUMA's figure: its words and its token, which is new to the vocabulary.
        ReadOut(DEFAULT, request=ONE_WORD, token=RETRIEVAL_TOKEN),
        # PUMA's code (src/training/ret_oneword.py): Qwen2-VL's chat template adds the system turn, and the request
        # ends in a space. What its assistant says after [RET], a full stop, is behind the state that is read.
        ReadOut("puma_published", QWEN, request=f"{ONE_WORD} ", token=RETRIEVAL_TOKEN),
        # LamRA (models/qwen2_vl.py reads the state before its token): the same without a token of its own. It parts
        # instruction and text by a space, and here it is a new line.
        ReadOut("eol", QWEN, request=f"{ONE_WORD} "),
        # The technical report of Qwen3-VL-Embedding, section 2, and src/models/qwen3_vl_embedding.py, which opens the
        # assistant's turn; the last token is the report's "PAD", which its tokenizer puts behind every text. Its code
        # ends an instruction that has no punctuation with a full stop; here instructions stay as they are.
        ReadOut(
            "qwen3_vl_embedding",
            "Represent the user's input.",
            instructed=True,
            token="<|endoftext|>",
            families=("qwen3_vl",),
        ),
        # gme_inference.py of Alibaba-NLP/gme-Qwen2-VL-2B-Instruct.
        ReadOut("gme", QWEN, instructed=True, token="<|endoftext|>", families=("qwen2_vl",)),
    )
}


def read_out(name: str) -> ReadOut:
    """The read-out of this name. Raises ValueError, which names those that there are."""
    if name not in READ_OUTS:
        raise ValueError(f"{SETTING}={name} is not known; choose one of {', '.join(READ_OUTS)}")
    return READ_OUTS[name]


def clean(text: str) -> str:
    """Text without blank ends and control tokens: it must not open a turn, an image or a read-out of its own.

    A space in their place, which none of them holds, and so what stands around it can't become another.
    """
    for token in SPECIAL_TOKENS:
        text = text.replace(token, " ")
    return text.strip()


def _quoted(text: str) -> str:
    """The text as Jinja reads it."""
    return json.dumps(text, ensure_ascii=False)


_KINDS = "'image and sentence' if found.images and found.text else 'image' if found.images else 'sentence'"
# Loaders pass messages whose content is a string or a list of typed parts, in any order of parts.
_READ = """\
{%- set found = namespace(images=0, told='', text='') -%}
{%- for message in messages -%}
{%- if message['content'] is string and message['role'] == 'system' -%}
{%- set found.told = found.told + message['content'] -%}
{%- elif message['content'] is string -%}
{%- set found.text = found.text + message['content'] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set found.images = found.images + 1 -%}
{%- elif part['type'] == 'text' and message['role'] == 'system' -%}
{%- set found.told = found.told + part['text'] -%}
{%- elif part['type'] == 'text' -%}
{%- set found.text = found.text + part['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
"""
_PICTURES = """\
{%- for _ in range(found.images) -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- endfor -%}
"""
