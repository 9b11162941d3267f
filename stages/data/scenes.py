"""Makes a complete M-BEIR directory of drawn scenes: all eight tasks, exact judgements, true hard negatives.

Every index of a split gives a family: a scene, the same scene with one change, and what can be said and asked about
them. A family is a pure function of (seed, split, index). Its members:

    pictures   the scene, the changed scene            candidates of tasks 0 text→image, 4 image→image, 7 edit→image
    captions   one of each                             candidates of tasks 1 text→text, 3 image→text
    answers    to the same question of each            candidates of task 6 question→text; a sentence appears once
    cards      picture + the room it hangs in: the     candidates of tasks 2 text→card, 8 picture and room→card
               scene, the changed scene, another room
    snapshot   the scene again, never clean            the picture of queries

Judgements ignore families: whatever is true of a query in the whole split is relevant to it (`scene_world`). What is
false within the family is its hard negative.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from stages.data import scene_drawing, scene_language
from stages.data.mbeir import INSTRUCTIONS_FILE
from stages.data.scene_language import ROOMS, Outline
from stages.data.scene_world import Fact, Scene, change, facts, sample
from stages.data.schemas import SPLITS

DATASET, DATASET_ID = "scenes", 30
FAMILIES_PER_TASK = 64
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
INSTRUCTIONS = {
    0: ("Find the picture that the text describes.", "Match the description to a picture."),
    1: ("Find the caption that says the same.", "Retrieve the text with the same meaning."),
    2: ("Find the catalogue card of the described picture.", "Retrieve the card with this picture and room."),
    3: ("Find the caption of the picture.", "Describe what the picture shows."),
    4: ("Find the clean picture of the same scene.", "Match the snapshot to its picture."),
    6: ("Answer the question about the picture.", "Find the sentence that answers the question."),
    7: ("Find the picture after the change.", "Apply the edit and retrieve the result."),
    8: ("Find the card of this picture in this room.", "Retrieve the card for the picture and the place."),
}
SLOTS = 7
"""Candidates of a family besides answers: 2 pictures, 2 captions, 3 cards."""

Each = Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]]
"""`map`, or something that does the same in parallel."""


@dataclass(frozen=True)
class Family:
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
    """Of both cards of the pair, and of the third card, which shows the scene itself."""


@dataclass(frozen=True)
class Part:
    """Some families of a split, for one task."""

    root: Path
    seed: int
    split: str
    count: int
    first_number: int
    start: int
    stop: int
    size: int


def make(root: Path, counts: Any, seed: int, each: Each = map) -> Path:
    """Writes the directory, anew where a killed run left one. `counts` is `stages.ingest.Scenes`."""
    shutil.rmtree(root, ignore_errors=True)
    first_number = 0
    for split in SPLITS:
        count = getattr(counts, split)
        (root / "mbeir_images" / DATASET / split).mkdir(parents=True)
        cuts = range(0, count, FAMILIES_PER_TASK)
        parts = [
            Part(root, seed, split, count, first_number, cut, min(cut + FAMILIES_PER_TASK, count), counts.size)
            for cut in cuts
        ]
        _write_split(root, split, each(make_part, parts), answer_rows(seed, split, count, first_number))
        first_number += count
    _write_instructions(root)
    return root


def make_part(part: Part) -> dict[str, str]:
    """Draws the pictures of some families; {"pictures" …: candidate lines, "query0" …: lines, "qrels0" …: lines}."""
    world = judged_world(part.seed, part.split, part.count, part.first_number)
    texts: dict[str, list[str]] = defaultdict(list)
    for index in range(part.start, part.stop):
        family = world.families[index]
        _draw(part, index, family)
        for kind, row in candidate_rows(family, part.split):
            texts[kind].append(json.dumps(row))
        for row in query_rows(family, part.split, world):
            task = row["task_id"]
            texts[f"query{task}"].append(json.dumps(row))
            texts[f"qrels{task}"] += [f"{row['qid']} 0 {did} 1 {task}" for did in row["pos_cand_list"]]
    return {name: "".join(f"{line}\n" for line in lines) for name, lines in texts.items()}


def family(seed: int, split: str, index: int, number: int) -> Family:
    """The family of an index."""
    random = Random(f"{seed}/{split}/{index}")
    scene = sample(random)
    edit, changed = change(scene, random)
    told = scene_language.outline(scene, random)
    retold_change = Outline(changed, told.sized, told.textured, told.placed)
    voice = random.choice((scene_language.tell, scene_language.retell))
    question = random.choice(scene_language.questions(scene))
    answers = scene_language.answer(question, scene), scene_language.answer(question, changed)
    return Family(
        number=number,
        scenes=(scene, changed),
        edit=edit,
        outlines=(told, retold_change),
        captions=(scene_language.tell(told, random), scene_language.tell(retold_change, random)),
        retold=scene_language.retell(told, random),
        asked=voice(told, random),
        question=question,
        answers=answers,
        rooms=tuple(random.sample(ROOMS, 2)),
    )


@dataclass(frozen=True)
class World:
    """A split with its judgements: which candidates, by did, show a scene, tell a set of facts, or say a sentence."""

    families: list[Family]
    by_scene: dict[Scene, list[str]]
    by_card: dict[tuple[Scene, str], list[str]]
    by_caption: dict[frozenset[Fact], list[str]]
    by_answer: dict[str, str]

    def pictures(self, told: frozenset[Fact]) -> list[str]:
        """Pictures of which all these facts are true."""
        return [did for scene, dids in self.by_scene.items() if told <= _facts(scene) for did in dids]

    def cards(self, told: frozenset[Fact], room: str) -> list[str]:
        """Cards of this room on which all these facts are true."""
        matches = (dids for (scene, where), dids in self.by_card.items() if where == room and told <= _facts(scene))
        return [did for dids in matches for did in dids]

    def captions(self, scene: Scene) -> list[str]:
        """Captions that are true of a scene."""
        held = _facts(scene)
        return [did for told, dids in self.by_caption.items() if told <= held for did in dids]


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
    world.by_answer.update({row["txt"]: row["did"] for row in answer_rows(seed, split, count, first_number)})
    return world


def did(family: Family, slot: int) -> str:
    """0, 1 the pictures; 2, 3 the captions; 4, 5, 6 the cards."""
    return f"{DATASET_ID}:{family.number * SLOTS + slot}"


def cards(family: Family) -> list[tuple[int, Scene, str]]:
    """(slot, scene, room) of the family's cards."""
    (scene, changed), (room, elsewhere) = family.scenes, family.rooms
    return [(4, scene, room), (5, changed, room), (6, scene, elsewhere)]


