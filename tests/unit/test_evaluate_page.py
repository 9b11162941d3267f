"""The page is one file that shows what metrics.json holds, escapes what it shows, and asks nobody for anything."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.store import open_store
from stages.data.ingest.wording import rejects_line
from stages.data.tables import MappedTable
from stages.evaluation import examples
from stages.evaluation.mbeir import SETS
from stages.evaluation.measures import trec_lines
from stages.evaluation.page import render
from stages.evaluation.sets import find_sets
from tests.search_world import COLOURS, ingest_rows, write_ingest
from tests.unit.test_evaluate_mbeir import shown as mbeir_metrics
from tests.unit.test_evaluate_report import NAMES, metrics, smaller

EVIL = '<script>alert("x")</script><img src="http://elsewhere/p.png">'
CURVE = {
    "layers": [{"layers": depth, "hit@5": depth / 30, "sets": {"a": depth / 30}} for depth in range(1, 29)],
    "chance hit@5": 0.05,
}
PARITY = {"loaders": {"puma": {"cosine": 1.0, "max_difference": 0.0}}, "not_run": {"vLLM": "it is not installed"}}


def case(rank: int | None) -> dict:
    tile = {"did": "1:1", "text": EVIL, "image": "data:image/webp;base64,AAAA"}
    result = {**tile, "score": 0.5, "relevant": rank == 1}
    shown = {"qid": EVIL, "task": NAMES[0], "instruction": EVIL, "query": tile, "positives": [tile]}
    return {**shown, "more_positives": 2, "results": [result], "rank": rank, "teacher": None}


def page(**changes) -> str:
    given = {"metrics": metrics(NAMES), "examples": {"good": [case(1)], "bad": [case(None)]}, "curve": CURVE}
    return render(**{**given, "facts": {"code": EVIL}, "parity": PARITY, **changes})


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.links = set(), []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]


def test_nothing_is_fetched_and_nothing_runs():
    parser = Links()
    parser.feed(page())
    assert not parser.tags & {"script", "link", "iframe", "object", "base"}
    assert parser.links and all(link.startswith("data:image/") for link in parser.links)
    assert "default-src 'none'" in page() and "url(" not in page()
    for drawn in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page()):
        assert b"<script" not in base64.b64decode(drawn)


def test_what_is_shown_is_escaped():
    assert EVIL not in page() and "&lt;script&gt;" in page()


def test_every_set_and_the_headline_are_there():
    shown = page()
    for name in NAMES:
        assert f"<td>{name.rpartition('_task')[0]} image+text→image+text</td>" in shown
    assert shown.count("0.450") >= len(NAMES) + 2 and "keeps 90%" in " ".join(shown.split())
    assert "not run: it is not installed" in shown and "looked for (2 more)" in shown
    assert "<td>ndcg@10</td>" in shown and "by bytes of a candidate" not in shown


def test_smaller_vectors_have_a_table_beside_their_bytes():
    measured = metrics(NAMES)
    measured["student"]["smaller"] = smaller(queries=96)
    shown = page(metrics=measured)
    cells = ("64 × float16", "128", "0.400", "0.050", "0.200", "0.025")
    assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in shown
    assert "Mean hit@5 by bytes of a candidate" in shown and "96 of 800 queries" in shown


def test_the_page_says_that_the_index_holds_smaller_vectors():
    measured = metrics(NAMES)
    measured["student"]["precision"] = "binary"
    assert "The index holds binary, and this is what it finds" in page(metrics=measured)


def test_of_an_untrained_teacher_the_page_shows_no_share():
    assert "It keeps 90% of the teacher's mean hit@5" in page() and "no number" not in page()
    shown = metrics(NAMES)
    del shown["kept"]
    raw = page(metrics=shown)
    assert "What it keeps of the teacher is no number" in raw and "It keeps" not in raw


def test_mbeirs_average_is_the_headline_of_its_sets():
    made = mbeir_metrics(list(SETS))
    average = f"<b>{made['student']['mbeir']['local']:.3f}</b>student, own pools"
    with_score = page(metrics=made, examples={"good": [], "bad": []})
    assert average in with_score and "16 of its 16 sets" in with_score and "M-BEIR" not in page().partition("All")[0]


def test_a_student_alone_and_a_run_without_curve_or_misses_have_a_page():
    alone = metrics(NAMES[:1])
    del alone["teacher"], alone["kept"]
    shown = page(metrics=alone, curve=None, parity=None, examples={"good": [case(1)], "bad": []})
    assert "measured without its teacher" in shown and "None among the queries looked at." in shown
    assert "<th>teacher</th>" not in shown


@pytest.mark.parametrize(
    ("rejects", "line"),
    [
        ({"queries": 0, "candidates": 0, "images": 0, "by_reason": {}}, "none"),
        (
            {
                "queries": 1200,
                "candidates": 3,
                "images": 2,
                "by_reason": {"a": 1, "b": 1, "c": 1, "missing image": 1200},
            },
            "1,200 queries, 3 candidates, 2 images (missing image 1,200, a 1, b 1, 1 more reasons)",
        ),
    ],
)
def test_rejected_rows_are_reported_in_a_line_with_their_reasons(rejects, line):
    assert rejects_line(rejects) == line
    assert line in page(facts={"rejected rows": line})


@pytest.fixture
def world(tmp_path, monkeypatch):
    """An ingest artifact, its sets, and run files where the first half of each set's queries hits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ingest = write_ingest(open_store(str(tmp_path / "store")))
    sets = find_sets(ingest, "test", 0)
    candidates = [row["did"] for row in ingest_rows()[1]]
    for one in sets:
        with (tmp_path / f"student.local.{one.name}.trec").open("w") as run:
            asked = [row for row in ingest_rows()[0] if row["split"] == "test" and row["task_id"] == one.task_id]
            for place, row in enumerate(asked):
                others = [did for did in candidates if did not in row["positives"]][:8]
                hit = place < len(asked) // 2
                ranked = [row["positives"][0], *others] if hit else [*others, row["positives"][0]]
                run.writelines(trec_lines(row["qid"], ranked, [1 - rank / 10 for rank in range(9)], "puma"))
    return ingest, sets, tmp_path / "student.local"


