"""What a run tells at its end."""

from types import SimpleNamespace

import pytest

from pipeline.execution.summary import closing_lines


@pytest.mark.parametrize(
    "kind, corpus, query",
    [
        ("scenes", "", "'a red circle'"),
        ("scenes", "photos", "'WHAT YOU LOOK FOR'"),
        ("mbeir", "", "'WHAT YOU LOOK FOR'"),
    ],
)
def test_the_next_command_asks_what_the_corpus_may_answer(kind, corpus, query):
    index = SimpleNamespace(manifest={"config": {"data": {"kind": kind}, "index": {"corpus": corpus}}})
    lines = closing_lines({"index": index}, ["store=s", "seed=1"])
    assert lines == [f"next: python pipeline/search.py --text {query} store=s"]