def candidate_rows(family: Family, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, row) of all candidates of a family but its answers."""
    paths = [image_path(family, split, which) for which in ("scene", "change")]
    for slot in (0, 1):
        yield "pictures", _candidate(did(family, slot), None, paths[slot])
        yield "captions", _candidate(did(family, 2 + slot), family.captions[slot], None)
    for slot, scene, room in cards(family):
        path = paths[family.scenes.index(scene)]
        yield "cards", _candidate(did(family, slot), scene_language.note(room), path)


def answer_rows(seed: int, split: str, count: int, first_number: int) -> list[dict[str, Any]]:
    """The sentences that answer any question of the split, each once, numbered after everything else."""
    members = (family(seed, split, index, first_number + index) for index in range(count))
    sentences = sorted({answer for member in members for answer in member.answers if answer})
    base = (SPLITS.index(split) + 1) * 10**8
    return [_candidate(f"{DATASET_ID}:{base + place}", text, None) for place, text in enumerate(sentences)]


def query_rows(family: Family, split: str, world: World) -> Iterator[dict[str, Any]]:
    """The family's query of each task, with all that is relevant in the split."""
    (scene, changed), told, room = family.scenes, family.outlines[0].facts(), family.rooms[0]
    shot = image_path(family, split, "snapshot")
    answers = [world.by_answer[text] for text in family.answers if text]
    slots = [did(family, slot) for slot in range(SLOTS)]
    asked = {
        0: (family.asked, None, world.pictures(told), slots[:2]),
        1: (family.retold, None, world.by_caption[told], slots[2:4]),
        2: (f"{family.asked}, in the {room}", None, world.cards(told, room), slots[4:]),
        3: (None, shot, world.captions(scene), slots[2:4]),
        4: (None, shot, world.by_scene[scene], slots[:2]),
        6: (family.question, shot, answers[:1], answers),
        7: (family.edit, shot, world.by_scene[changed], slots[:2]),
        8: (f"in the {room}", shot, world.by_card[scene, room], slots[4:]),
    }
    for place, (task, (text, path, positives, near)) in enumerate(asked.items()):
        yield {
            "qid": f"{DATASET_ID}:{family.number * len(TASKS) + place}",
            "query_txt": text,
            "query_img_path": path,
            "query_modality": TASKS[task][0],
            "query_src_content": None,
            "pos_cand_list": positives,
            "neg_cand_list": [one for one in near if one not in positives],
            "task_id": task,
        }


