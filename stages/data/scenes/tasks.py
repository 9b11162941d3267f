"""What is made of a scene, and what is relevant to what: rows of M-BEIR with exact judgements.

Every index of a split gives a family: a scene, the same scene with one change, and what can be said and asked about
them. A family is a pure function of (seed, split, index). Its members:

    pictures   the scene, the changed scene            candidates of tasks 0 text→image, 4 image→image, 7 edit→image
    captions   one of each                             candidates of tasks 1 text→text, 3 image→text
    answers    to the same question of each            candidates of task 6 question→text; a sentence appears once
    cards      picture + the room it hangs in: the     candidates of tasks 2 text→card, 8 picture and room→card
               scene, the changed scene, another room
    snapshot   the scene again, never clean            the picture of queries

Judgements ignore families: whatever is true of a query in the whole split is relevant to it (`facts`). What is
false within the family is a hard negative.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from stages.data.modalities import modality_of
from stages.data.scenes import language
from stages.data.scenes.language import ROOMS, Outline
from stages.data.scenes.world import Fact, Scene, change, facts, sample
from stages.data.schemas import SPLITS

DATASET, DATASET_ID = "scenes", 30
TASKS = {
    0: ("text", "image", "pictures"),
    1: ("text", "text", "captions"),
    2: ("text", "image,text", "cards"),
    3: ("image", "text", "captions"),
    4: ("image", "image", "pictures"),
    6: ("image,text", "text", "answers"),
    7: ("image,text", "image", "pictures"),
    8: ("image,text", "image,text", "cards"),
}
"""Task: modality of its queries, of its candidates, and which candidates."""
SLOTS = 7
"""Candidates of a family besides answers: 2 pictures, 2 captions, 3 cards."""
KINDS = ((0, 1), (2, 3), (4, 5, 6))
"""The slots of pictures, captions and cards."""
FIRST_ANSWER = 10**8
"""Answers belong to no family; their numbers start beyond those of all others."""


@dataclass(frozen=True)
class SceneFamily:
    """A scene, its change, and what is said about them."""

    number: int
    """Unique over all splits."""
    scenes: tuple[Scene, Scene]
    edit: str
    outlines: tuple[Outline, Outline]
    captions: tuple[str, str]
    retold: str
    asked: str
    question: str
    answers: tuple[str, str | None]
    rooms: tuple[str, str]
    """Of the first two cards, and of the third, which shows the scene itself."""


@dataclass(frozen=True)
class World:
    """A split with its judgements: which candidates, by did, show a scene, tell a set of facts, or say a sentence."""

    families: list[SceneFamily]
    by_scene: dict[Scene, list[str]]
    by_card: dict[tuple[Scene, str], list[str]]
    by_caption: dict[frozenset[Fact], list[str]]
    by_answer: dict[str, str]

    def pictures(self, wanted: frozenset[Fact]) -> list[str]:
        """Pictures of which all these facts are true."""
        return [did for scene, dids in self.by_scene.items() if wanted <= _facts(scene) for did in dids]

    def cards(self, wanted: frozenset[Fact], room: str) -> list[str]:
        """Cards of this room on which all these facts are true."""
        matches = (dids for (scene, where), dids in self.by_card.items() if where == room and wanted <= _facts(scene))
        return [did for dids in matches for did in dids]

    def captions(self, scene: Scene) -> list[str]:
        """Captions that are true of a scene."""
        held = _facts(scene)
        return [did for said, dids in self.by_caption.items() if said <= held for did in dids]


_facts = lru_cache(maxsize=2**16)(facts)


@lru_cache(maxsize=1)
def judged_world(seed: int, split: str, count: int, first_number: int) -> World:
    """All families of a split, without their pictures: cheap enough for every task to make again."""
    world = World([], defaultdict(list), defaultdict(list), defaultdict(list), {})
    for index in range(count):
        member = family(seed, split, index, first_number + index)
        world.families.append(member)
        for slot in (0, 1):
            world.by_scene[member.scenes[slot]].append(did(member, slot))
            world.by_caption[member.outlines[slot].facts()].append(did(member, 2 + slot))
        for slot, scene, room in cards(member):
            world.by_card[scene, room].append(did(member, slot))
    sentences = sorted({answer for member in world.families for answer in member.answers if answer})
    base = FIRST_ANSWER * (1 + SPLITS.index(split))
    world.by_answer.update({text: f"{DATASET_ID}:{base + place}" for place, text in enumerate(sentences)})
    return world


def family(seed: int, split: str, index: int, number: int) -> SceneFamily:
    """The family of an index."""
    random = Random(f"{seed}/{split}/{index}")
    scene = sample(random)
    edit, changed = change(scene, random)
    said = language.outline(scene, random)
    changed_outline = Outline(changed, said.sized, said.textured, said.placed)
    question = random.choice(language.questions(scene))
    return SceneFamily(
        number=number,
        scenes=(scene, changed),
        edit=edit,
        outlines=(said, changed_outline),
        captions=(language.tell(said, random), language.tell(changed_outline, random)),
        retold=language.retell(said, random),
        asked=language.tell(said, random),
        question=question,
        answers=(language.answer(question, scene), language.answer(question, changed)),
        rooms=tuple(random.sample(ROOMS, 2)),
    )


def did(family: SceneFamily, slot: int) -> str:
    """0, 1 the pictures; 2, 3 the captions; 4, 5, 6 the cards."""
    return f"{DATASET_ID}:{family.number * SLOTS + slot}"


def cards(family: SceneFamily) -> list[tuple[int, Scene, str]]:
    """(slot, scene, room) of the family's cards."""
    (scene, changed), (room, elsewhere) = family.scenes, family.rooms
    return [(4, scene, room), (5, changed, room), (6, scene, elsewhere)]


