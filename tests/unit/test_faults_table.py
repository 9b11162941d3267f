"""What the tests of faults compare, and that their table is whole; the faults themselves take an hour."""

import numpy as np
import pytest

from tests import kept
from tests.faults import outcomes as faults
from tests.faults.cases import CASES, FAILED
from tests.faults.outcomes import HEAD, WIDTH, Outcome
from tests.faults.same import apart
from tests.nodes import outcomes as nodes
from tests.support import ROOT


def test_numbers_are_apart_by_the_largest_difference():
    assert apart({}, {}) == 0
    assert apart({"a": 1.0, "b": np.float32([1, 2])}, {"a": 1.0, "b": np.float32([1, 2.5])}) == 0.5


@pytest.mark.parametrize("place", ["a", "b"])
def test_a_number_that_is_none_is_not_the_same_wherever_it_stands(place):
    numbers = {"a": 1.0, "b": 1.0}
    for one, other in ((numbers, numbers | {place: float("nan")}), (numbers | {place: np.float32([1, np.inf])},) * 2):
        with pytest.raises(AssertionError, match=f"{place} is not finite"):
            apart(one, other)


def test_forty_cases_of_every_stage_have_names_of_their_own():
    assert len({case.name for case in CASES}) == len(CASES) >= 40
    assert len({case.stage for case in CASES}) == 7


def test_the_page_has_a_row_for_every_case_and_no_other():
    lines = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert head == HEAD
    assert [f"{stage}: {what}" for stage, what, *_ in rows] == [case.name for case in CASES]


def test_a_line_that_is_too_long_for_a_cell_ends_with_a_whole_word():
    said = "no answer; " + "https://server/" + "x" * 100 + " the same command resumes"
    *_, cell, again, _, _ = Outcome("train: S3 away", FAILED, said, f"{said} {said}", 0, 1.0).row()
    assert cell == said and again == f"{said} no …" and len(again) <= WIDTH


@pytest.mark.parametrize(("subject", "document"), [("faults", faults.document), ("nodes", nodes.document)])
def test_a_page_is_only_written_where_tests_have_left_something(tmp_path, monkeypatch, capsys, subject, document):
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("as it was")
    assert kept.write_page(subject, "", document, ["--output", str(page)]) == 2
    said = capsys.readouterr()
    assert (
        said.out == ""
        and said.err.startswith(f"error: build/{subject}.json is not there; run")
        and said.err.count("\n") == 1
    )
    assert page.read_text() == "as it was"
    (tmp_path / "build").mkdir()
    kept.place(subject).write_text("[]")
    assert kept.write_page(subject, "", document, ["--output", str(page)]) == 0
    assert page.read_text() == document()
    with pytest.raises(SystemExit, match="0"):
        kept.write_page(subject, "what it is", document, ["--help"])
    assert "what it is" in capsys.readouterr().out


def test_what_a_second_command_takes_over_is_asked_of_every_stage_that_tells_it():
    kept = {case.stage: case.kept for case in CASES if case.kept}
    assert kept.keys() == {"ingest", "backbone", "features", "distill", "train", "index"}