def image_path(family: Family, split: str, which: str) -> str:
    """Relative to the root."""
    suffix = "jpg" if which == "snapshot" else "png"
    return f"mbeir_images/{DATASET}/{split}/{family.number:06d}_{which}.{suffix}"


def _candidate(identity: str, text: str | None, path: str | None) -> dict[str, Any]:
    modality = ",".join(name for name, part in (("image", path), ("text", text)) if part)
    return {"did": identity, "txt": text, "img_path": path, "modality": modality, "src_content": None}


def _draw(part: Part, index: int, family: Family) -> None:
    random = Random(f"{part.seed}/{part.split}/{index}/snapshot")
    pictures = {
        "scene": scene_drawing.clean(family.scenes[0], part.size),
        "change": scene_drawing.clean(family.scenes[1], part.size),
        "snapshot": scene_drawing.snapshot(family.scenes[0], part.size, random),
    }
    for which, data in pictures.items():
        (part.root / image_path(family, part.split, which)).write_bytes(data)


def _write_split(root: Path, split: str, texts: Iterable[dict[str, str]], answers: list[dict[str, Any]]) -> None:
    """Appends what the parts give, in order, to the files of a split."""
    answer_lines = {"answers": "".join(f"{json.dumps(row)}\n" for row in answers)}
    for part in (answer_lines, *texts) if answers else texts:
        for name, lines in part.items():
            for path in _files(split, name):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                with open(root / path, "a", encoding="utf-8") as file:
                    file.write(lines)


def _files(split: str, name: str) -> list[str]:
    """The files that lines of this name belong to."""
    if name.startswith("query"):
        if split == "train":
            return [f"query/train/mbeir_{DATASET}_train.jsonl"]
        return [f"query/{split}/mbeir_{DATASET}_task{name.removeprefix('query')}_{split}.jsonl"]
    if name.startswith("qrels"):
        task = name.removeprefix("qrels")
        return [] if split == "train" else [f"qrels/{split}/mbeir_{DATASET}_task{task}_{split}_qrels.txt"]
    pools = [f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl"]
    if split != "train":
        tasks = [task for task, (_, _, kind) in TASKS.items() if kind == name]
        pools += [f"cand_pool/local/mbeir_{DATASET}_task{task}_{split}_cand_pool.jsonl" for task in tasks]
    return pools


def _write_instructions(root: Path) -> None:
    lines = ["query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2"]
    for task, (query, target, _) in TASKS.items():
        lines.append("\t".join([query, target, DATASET, str(DATASET_ID), *INSTRUCTIONS[task]]))
    (root / INSTRUCTIONS_FILE).parent.mkdir(parents=True)
    (root / INSTRUCTIONS_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
