"""The retriever asks what evaluation asks, and refuses in one line what can't be asked."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from stages.contract.context import InputError
from stages.search.retriever import Retriever, check_query
from tests.search_world import COLOURS, make_world, picture, write_index


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """A store with an index, and the retriever over it."""
    home = tmp_path_factory.mktemp("retriever")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        store, artifacts = make_world(home / "store")
        artifacts["index"] = write_index(store, artifacts)
        yield {"store": store, **artifacts, "retriever": load(artifacts)}


def load(artifacts: dict) -> Retriever:
    return Retriever.load(artifacts["index"], artifacts["ingest"], artifacts["train"])


def test_a_text_is_asked_as_evaluation_asks_it(world: dict) -> None:
    from stages.model.encoder import Encoder
    from stages.model.rows import Row

    found = world["retriever"].search(text="something red", want="image", k=3)
    encoder = Encoder.load(world["train"].local("model"))
    query = encoder.encode([Row("Find the picture.\nSomething red.")])
    shown = encoder.encode([Row(None, picture(colour).bytes) for colour in COLOURS])
    best = np.sort((query @ shown.T)[0])[::-1][:3]
    assert [result.score for result in found] == pytest.approx(best, abs=2e-3)
    assert all(result.modality == "image" and result.text is None for result in found)


def test_a_result_carries_what_ingest_stored(world: dict) -> None:
    wanted = ("image", "text")
    found = {result.id: result for want in wanted for result in world["retriever"].search("red", want=want, k=100)}
    assert len(found) == 24
    assert found["9:0"].image == picture("red").image_id
    assert found["9:100"].text == "A red square."
    assert world["retriever"].picture(found["9:0"].image) == (picture("red").bytes, "png")


def test_results_are_of_the_wanted_modality_only(world: dict) -> None:
    found = world["retriever"].search(image=picture("red").bytes, want="text", k=100)
    assert {result.modality for result in found} == {"text"} and len(found) == 12


def test_the_instruction_follows_from_both_modalities(world: dict) -> None:
    retriever = world["retriever"]
    assert retriever.ask("Red.", None, "image").instruction == "Find the picture."
    assert retriever.ask(None, picture("red"), "text").instruction == "Describe the picture."
    assert retriever.ask("Red.", picture("red"), None).instruction is None


def test_without_a_want_a_kind_is_found_that_training_knew(world: dict) -> None:
    # There is no instruction for image→image, so a picture finds texts although pictures are preferred.
    assert {result.modality for result in world["retriever"].search(image=picture("red").bytes)} == {"text"}
    assert {result.modality for result in world["retriever"].search(text="red")} == {"image"}


def test_a_task_that_training_did_not_know_finds_any_kind(world: dict) -> None:
    found = world["retriever"].search(text="red", image=picture("red").bytes, k=100)
    assert {result.modality for result in found} == {"image", "text"}


def test_a_modality_that_the_index_lacks_is_refused(world: dict) -> None:
    with pytest.raises(InputError, match="no candidate of modality image,text; it holds: image text"):
        world["retriever"].search(text="red", want="image,text")


def test_a_picture_that_is_none_is_refused(world: dict) -> None:
    with pytest.raises(InputError, match="unknown format"):
        world["retriever"].search(image=b"hello")


def test_an_index_of_an_older_student_is_refused(world: dict) -> None:
    newer = replace(world["train"], manifest={**world["train"].manifest, "attempt": "another"})
    with pytest.raises(InputError, match="the index is older than its train"):
        load({**world, "train": newer})


@pytest.mark.parametrize(
    "text, want, k, message",
    [
        (None, None, 10, "nothing to search for"),
        ("", None, 10, "the text is empty"),
        (' "" ', None, 10, "the text is empty"),
        ("<|image_pad|>[RET]", None, 10, "the text is empty"),
        ("red", None, 0, "asks for no result"),
        ("red", "video", 10, "'video' can't be wanted"),
        ("\udcff", None, 10, "not valid UTF-8"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(text: str | None, want: str | None, k: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_query(text, want, k, has_image=False)
    assert "\n" not in str(caught.value)
