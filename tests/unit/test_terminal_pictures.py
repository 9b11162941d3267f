"""Pictures are printed for terminals that show them, and for no other."""

import base64
import re

import pytest

from pipeline.pictures import drawn, protocol
from tests.mbeir_files import png


@pytest.mark.parametrize(
    "environment, is_terminal, expected",
    [
        ({"TERM_PROGRAM": "iTerm.app"}, True, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, True, "iterm"),
        ({"TERM": "xterm-kitty"}, True, "kitty"),
        ({"TERM": "xterm-256color"}, True, ""),
        ({"TERM": "xterm-kitty"}, False, ""),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, True, ""),
        ({"TERM_PROGRAM": "iTerm.app", "TMUX": "/tmp/x"}, True, ""),
    ],
)
def test_the_protocol_follows_the_terminal(environment: dict, is_terminal: bool, expected: str) -> None:
    assert protocol(environment, is_terminal) == expected


def test_iterm_gets_the_stored_bytes() -> None:
    data = png("red")
    assert base64.b64decode(drawn(data, "iterm").rpartition(":")[2].removesuffix("\a")) == data


def test_kitty_gets_a_png_in_pieces() -> None:
    import io
    import os

    from PIL import Image

    buffer = io.BytesIO()
    Image.frombytes("RGB", (300, 300), os.urandom(270_000)).save(buffer, "JPEG")
    pieces = re.findall("\033_G([^;]*);([^\033]*)\033\\\\", drawn(buffer.getvalue(), "kitty"))
    assert len(pieces) > 1 and all(len(text) <= 4096 for _, text in pieces)
    assert [told[-3:] for told, _ in pieces] == [*["m=1"] * (len(pieces) - 1), "m=0"]
    with Image.open(io.BytesIO(base64.b64decode("".join(text for _, text in pieces)))) as image:
        assert image.format == "PNG" and image.size == (300, 300)
