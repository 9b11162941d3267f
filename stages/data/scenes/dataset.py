"""Makes a complete M-BEIR directory of drawn scenes: all eight tasks, exact judgements, true hard negatives.

What the rows are is decided in `tasks`; here they are drawn and written, in parts that any number of processes may
make. The directory is the published layout to the letter, so that scenes go through the same door as real data.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from stages.data.scenes import drawing
from stages.data.scenes.tasks import (
    DATASET,
    DATASET_ID,
    TASKS,
    SceneFamily,
    answer_rows,
    candidate_rows,
    image_path,
    judged_world,
    query_rows,
)
from stages.data.schemas import SPLITS
from stages.data.sources.mbeir import INSTRUCTIONS_FILE

FAMILIES_PER_PART = 64
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

Each = Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]]
"""`map`, or something that does the same in parallel."""


@dataclass(frozen=True)
class Part:
    """The families from `start` to `stop` of a split, which has `count` numbered from `first_number`."""

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
        starts = range(0, count, FAMILIES_PER_PART)
        stops = [min(start + FAMILIES_PER_PART, count) for start in starts]
        parts = [
            Part(root, seed, split, count, first_number, start, stop, counts.size)
            for start, stop in zip(starts, stops, strict=True)
        ]
        for texts in each(make_part, parts):
            _append(root, split, texts)
        first_number += count
    _write_instructions(root)
    return root


def make_part(part: Part) -> dict[str, str]:
    """Draws the pictures of a part; {"pictures" …: candidate lines, "query0" …: lines, "qrels0" …: lines}."""
    world = judged_world(part.seed, part.split, part.count, part.first_number)
    texts: dict[str, list[str]] = defaultdict(list)
    for kind, row in answer_rows(world) if part.start == 0 else ():
        texts[kind].append(json.dumps(row))
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


def _draw(part: Part, index: int, family: SceneFamily) -> None:
    random = Random(f"{part.seed}/{part.split}/{index}/snapshot")
    pictures = {
        "scene": drawing.clean(family.scenes[0], part.size),
        "change": drawing.clean(family.scenes[1], part.size),
        "snapshot": drawing.snapshot(family.scenes[0], part.size, random),
    }
    for which, data in pictures.items():
        (part.root / image_path(family, part.split, which)).write_bytes(data)


def _append(root: Path, split: str, texts: dict[str, str]) -> None:
    """Appends what a part gives to the files of its split; a pool is written to every task that asks it."""
    for name, lines in texts.items():
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
