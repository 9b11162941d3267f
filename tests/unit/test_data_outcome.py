"""What ingest counts of a source: which sets lost queries, which queries have no instruction, and what it says."""

from stages.data.ingest.outcome import Counts
from stages.data.ingest.wording import bare_line

TOLD = {"dataset_id": 7, "dataset": "toy", "query_modality": "text", "target_modality": "image", "prompts": ["Find."]}


def row(count: int, reason: str | None = None, **changes) -> dict:
    """A tally of queries."""
    known = {"split": "test", "dataset": "toy", "dataset_id": 7, "task_id": 0, "modality": "text"}
    known |= {"target_modality": "image", "dangling": 0, "source": "file:1"}
    return {**known, "reason": reason, "count": count, **changes}


def counts(*queries: dict) -> Counts:
    return Counts(list(queries), [], 0, 0, {}, [TOLD])


def test_rejected_queries_are_counted_by_their_set():
    found = counts(
        row(5),
        row(2, "missing image"),
        row(1, "dangling positives"),
        row(4, "broken JSON", dataset_id=None, modality=None, target_modality=None),
        row(8, "duplicate id"),  # its first row is asked
        row(16, "broken JSON", dataset=None),  # nobody knows where it belonged
        row(32, "missing image", split="val"),
        row(64, "missing image", task_id=3),
    ).stats()["queries"]["rejected_by_task"]
    assert found == {"train": {}, "val": {"toy_task0": 32}, "test": {"toy_task0": 7, "toy_task3": 64}}


def test_queries_without_an_instruction_are_counted_and_told():
    given = counts(row(5), row(3, target_modality="text"), row(1200, dataset="mine", dataset_id=9), row(9, "bad id"))
    told = given.stats()["queries"]
    assert told["without_instruction"] == {"mine text→image": 1200, "toy text→text": 3}
    line = bare_line(told)
    assert line.startswith("1,203 of 1,208 queries have no instruction (mine text→image 1,200, toy text→text 3)")


def test_nothing_is_said_where_all_have_one_or_nothing_is_known():
    assert bare_line(counts(row(5)).stats()["queries"]) == bare_line({}) == ""
