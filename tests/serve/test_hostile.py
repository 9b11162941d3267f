"""Five hundred uploads that no honest client would send: 4xx each, memory flat, and the server still answers."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import psutil
import pytest
from PIL import Image

from tests.serve.conftest import Served

COUNT = 500
SLACK = 200_000_000  # bytes that the process may grow by: a picture of 25 million pixels is decoded at once


def encoded(kind: str, size: tuple[int, int] = (97, 61), mode: str = "RGB", **options) -> bytes:
    image = Image.effect_noise(size, 80).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, body: bytes = b"", extra: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG by hand, whose header says what it wants."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def crafted() -> list[bytes]:
    """Known tricks."""
    bomb = zlib.compress(bytes(50_000_000), 9)
    text = chunk(b"zTXt", b"a\0\0" + bomb)
    profile = chunk(b"iCCP", b"a\0\0" + bomb)
    flat = png(1, 1)
    return [
        png(60_000, 60_000),  # a bomb by its header
        png(4999, 4999),  # allowed by its header, and nothing behind it
        png(2**31 - 1, 2**31 - 1),
        png(0, 0),
        png(10_000, 1),  # narrower than any model reads
        png(40, 40, b"\0" * 5, text),  # a text of 50 MB in 50 kB
        png(40, 40, b"\0" * 5, profile),
        png(40, 40, b"\0" * 5, chunk(b"tEXt", b"x" * 1_000_000)),
        png(40, 40, depth=77),
        png(40, 40, colour=99),
        flat[:40] + b"\xff" * 4 + flat[44:],  # a wrong checksum
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0",
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\xf7\0\0" + b"," * 10_000,
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 100,
        b"RIFF\x10\0\0\0WEBPVP8L" + struct.pack("<I", 5) + b"\x2f\xff\xff\xff\xff",
        b"\xff\xd8\xff" + b"\xff\xe1\xff\xff" * 5000,
        b"\xff\xd8\xff\xe0" + bytes(7_000_000),  # as large as may be, and nothing in it
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + b"\x01\x11\0" * 3,
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"<html><script>alert(1)</script>",
        b"GIF89a/*<script>alert(1)</script>*/",
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"BM" + bytes(60),
        b"II*\0" + bytes(60),
        b"\0\0\0\x20ftypavif" + bytes(60),
        b"\xff\x0a" + bytes(60),
        b"",
        b"\0",
        bytes(7_900_000),
    ]


def broken(seed: int) -> Iterator[bytes]:
    """Real pictures, cut and overwritten for ever."""
    draw = random.Random(seed)
    kinds = ("JPEG", "PNG", "WEBP", "GIF")
    whole = [encoded(kind) for kind in kinds] + [encoded("PNG", mode="RGBA"), encoded("JPEG", progressive=True)]
    while True:
        data = bytearray(draw.choice(whole))
        trick = draw.randrange(3)
        if trick == 0:
            data = data[: draw.randrange(3, len(data) * 3 // 4)]
        elif trick == 1:
            data[:64] = draw.randbytes(64)
        else:
            start = draw.randrange(12, 40)
            data[start : start + 40] = b"\xff" * 40
            data = data[: len(data) // 2]
        yield bytes(data)


def test_hostile_uploads_are_refused_and_the_server_lives(server: Served):
    process = psutil.Process()
    sound = encoded("JPEG")
    assert server.post(files={"image": ("warm", sound)}).status_code == 200
    uploads = crafted()
    stream = broken(5)
    uploads += [next(stream) for _ in range(COUNT - len(uploads))]
    got: dict[int, int] = {}
    before, largest = process.memory_info().rss, 0
    for number, data in enumerate(uploads):
        answer = server.post(files={"image": (f"../../{number}\r\n.png", data, "image/svg+xml")})
        got[answer.status_code] = got.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, data[:80]
        assert answer.status_code >= 400 or salvageable(data), (number, data[:80])
        largest = max(largest, process.memory_info().rss)
    assert largest - before < SLACK, f"grew by {(largest - before) / 1e6:.0f} MB"
    print({"answers": got, "grew by MB": round((largest - before) / 1e6)})
    assert server.post(files={"image": ("well", sound)}).status_code == 200


def salvageable(data: bytes) -> bool:
    """Whether the decoder itself makes a whole picture of it: damage that leaves a picture is no attack."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        return True
    except Exception:
        return False


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_honest_pictures_pass(server: Served, kind: str):
    assert server.post(files={"image": ("x", encoded(kind))}).status_code == 200
