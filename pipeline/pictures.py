"""Pictures in terminals that can show them: by iTerm2's protocol or kitty's, told apart by what the terminal says.

Where neither is known nothing is printed: a terminal that does not know them would show a screen of letters.
"""

import base64
import io
from collections.abc import Mapping

ROWS = 6  # lines of text that a picture is as high as
PIECE = 4096  # characters that kitty takes at once


def protocol(environment: Mapping[str, str], is_terminal: bool) -> str:
    """iterm, kitty, or nothing where the terminal shows no pictures; inside tmux and screen none gets through."""
    inside = environment.get("TMUX") or environment.get("TERM", "").startswith(("screen", "tmux"))
    if not is_terminal or inside:
        return ""
    program = environment.get("TERM_PROGRAM", "")
    if program in ("iTerm.app", "WezTerm", "mintty"):
        return "iterm"
    known = environment.get("KITTY_WINDOW_ID") or environment.get("TERM") in ("xterm-kitty", "xterm-ghostty")
    return "kitty" if known or program == "ghostty" else ""


def drawn(data: bytes, by: str) -> str:
    """What to print so that an encoded picture shows, ROWS lines high."""
    if by == "iterm":
        return f"\033]1337;File=inline=1;height={ROWS};size={len(data)}:{base64.b64encode(data).decode()}\a"
    text = base64.b64encode(as_png(data)).decode()
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    told = [f"a=T,f=100,r={ROWS},", *[""] * (len(pieces) - 1)]
    more = [*["m=1"] * (len(pieces) - 1), "m=0"]
    return "".join(f"\033_G{first}{last};{piece}\033\\" for first, last, piece in zip(told, more, pieces, strict=True))


def as_png(data: bytes) -> bytes:
    """A small PNG of a picture, the one format that kitty reads."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((320, 320))
        image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
