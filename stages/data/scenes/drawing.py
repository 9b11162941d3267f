"""Draws a scene: once clean, as catalogues show it, and once as somebody's snapshot of it.

The clean picture is a pure function of the scene, so that equal scenes give equal bytes. The snapshot has things a
little off their place and size, another ground, other light and noise: to know it again takes more than its pixels.
"""

import io
import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from stages.data.scenes.world import Scene, Thing

PAINT = {
    "red": (214, 39, 40),
    "green": (34, 150, 60),
    "blue": (40, 80, 200),
    "yellow": (245, 200, 30),
    "purple": (150, 60, 190),
    "black": (25, 25, 25),
}
GROUND = (245, 244, 240)
RADIUS = {"small": 0.25, "large": 0.43}
"""Of a cell's side."""
STRIPES = 4
OVERSAMPLING = 4
Point = tuple[float, float]


def clean(scene: Scene, size: int) -> bytes:
    """PNG of `size` × `size` pixels."""
    return _saved(_drawn(scene, size, GROUND, None), "PNG")


def snapshot(scene: Scene, size: int, random: Random) -> bytes:
    """JPEG of `size` × `size` pixels."""
    ground = tuple(random.randint(185, 250) for _ in range(3))
    pixels = np.asarray(_drawn(scene, size, ground, random), dtype=np.float32)
    noise = np.random.default_rng(random.getrandbits(64)).normal(0, 7, pixels.shape)
    lit = pixels * random.uniform(0.85, 1.1) + noise
    return _saved(Image.fromarray(lit.clip(0, 255).astype(np.uint8)), "JPEG", quality=92, subsampling=0)


def _drawn(scene: Scene, size: int, ground: tuple[int, ...], random: Random | None) -> Image.Image:
    """The scene, with things off their place where `random` is given. Drawn large and scaled down for smooth edges."""
    side = size * OVERSAMPLING
    image = Image.new("RGB", (side, side), ground)
    for thing in scene:
        off = [random.uniform(-1, 1) for _ in range(3)] if random else [0.0, 0.0, 0.0]
        cell = side / 2
        radius = RADIUS[thing.size] * cell * (1 + 0.08 * off[2])
        slack = max(0.0, 0.47 - RADIUS[thing.size]) * 0.6
        centre = ((thing.column + 0.5 + slack * off[0]) * cell, (thing.row + 0.5 + slack * off[1]) * cell)
        _paint(image, thing, centre, radius)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _paint(image: Image.Image, thing: Thing, centre: Point, radius: float) -> None:
    side = math.ceil(2 * radius)
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    if thing.shape == "circle":
        pen.ellipse([0, 0, side - 1, side - 1], fill=255)
    else:
        pen.polygon([(radius * (1 + x), radius * (1 + y)) for x, y in _corners(thing.shape)], fill=255)
    if thing.texture == "striped":
        step = side / STRIPES
        for stripe in range(STRIPES):
            pen.rectangle([0, (stripe + 0.6) * step, side, (stripe + 1) * step], fill=0)
    image.paste(PAINT[thing.colour], (round(centre[0] - radius), round(centre[1] - radius)), mask)


def _corners(shape: str) -> list[Point]:
    """The outline of a shape in a square from -1 to 1, y downwards."""
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0, -0.95), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "diamond":
        return [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)]
    if shape == "cross":
        arm = 0.32
        quarter = [(arm, -1), (arm, -arm), (1, -arm)]
        turned = [[(x, y), (-y, x), (-x, -y), (y, -x)] for x, y in quarter]
        return [points[turn] for turn in range(4) for points in turned]
    points = [(1.0 if spike % 2 == 0 else 0.42, math.pi * (spike / 5 - 0.5)) for spike in range(10)]
    return [(length * math.cos(angle), length * math.sin(angle)) for length, angle in points]


def _saved(image: Image.Image, format_: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()