def test_found_and_missed_are_drawn_from_all_sets_with_their_pictures(world):
    ingest, sets, run = world
    found = examples.collect(ingest, "test", sets, {"student": Path(run), "teacher": Path(run)})
    assert {kind: len(cases) for kind, cases in found.items()} == {"good": examples.SHOWN, "bad": examples.SHOWN}
    for kind, cases in found.items():
        assert {one["task"] for one in cases} == {one.name for one in sets}
        assert {one["rank"] for one in cases} == {1 if kind == "good" else 9}
        assert all(one["teacher"] == one["rank"] and len(one["results"]) == examples.RESULTS for one in cases)
        assert all(
            [result["relevant"] for result in one["results"]] == [kind == "good"] + [False] * 4 for one in cases
        )
    pictured = next(one for one in found["good"] if one["query"]["image"])
    assert pictured["query"]["image"].startswith("data:image/webp;base64,")
    assert examples.collect(ingest, "test", sets, {"student": run})["good"][0]["qid"] == found["good"][0]["qid"]


def test_only_few_queries_are_looked_at_however_many_there_are(world, monkeypatch):
    ingest, sets, run = world
    looked = []
    monkeypatch.setattr(examples, "query_blocks", lambda ingest, split, few: looked.extend(few) or [])
    many = [replace(one, stored=10**6, asked=10**6) for one in sets]
    assert examples.collect(ingest, "test", many, {"student": run}) == {"good": [], "bad": []}
    assert max(one.asked for one in looked) <= 500 and len(COLOURS) < 500


def test_only_the_row_groups_with_what_is_shown_are_read_and_no_table_is_copied(world, monkeypatch):
    ingest, sets, run = world
    monkeypatch.setattr(MappedTable, "open", lambda *_, **__: pytest.fail("all pictures would come to the driver"))
    path = ingest.files("images")[0]
    images = pq.read_table(path)
    pq.write_table(images, path, row_group_size=1)
    monkeypatch.setattr(type(ingest), "files", lambda self, prefix: [f"{self.base}/{prefix}/part-0.parquet"])
    read, of_group = [], pq.ParquetFile.read_row_group

    def noted(file, group, columns=None):
        read.append(columns)
        return of_group(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    wanted = images["image_id"].to_pylist()[3:5]
    assert sorted(examples.find_rows(ingest, "images", "image_id", [*wanted, "none"])) == sorted(wanted)
    assert read.count(["image_id"]) == len(COLOURS) and read.count(None) == 2
    found = examples.collect(ingest, "test", sets, {"student": run})
    assert {len(one["results"]) for one in found["good"]} == {examples.RESULTS}
