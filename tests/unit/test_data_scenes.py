"""Scenes: repeatable, and their ground truth is the truth."""

import io
import json
from collections import Counter
from functools import cache
from itertools import pairwise, permutations
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from stages.data.images import ImageLimits, check
from stages.data.scenes import dataset, drawing, language, tasks
from stages.data.scenes.world import CELLS, SHAPES, Thing, change, facts, sample
from stages.data.sources import mbeir
from stages.ingest import Scenes

COUNTS = Scenes(train=24, val=40, test=60, size=32)
SAMPLES = range(300)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return dataset.make(tmp_path_factory.mktemp("scenes") / "made", COUNTS, seed=3)


def rows(root: Path, path: str) -> list[dict]:
    return [json.loads(line) for line in (root / path).read_text().splitlines()]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(root, tmp_path):
    again = dataset.make(tmp_path / "again", COUNTS, seed=3)
    other = dataset.make(tmp_path / "other", COUNTS, seed=4)
    assert contents(again) == contents(root) != contents(other)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_family_does_not_depend_on_how_many_there_are(tmp_path, root):
    more = dataset.make(tmp_path / "more", Scenes(train=30, val=40, test=60, size=32), seed=3)
    path = "mbeir_images/scenes/train/000005_snapshot.jpg"
    assert (more / path).read_bytes() == (root / path).read_bytes()


def test_it_is_a_real_mbeir_directory_with_all_eight_tasks(root):
    mbeir.require(root)
    assert {source.task_id for source in mbeir.query_files(root) if source.split == "test"} == {
        0,
        1,
        2,
        3,
        4,
        6,
        7,
        8,
    }
    assert all(source.qrels for source in mbeir.query_files(root) if source.split != "train")
    assert len(mbeir.instructions(root)) == 8
    assert sum(len(rows(root, source.path)) for source in mbeir.query_files(root)) == 8 * (24 + 40 + 60)


