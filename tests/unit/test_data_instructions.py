"""Instructions: chosen by data set and modalities, on a line before the text."""

import pytest

from stages.data.instructions import Instructions, before_text

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


@pytest.mark.parametrize(("instruction", "before"), [("Find it.", "Find it.\n"), (None, None), ("", None)])
def test_an_instruction_stands_on_a_line_of_its_own(instruction, before):
    assert before_text(instruction) == before
