"""What can be said about a scene: captions in two voices, questions and their answers.

An `Outline` fixes what is said (which facts), a voice how. The retelling voice has other words ("disc", "big") and
another build, so that matching it to a caption needs meaning and not spelling.
"""

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from stages.data.scenes.world import CELLS, Fact, Scene, Thing, relations

OTHER_WORDS = {
    "circle": "disc",
    "square": "box",
    "triangle": "wedge",
    "diamond": "rhombus",
    "cross": "plus sign",
    "star": "asterisk",
    "small": "little",
    "large": "big",
    "striped": "lined",
}
ROOMS = ("kitchen", "hall", "library", "attic", "garden", "cellar", "studio", "tower")
NUMBERS = {1: "one shape", 2: "two shapes", 3: "three shapes"}
SIDES = {
    "to the left of": ("left", 0),
    "to the right of": ("left", 1),
    "above": ("above", 0),
    "below": ("above", 1),
}
"""Each side: its relation, and whether the thing found there stands first (0) or second (1) in that fact."""


@dataclass(frozen=True)
class Outline:
    """What is said of a scene: of all its things the colour and shape, and what the flags add."""

    scene: Scene
    sized: bool
    textured: bool
    placed: bool
    """True: the cell of each thing; False: how each thing lies to the one before it."""

    def facts(self) -> frozenset[Fact]:
        """The facts that are said."""
        said: set[Fact] = set()
        for thing in self.scene:
            said.add(("is", thing.shape, thing.colour))
            said |= {("size", thing.shape, thing.size)} if self.sized else set()
            said |= {("texture", thing.shape, "striped")} if self.striped(thing) else set()
            said |= {("cell", thing.shape, CELLS[thing.cell])} if self.by_cells() else set()
        for one, other in self.pairs():
            said.add(_relation(one, other))
        return frozenset(said)

    def striped(self, thing: Thing) -> bool:
        """Whether the stripes of a thing are said."""
        return self.textured and thing.texture == "striped"

    def by_cells(self) -> bool:
        """One thing alone lies to nothing."""
        return self.placed or len(self.scene) == 1

    def pairs(self) -> list[tuple[Thing, Thing]]:
        """Neighbours whose relation is said."""
        return [] if self.by_cells() else list(pairwise(self.scene))


def outline(scene: Scene, random: Random) -> Outline:
    """Something to tell about a scene."""
    return Outline(scene, random.random() < 0.6, random.random() < 0.6, random.random() < 0.5)


def tell(said: Outline, random: Random) -> str:
    """The caption's voice: "a large red circle at the top left and a blue square at the bottom left"."""
    frame = random.choice(("{}", "a picture of {}", "there is {}", "{} on a plain ground"))
    if said.by_cells():
        parts = [f"{_noun(said, thing)} at the {CELLS[thing.cell]}" for thing in said.scene]
        return frame.format(_listed(random.sample(parts, len(parts))))
    (one, other), *further = said.pairs()
    text = f"{_noun(said, one)} {_side(one, other)} {_noun(said, other)}"
    for before, thing in further:
        text += f", and {_noun(said, thing)} {_side(thing, before)} the {before.shape}"
    return frame.format(text)


def retell(said: Outline, random: Random) -> str:
    """The same facts in other words: "top left: big red disc; bottom left: blue box"."""
    if said.by_cells():
        parts = [f"{CELLS[thing.cell]}: {_noun(said, thing, other=True)}" for thing in said.scene]
        return "; ".join(random.sample(parts, len(parts)))
    nouns = {thing: _noun(said, thing, other=True) for thing in said.scene}
    parts = []
    for one, other in random.sample(said.pairs(), len(said.pairs())):
        one, other = random.sample((one, other), 2)
        parts.append(f"{nouns[one]} lies {_side(one, other)} {nouns[other]}")
    return "; ".join(parts)


def questions(scene: Scene) -> list[str]:
    """All questions that have exactly one answer in this scene."""
    found = ["how many shapes are there, and of which colours?", "which shapes are there, and how many?"]
    found += [f"what is at the {CELLS[thing.cell]}?" for thing in scene]
    found += [f"what is {side} the {thing.shape}?" for thing in scene for side in SIDES]
    return [question for question in found if answer(question, scene)]


def answer(question: str, scene: Scene) -> str | None:
    """The answer in a whole sentence; None where the question has none, or several."""
    if question.startswith("how many"):
        return f"there are {NUMBERS[len(scene)]}: {_listed(sorted(thing.colour for thing in scene))}"
    if question.startswith("which shapes"):
        return f"the picture shows {NUMBERS[len(scene)]}: {_listed(sorted(thing.shape for thing in scene))}"
    asked = question.removeprefix("what is ").removesuffix("?")
    if asked.removeprefix("at the ") in CELLS:
        there = [thing for thing in scene if f"at the {CELLS[thing.cell]}" == asked]
        return f"{asked} is {_whole(there[0])}" if there else None
    found = _beside(asked, scene)
    return f"{asked} is {_whole(found)}" if found else None


def _beside(place: str, scene: Scene) -> Thing | None:
    """The one thing "above the circle"; None where there is none, and where there are several."""
    side = next(side for side in SIDES if place.startswith(side))
    shape = place.removeprefix(f"{side} the ")
    relation, where = SIDES[side]
    held = _all_relations(scene)
    there = [thing for thing in scene if _fact(relation, where, thing.shape, shape) in held]
    return there[0] if len(there) == 1 else None


def note(room: str) -> str:
    """The text of a catalogue card."""
    return f"this picture hangs in the {room}"


def _noun(said: Outline, thing: Thing, other: bool = False) -> str:
    words = [thing.size] * said.sized + ["striped"] * said.striped(thing) + [thing.colour, thing.shape]
    return " ".join(["a", *(OTHER_WORDS.get(word, word) if other else word for word in words)])


def _whole(thing: Thing) -> str:
    """A thing with all that it is."""
    return f"a {thing.size} {thing.texture} {thing.colour} {thing.shape}"


def _relation(one: Thing, other: Thing) -> Fact:
    """The one relation of two things that is said: left and right come before above and below."""
    return max(relations(one, other), key=lambda fact: fact[0] == "left")


def _side(one: Thing, other: Thing) -> str:
    """Where `one` lies, seen from `other`."""
    relation, first, _ = _relation(one, other)
    return next(side for side, (name, place) in SIDES.items() if name == relation and place == (first != one.shape))


def _fact(relation: str, place: int, shape: str, other: str) -> Fact:
    return (relation, shape, other) if place == 0 else (relation, other, shape)


def _all_relations(scene: Scene) -> set[Fact]:
    return {fact for one in scene for other in scene if one != other for fact in relations(one, other)}


def _listed(parts: list[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
