"""Instructions: chosen by data set and modalities, joined before the text."""

import pytest

from stages.data.instructions import Instructions, with_instruction

ROWS = [
    {"dataset_id": 9, "dataset": "b", "query_modality": "text", "target_modality": "image", "prompts": ["B."]},
    {"dataset_id": 1, "dataset": "a", "query_modality": "text", "target_modality": "image", "prompts": ["A.", "Aa."]},
    {"dataset_id": 1, "dataset": "a", "query_modality": "image", "target_modality": "text", "prompts": []},
]


def test_a_pick_goes_round_the_wordings():
    known = Instructions.from_json(ROWS)
    assert [known.choose(1, "text", "image", pick) for pick in range(3)] == ["A.", "Aa.", "A."]


def test_an_unknown_pair_has_no_instruction():
    known = Instructions.from_json(ROWS)
    assert known.choose(1, "image", "text") is None
    assert known.choose(2, "text", "image") is None
    assert known.any("image,text", "text") is None


def test_search_takes_the_first_data_set_that_knows_the_pair():
    assert Instructions.from_json(ROWS).any("text", "image") == "A."


def test_json_brings_the_same_back():
    known = Instructions.from_json(ROWS)
    assert Instructions.from_json(known.to_json()).to_json() == known.to_json()


@pytest.mark.parametrize(
    ("instruction", "text", "joined"),
    [
        ("Find it.", "a dog", "Find it.\na dog"),
        (None, "a dog", "a dog"),
        ("Find it.", None, "Find it."),
        ("", "", None),
    ],
)
def test_either_part_may_be_missing(instruction, text, joined):
    assert with_instruction(instruction, text) == joined
