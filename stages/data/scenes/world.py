"""A small world whose truth is known: scenes of one to three things on a 2 × 2 grid, and the facts that hold in them.

A scene never has the same shape or the same colour twice, so that "the circle" or "the red shape" always means one
thing. What can be said is a set of facts, and a saying is true of a scene when its facts are a subset of the scene's:
that one rule gives every relevance judgement of every task exactly.

    >>> scene = (Thing(0, "circle", "red", "large", "plain"), Thing(1, "square", "blue", "small", "striped"))
    >>> ("left", "circle", "square") in facts(scene)
    True
"""

from dataclasses import dataclass, replace
from itertools import combinations
from random import Random

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped")
CELLS = ("top left", "top right", "bottom left", "bottom right")
COUNTS = (1, 1, 2, 2, 2, 3)
"""How many things a scene has: one of these, each as likely."""
Fact = tuple
"""("is", shape, colour), ("size", shape, …), ("texture", shape, …), ("cell", shape, …), ("left", shape, shape),
("above", shape, shape), ("count", number)"""


@dataclass(frozen=True, order=True)
class Thing:
    """One thing in one cell, by its place in `CELLS`."""

    cell: int
    shape: str
    colour: str
    size: str
    texture: str

    @property
    def column(self) -> int:
        return self.cell % 2

    @property
    def row(self) -> int:
        return self.cell // 2


Scene = tuple[Thing, ...]
"""Things in order of their cells: equal scenes are equal tuples."""


def facts(scene: Scene) -> frozenset[Fact]:
    """Everything that holds in a scene."""
    found: set[Fact] = {("count", len(scene))}
    for thing in scene:
        found |= {
            ("is", thing.shape, thing.colour),
            ("size", thing.shape, thing.size),
            ("texture", thing.shape, thing.texture),
            ("cell", thing.shape, CELLS[thing.cell]),
        }
    for one, other in combinations(scene, 2):
        found |= relations(one, other)
    return frozenset(found)


def relations(one: Thing, other: Thing) -> set[Fact]:
    """How two things lie to each other: left for right, above for below, both on a diagonal."""
    found: set[Fact] = set()
    if one.column != other.column:
        first, second = sorted((one, other), key=lambda thing: thing.column)
        found.add(("left", first.shape, second.shape))
    if one.row != other.row:
        first, second = sorted((one, other), key=lambda thing: thing.row)
        found.add(("above", first.shape, second.shape))
    return found


def sample(random: Random) -> Scene:
    """A scene, drawn."""
    count = random.choice(COUNTS)
    cells, shapes, colours = (random.sample(values, count) for values in (range(len(CELLS)), SHAPES, COLOURS))
    sizes, textures = (random.choices(values, k=count) for values in (SIZES, TEXTURES))
    return tuple(sorted(map(Thing, cells, shapes, colours, sizes, textures)))


def change(scene: Scene, random: Random) -> tuple[str, Scene]:
    """(instruction, changed scene): one attribute or one relation is another, all else stays.

    The instruction and the scene determine the result, which is never the scene itself.
    """
    thing = random.choice(scene)
    ways = [_recolour, _reshape, _resize, _restripe]
    ways += [_move, *([_swap] * 2 if len(scene) > 1 else [])]
    instruction, changed = random.choice(ways)(scene, thing, random)
    return instruction, tuple(sorted(changed))


def _name(thing: Thing, random: Random) -> str:
    """A name that fits only this thing."""
    return random.choice((f"the {thing.shape}", f"the {thing.colour} {thing.shape}", f"the {thing.colour} shape"))


def _with(scene: Scene, thing: Thing, **changes: str | int) -> Scene:
    return tuple(replace(thing, **changes) if one == thing else one for one in scene)


def _recolour(scene: Scene, thing: Thing, random: Random) -> tuple[str, Scene]:
    colour = random.choice([colour for colour in COLOURS if colour not in {one.colour for one in scene}])
    return f"make {_name(thing, random)} {colour}", _with(scene, thing, colour=colour)


def _reshape(scene: Scene, thing: Thing, random: Random) -> tuple[str, Scene]:
    shape = random.choice([shape for shape in SHAPES if shape not in {one.shape for one in scene}])
    return f"turn {_name(thing, random)} into a {shape}", _with(scene, thing, shape=shape)


def _resize(scene: Scene, thing: Thing, random: Random) -> tuple[str, Scene]:
    size = SIZES[1 - SIZES.index(thing.size)]
    return f"make {_name(thing, random)} {size}", _with(scene, thing, size=size)


def _restripe(scene: Scene, thing: Thing, random: Random) -> tuple[str, Scene]:
    texture = TEXTURES[1 - TEXTURES.index(thing.texture)]
    return f"make {_name(thing, random)} {texture}", _with(scene, thing, texture=texture)


def _move(scene: Scene, thing: Thing, random: Random) -> tuple[str, Scene]:
    cell = random.choice([cell for cell in range(len(CELLS)) if cell not in {one.cell for one in scene}])
    return f"move {_name(thing, random)} to the {CELLS[cell]}", _with(scene, thing, cell=cell)


def _swap(scene: Scene, thing: Thing, random: Random) -> tuple[str, Scene]:
    other = random.choice([one for one in scene if one != thing])
    swapped = _with(_with(scene, thing, cell=-1), other, cell=thing.cell)
    changed = tuple(replace(one, cell=other.cell) if one.cell == -1 else one for one in swapped)
    return f"swap {_name(thing, random)} and {_name(other, random)}", changed