def image_path(family: SceneFamily, split: str, which: str) -> str:
    """Relative to the root; `which` is scene, change or snapshot."""
    suffix = "jpg" if which == "snapshot" else "png"
    return f"mbeir_images/{DATASET}/{split}/{family.number:06d}_{which}.{suffix}"


def candidate_rows(family: SceneFamily, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, row) of all candidates of a family but its answers."""
    paths = [image_path(family, split, which) for which in ("scene", "change")]
    for slot in (0, 1):
        yield "pictures", _candidate(did(family, slot), None, paths[slot])
        yield "captions", _candidate(did(family, 2 + slot), family.captions[slot], None)
    for slot, scene, room in cards(family):
        yield "cards", _candidate(did(family, slot), language.note(room), paths[family.scenes.index(scene)])


def answer_rows(world: World) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, row) of the sentences that answer any question of the split, each once."""
    for text, identity in world.by_answer.items():
        yield "answers", _candidate(identity, text, None)


def query_rows(family: SceneFamily, split: str, world: World) -> Iterator[dict[str, Any]]:
    """The family's query of each task, with all that is relevant in the split."""
    (scene, changed), wanted, room = family.scenes, family.outlines[0].facts(), family.rooms[0]
    shot = image_path(family, split, "snapshot")
    answers = [world.by_answer[text] for text in family.answers if text]
    pictures, captions, catalogue = ([did(family, slot) for slot in slots] for slots in KINDS)
    asked = {
        0: (family.asked, None, world.pictures(wanted), pictures),
        1: (family.retold, None, world.by_caption[wanted], captions),
        2: (f"{family.asked}, in the {room}", None, world.cards(wanted, room), catalogue),
        3: (None, shot, world.captions(scene), captions),
        4: (None, shot, world.by_scene[scene], pictures),
        6: (family.question, shot, [world.by_answer[family.answers[0]]], answers),
        7: (family.edit, shot, world.by_scene[changed], pictures),
        8: (f"in the {room}", shot, world.by_card[scene, room], catalogue),
    }
    for place, (task, (text, path, positives, near)) in enumerate(asked.items()):
        yield {
            "qid": f"{DATASET_ID}:{family.number * len(TASKS) + place}",
            "query_txt": text,
            "query_img_path": path,
            "query_modality": TASKS[task][0],
            "query_src_content": None,
            "pos_cand_list": positives,
            "neg_cand_list": [one for one in dict.fromkeys(near) if one not in positives],
            "task_id": task,
        }


def _candidate(identity: str, text: str | None, path: str | None) -> dict[str, Any]:
    modality = modality_of(text, path)
    return {"did": identity, "txt": text, "img_path": path, "modality": modality, "src_content": None}
