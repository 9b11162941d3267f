"""What one line says, field by field, or why it cannot be used. Light on purpose: plans read instructions by it."""

import json
import math
from typing import Any

from stages.data.modalities import MODALITIES

NO_UTF8 = "not UTF-8"
"""Why a line is rejected whose bytes are no text."""


class BadField(Exception):
    """A field that cannot be used: `reason` in short fixed words, `detail` for a person."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def read_json(text: str) -> Any:
    """What JSON says, with null for NaN, Infinity and what no float holds: they are no JSON, and none may leave.

    Raises ValueError, RecursionError.
    """
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def parse(line: bytes) -> dict[str, Any]:
    """The JSON object of one line. Raises BadField."""
    try:
        fields = read_json(line.decode("utf-8-sig"))
        if b"\\ud" in line.lower():  # half a surrogate pair is no text: nothing behind this point can hold it
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeError as error:
        if not _of_bytes(error):
            raise BadField("broken JSON", str(error)) from None
        raise BadField(NO_UTF8, "the line is not in UTF-8; save a table as CSV UTF-8, a text as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise BadField("broken JSON", str(error)) from None
    if not isinstance(fields, dict):
        raise BadField("broken JSON", f"a line must be an object, this is {type(fields).__name__}")
    return fields


def _of_bytes(error: UnicodeError) -> bool:
    """Whether what is no text was bytes: of the line, or of a table or text, whose bytes stand as surrogates in it."""
    return isinstance(error, UnicodeDecodeError) or (
        isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff"
    )


def modality(value: object) -> str:
    """One of `MODALITIES`; "text,image" means "image,text". Raises BadField."""
    written = value.replace(" ", "") if isinstance(value, str) else value
    written = "image,text" if written == "text,image" else written
    if not isinstance(written, str) or written not in MODALITIES:
        raise BadField("bad modality", f"{value!r} is none of {', '.join(MODALITIES)}")
    return written


def string(fields: dict[str, Any], name: str) -> str | None:
    """A field that is a string, null or missing. Raises BadField."""
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise BadField("bad field", f"{name} must be a string or null, this is {type(value).__name__}")
    return value


def normalise(text: str | None) -> str | None:
    """M-BEIR's form: no carriage returns, no outer quotes, a capital first, a mark last. None for nothing.

    What has this form keeps it: a text that was found may be asked again.
    """
    text, before = (text or "").replace("\r", ""), None
    while text != before:  # quotes within quotes, apart by blanks
        text, before = text.strip().strip('"'), text
    if not text:
        return None
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else text + "."
