"""What a run tells at its end."""

from types import SimpleNamespace

import pytest

from pipeline.config.sections import Config
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
    lines = closing_lines({"index": index}, Config(store="s", seed=1))
    assert lines == [f"next: python pipeline/search.py --text {query} store=s"]


def test_the_next_command_names_the_place_of_the_store_as_a_shell_takes_it():
    index = SimpleNamespace(manifest={"config": {"data": {"kind": "pairs"}, "index": {"corpus": ""}}})
    (line,) = closing_lines({"index": index}, Config(store="s3://b/a shop", store_endpoint="http://h:9", seed=1))
    assert line.endswith(" 'store=s3://b/a shop' store_endpoint=http://h:9")


def test_rows_of_an_own_corpus_that_were_left_out_are_counted():
    config = {"data": {"kind": "scenes"}, "index": {"corpus": "photos"}}
    rejects = {"candidates": 2, "by_reason": {"truncated image": 1, "HEIC needs pillow-heif": 1}}
    index = SimpleNamespace(manifest={"config": config, "metrics": {"rejects": rejects}})
    said = "rejected rows of index.corpus: 2 candidates (truncated image 1, HEIC needs pillow-heif 1)"
    assert closing_lines({"index": index}, Config())[0] == said


def made(name: str, rejects: dict) -> SimpleNamespace:
    stats = {"stats.json": {"rejects": rejects}}
    return SimpleNamespace(uri=f"store/{name}/key", attempt="one", read_json=stats.__getitem__, has=lambda name: False)


def test_queries_without_an_instruction_are_a_warning_at_the_end_of_every_run():
    ingest = made("ingest", {})
    ingest.read_json("stats.json")["queries"] = {"kept": 9, "without_instruction": {"toy text→text": 4}}
    lines = closing_lines({"ingest": ingest}, Config())
    assert lines[0] == "rejected rows: none" and lines[1].startswith("warning: 4 of 9 queries have no instruction")


def test_a_run_that_ends_with_distillation_names_its_student_and_the_rows_of_both_sources():
    some = {"queries": 2, "by_reason": {"broken JSON": 2}}
    artifacts = {
        "ingest": made("ingest", {}),
        "distill.data": made("distill.data", some),
        "distill": made("distill", {}),
    }
    assert closing_lines(artifacts, Config()) == [
        "rejected rows: none",
        "rejected rows of distill.data: 2 queries (broken JSON 2)",
        "student: store/distill/key/one/model",
    ]
    trained = closing_lines({**artifacts, "train": made("train", {})}, Config())
    assert trained[-1] == "student: store/train/key/one/model"