def test_every_reference_leads_to_a_row_or_a_good_picture(root):
    for split in ("train", "val", "test"):
        pool = rows(root, f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl")
        queries = [
            row for source in mbeir.query_files(root) if source.split == split for row in rows(root, source.path)
        ]
        known = {row["did"] for row in pool}
        assert len(known) == len(pool)
        assert len({row["qid"] for row in queries}) == len(queries)
        for row in queries:
            assert row["pos_cand_list"] and known.issuperset(row["pos_cand_list"] + row["neg_cand_list"])
        for path in {row["img_path"] for row in pool} | {row["query_img_path"] for row in queries}:
            if path:
                assert check((root / path).read_bytes(), ImageLimits()).width == 32


def test_ids_are_unique_over_all_splits(root):
    dids = [
        row["did"]
        for split in ("train", "val", "test")
        for row in rows(root, f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl")
    ]
    assert len(set(dids)) == len(dids)


def test_qrels_and_positives_agree(root):
    for source in mbeir.query_files(root):
        if source.qrels:
            found = [line.split() for line in (root / source.qrels).read_text().splitlines()]
            listed = [(row["qid"], did) for row in rows(root, source.path) for did in row["pos_cand_list"]]
            assert [(qid, did) for qid, _, did, _, _ in found] == listed
            assert {task for *_, task in found} == {str(source.task_id)}


def test_local_pools_leave_little_to_chance(root):
    big = tasks.judged_world(0, "val", 150, 0)
    for task, (_, _, kind) in tasks.TASKS.items():
        size = len(big.by_answer) if kind == "answers" else sum(map(len, getattr(big, POOL_OF[kind]).values()))
        asked = [
            row for member in big.families for row in tasks.query_rows(member, "val", big) if row["task_id"] == task
        ]
        chance = np.mean([1 - (1 - len(row["pos_cand_list"]) / size) ** 5 for row in asked])
        assert size >= 100 and chance <= 0.1, (task, size, chance)


POOL_OF = {"pictures": "by_scene", "captions": "by_caption", "cards": "by_card"}


def test_hard_negatives_are_close_and_false(root):
    for source in mbeir.query_files(root):
        if source.task_id in (2, 4, 7, 8):
            for row in rows(root, source.path):
                assert row["neg_cand_list"] and not set(row["neg_cand_list"]) & set(row["pos_cand_list"])


def test_relevance_is_complete_by_brute_force():
    """Judged anew from the things themselves, without facts."""
    world = tasks.judged_world(5, "val", 60, 0)
    pictures = {tasks.did(member, slot): member.scenes[slot] for member in world.families for slot in (0, 1)}
    outlines = {tasks.did(member, 2 + slot): member.outlines[slot] for member in world.families for slot in (0, 1)}
    for member in world.families:
        asked = {row["task_id"]: set(row["pos_cand_list"]) for row in tasks.query_rows(member, "val", world)}
        told = member.outlines[0]
        assert asked[0] == {did for did, scene in pictures.items() if shows(scene, told)}
        assert asked[3] == {did for did, outline in outlines.items() if shows(member.scenes[0], outline)}
        assert asked[4] == {did for did, scene in pictures.items() if scene == member.scenes[0]}
        assert asked[7] == {did for did, scene in pictures.items() if scene == member.scenes[1]}


def shows(scene, told) -> bool:
    """Whether some choice of things in the scene is as told."""
    return any(matches(chosen, told) for chosen in permutations(scene, len(told.scene)))


def matches(chosen, told) -> bool:
    for thing, like in zip(chosen, told.scene, strict=True):
        if (thing.shape, thing.colour) != (like.shape, like.colour):
            return False
        if told.sized and thing.size != like.size:
            return False
        if told.textured and like.texture == "striped" and thing.texture != "striped":
            return False
        if (told.placed or len(told.scene) == 1) and thing.cell != like.cell:
            return False
    if told.placed:
        return True
    pairs = zip(pairwise(chosen), pairwise(told.scene), strict=True)
    return all(lie_alike(*shown, *said) for shown, said in pairs)


def lie_alike(one: Thing, other: Thing, like: Thing, unlike: Thing) -> bool:
    """A caption tells left and right of neighbours in different columns, above and below of the others."""
    if like.column != unlike.column:
        return other.column - one.column == unlike.column - like.column
    return other.row - one.row == unlike.row - like.row


@cache
def pictured(shape: str) -> np.ndarray:
    scene = (Thing(0, shape, "black", "large", "plain"),)
    return np.asarray(Image.open(io.BytesIO(drawing.clean(scene, 32))))


def test_shapes_look_different():
    for one in SHAPES:
        for other in SHAPES:
            if one < other:
                assert np.abs(pictured(one).astype(int) - pictured(other)).mean() > 2


def test_a_picture_shows_its_colours_in_its_cells():
    scene = (Thing(1, "square", "blue", "large", "plain"), Thing(2, "circle", "red", "large", "plain"))
    image = Image.open(io.BytesIO(drawing.clean(scene, 64)))
    assert image.getpixel((48, 16)) == drawing.PAINT["blue"]
    assert image.getpixel((16, 48)) == drawing.PAINT["red"]
    assert image.getpixel((16, 16)) == image.getpixel((48, 48)) == drawing.GROUND


def test_scenes_repeat_no_shape_and_no_colour():
    for number in SAMPLES:
        scene = sample(Random(number))
        assert len({thing.shape for thing in scene}) == len({thing.colour for thing in scene}) == len(scene) <= 3
        assert [thing.cell for thing in scene] == sorted({thing.cell for thing in scene})


def test_a_change_changes_one_thing_and_keeps_the_scene_valid():
    instructions = Counter()
    for number in SAMPLES:
        random = Random(number)
        scene = sample(random)
        instruction, changed = change(scene, random)
        assert changed != scene and len(changed) == len(scene)
        assert len({thing.colour for thing in changed}) == len({thing.cell for thing in changed}) == len(scene)
        moved = set(scene) ^ set(changed)
        assert len(moved) == (4 if instruction.startswith("swap") else 2)
        instructions[instruction.split()[0]] += 1
    assert set(instructions) == {"make", "turn", "move", "swap"}


def test_relations_are_told_from_both_sides():
    scene = (Thing(0, "circle", "red", "large", "plain"), Thing(3, "square", "blue", "small", "plain"))
    assert {("left", "circle", "square"), ("above", "circle", "square")} <= facts(scene)
    assert not {("left", "square", "circle"), ("above", "square", "circle")} & facts(scene)


def test_what_an_outline_tells_is_true_of_its_scene():
    for number in SAMPLES:
        random = Random(number)
        scene = sample(random)
        assert language.outline(scene, random).facts() <= facts(scene)


def test_both_voices_name_everything_and_differ():
    for number in SAMPLES:
        random = Random(number)
        told = language.outline(sample(random), random)
        caption, retold = language.tell(told, random), language.retell(told, random)
        for thing in told.scene:
            assert f"{thing.colour} {thing.shape}" in caption
            assert f"{thing.colour} {language.OTHER_WORDS[thing.shape]}" in retold
        assert caption != retold


def test_sides_are_named_rightly():
    scene = (Thing(0, "circle", "red", "large", "plain"), Thing(1, "square", "blue", "small", "plain"))
    told = language.Outline(scene, sized=False, textured=False, placed=False)
    said = {language.retell(told, Random(number)) for number in range(20)}
    assert said == {
        "a red disc lies to the left of a blue box",
        "a blue box lies to the right of a red disc",
    }


def test_answers_are_right():
    scene = (Thing(0, "circle", "red", "large", "plain"), Thing(2, "square", "blue", "small", "striped"))
    said = {question: language.answer(question, scene) for question in language.questions(scene)}
    assert said["what is at the top left?"] == "at the top left is a large plain red circle"
    assert said["what is below the circle?"] == "below the circle is a small striped blue square"
    assert said["how many shapes are there, and of which colours?"] == "there are two shapes: blue and red"
    assert said["which shapes are there, and how many?"] == "the picture shows two shapes: circle and square"
    assert "what is to the left of the circle?" not in said
    assert language.answer(f"what is at the {CELLS[1]}?", scene) is None


def test_a_question_with_two_answers_is_not_asked():
    things = [Thing(0, "circle", "red", "large", "plain"), Thing(1, "star", "blue", "large", "plain")]
    scene = (*things, Thing(2, "square", "black", "small", "plain"))
    assert language.answer("what is to the left of the star?", scene) is None
    assert language.answer("what is to the right of the square?", scene)


def test_the_world_is_large_enough_to_need_understanding():
    scenes_seen = Counter(sample(Random(number)) for number in range(2000))
    assert len(scenes_seen) > 1500
