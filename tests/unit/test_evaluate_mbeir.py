"""M-BEIR's score on a fixture of all its data sets: by hand, and by UniIR's rules from run files and qrels alone."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from stages.data.sources.mbeir import query_files
from stages.distributed.embedding import vector_column
from stages.evaluate import Ranker, summarise
from stages.evaluation import smaller
from stages.evaluation.comparison import labels, score_meaning
from stages.evaluation.mbeir import SETS, measure_of, score
from stages.evaluation.rank import Pools, Tally, rank_blocks
from stages.evaluation.report import WIDTH, set_rows, terminal_table
from stages.evaluation.sets import EvaluationSet
from stages.search.exact import ExactIndex
from tests.mbeir_files import write_lines
from tests.unit.test_evaluate_report import metrics

DEPTH = 12  # candidates of each local pool
RANKS = ((1, 7), (1, 4, 11))
"""Where each query's positive stands in its own pool, in sets at even places of the paper's table and in others."""


def places(number: int) -> tuple[int, ...]:
    return RANKS[number % 2]


def asked_sets(root: Path) -> list[EvaluationSet]:
    """The sets that the published names of the query files make, in the order of these names."""
    for name in SETS:
        write_lines(root, f"query/test/mbeir_{name}_test.jsonl", [])
    files = query_files(root)
    sizes = {name: len(places(number)) for number, name in enumerate(SETS)}
    found = [EvaluationSet(file.dataset or "", file.task_id or 0, "text", "image", None, 0, 0) for file in files]
    return [
        EvaluationSet(one.dataset, one.task_id, "text", "image", one.name, sizes[one.name], sizes[one.name])
        for one in found
    ]


def corpus(path: Path) -> ExactIndex:
    """The candidate of place p in pool s stands at rank p there, and at rank 16 (p - 1) + s + 1 in the union."""
    order = [(place, number) for place in range(1, DEPTH + 1) for number in range(len(SETS))]
    first_N = 0.99 - 0.00125 * np.arange(len(order), dtype=np.float32)  # apart by more than half precision needs
    columns = {
        "did": [f"{number}:{place}" for place, number in order],
        "modality": ["image"] * len(order),
        "pools": [[SETS[number], "union_test"] for _, number in order],
    }
    vectors = vector_column(np.stack([first_N, np.sqrt(1 - first_N**2)], axis=1), "test")
    pq.write_table(pa.table(columns).append_column("vector", vectors), path)
    return ExactIndex((str(path),), LocalFileSystem())


def queries() -> pa.Table:
    """Three positives for each query: the one that is ranked, and two that no pool holds."""
    rows = [(number, place) for number in range(len(SETS)) for place in places(number)]
    columns = {
        "qid": [f"{number}:q{place}" for number, place in rows],
        "dataset": [SETS[number].rpartition("_task")[0] for number, _ in rows],
        "task_id": [int(SETS[number][-1]) for number, _ in rows],
        "positives": [[f"{number}:{place}", f"{number}:98", f"{number}:99"] for number, place in rows],
    }
    ones = np.tile(np.float32([1, 0]), (len(rows), 1))
    return pa.table(columns).append_column("vector", vector_column(ones, "test"))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[list[EvaluationSet], Pools, dict[tuple[str, str], Tally]]:
    folder = tmp_path_factory.mktemp("mbeir")
    sets = asked_sets(folder)
    sizes = dict.fromkeys(SETS, DEPTH) | {"union_test": DEPTH * len(SETS)}
    pools = Pools("union_test", sizes, sizes["union_test"])
    (tallies,) = rank_blocks([queries()], sets, pools, corpus(folder / "corpus.parquet"), 50, "puma")
    return sets, pools, tallies


def measured(world) -> dict:
    sets, pools, tallies = world
    return summarise(Ranker(None, sets, pools), {"student": tallies}, {}, True)


def test_the_average_is_the_one_computed_by_hand(world) -> None:
    # hit@5 is 1/2 for the eight even sets and 2/3 for the others; three of the even ones count by hit@10, which is 1.
    local = (3 * 1 + 5 * 1 / 2 + 8 * 2 / 3) / 16
    # In the union only the first of a pool is found: sets 0 to 4 by five, set 8 (Fashion200K) by ten, set 12 is 13th.
    union = (4 * 1 / 2 + 2 * 1 / 3) / 16
    found = measured(world)["student"]
    assert found["mbeir"] == {"local": pytest.approx(local), "union": pytest.approx(union)}
    assert found["local"]["hit@5"] == pytest.approx((8 * 1 / 2 + 8 * 2 / 3) / 16)  # the plain mean says less


def uniir(run: list[str], qrels: str, k: int) -> float:
    """Recall@k as UniIR has it: 1 where any positive is among the first k, over all queries of the qrels."""
    relevant, ranked = defaultdict(set), defaultdict(dict)
    for line in qrels.splitlines():
        qid, _, did, relevance, _ = line.split()
        if int(relevance) > 0:
            relevant[qid].add(did)
    for line in run:
        qid, _, did, rank, *_ = line.split()
        ranked[qid][int(rank)] = did
    hits = [bool(dids & {ranked[qid].get(rank) for rank in range(1, k + 1)}) for qid, dids in relevant.items()]
    return sum(hits) / len(hits)


def test_the_run_files_give_the_same_by_the_rules_of_uniir(world) -> None:
    table = queries().to_pylist()
    for scope in ("local", "union"):
        values = []
        for name in SETS:
            asked = [row for row in table if f"{row['dataset']}_task{row['task_id']}" == name]
            qrels = "".join(f"{row['qid']} 0 {did} 1 {row['task_id']}\n" for row in asked for did in row["positives"])
            qrels += "".join(f"{row['qid']} 0 {row['qid'].partition(':')[0]}:2 0 0\n" for row in asked)
            fashion = name.startswith(("fashion200k", "fashioniq"))
            values.append(uniir(world[2][name, scope].trec, qrels, 10 if fashion else 5))
        assert measured(world)["student"]["mbeir"][scope] == pytest.approx(sum(values) / 16)


def test_sixteen_sets_of_ten_data_sets_and_eight_tasks() -> None:
    assert len(set(SETS)) == 16
    assert len({name.rpartition("_task")[0] for name in SETS}) == 10
    assert {name[-1] for name in SETS} == set("01234678")
    assert [name for name in SETS if measure_of(name) == "hit@10"] == [
        "fashion200k_task0",
        "fashion200k_task3",
        "fashioniq_task7",
    ]


def model(names: list[str]) -> dict:
    tasks = {name: {"hit@5": 0.2, "hit@10": 0.6} for name in names}
    return {scope: {"tasks": tasks} for scope in ("local", "union")}


def test_other_sources_have_no_such_score_and_a_part_of_mbeir_has_the_mean_of_that_part() -> None:
    assert score(model(["grocery_task0", "pairs_task1"])) == {}
    assert score(model(["fashioniq_task7", "cirr_task7", "mine_task0"]))["mbeir"]["local"] == pytest.approx(0.4)


def test_a_set_of_which_all_queries_were_rejected_counts_as_nothing_found(world) -> None:
    sets, pools, tallies = world
    lost = {"edis_task2": 3, "mine_task0": 9}
    rest = [one for one in sets if one.name != "edis_task2"]
    whole, found = (
        summarise(Ranker(None, some, pools, rejected), {"student": tallies}, {}, True)
        for some, rejected in ((sets, {}), (rest, lost))
    )
    edis = whole["student"]["local"]["tasks"]["edis_task2"]["hit@5"]
    assert edis > 0 and "edis_task2" not in found["student"]["local"]["tasks"]
    assert found["student"]["mbeir"]["local"] == pytest.approx(whole["student"]["mbeir"]["local"] - edis / 16)
    assert found["chance"]["mbeir"]["union"] < whole["chance"]["mbeir"]["union"]
    assert found["rejected_sets"] == lost and "rejected_sets" not in whole
    assert "over 16 of its 16 sets, with 0 for edis_task2, whose queries were all rejected:" in score_meaning(found)
    assert smaller.means(rest, tallies, lost)["mbeir"] == found["student"]["mbeir"]


def shown(names: list[str]) -> dict:
    """Made-up metrics with a score: all measures are the same but hit@10."""
    made = metrics(names)
    for name in ("student", "teacher", "cut", "asymmetric", "chance"):
        for scope in ("local", "union"):
            for task in made[name][scope]["tasks"].values():
                task["hit@10"] = 0.9
        made[name] |= score(made[name])
    return made


def test_the_tables_have_the_papers_order_its_measures_and_its_average() -> None:
    made = shown([*sorted(SETS), "mine_task0"])
    assert [name for name in labels(made)] == [*SETS, "mine_task0"]
    *rows, last = set_rows(made, "local")
    assert [row[0].endswith(" @10") for row in rows] == [measure_of(name) == "hit@10" for name in [*SETS, "mine"]]
    assert rows[2][5] == "0.900" and rows[3][5] == "0.450"  # the student in Fashion200K and in WebQA
    assert last[0] == "M-BEIR" and last[5] == f"{(3 * 0.9 + 13 * 0.45) / 16:.3f}"


def test_the_terminal_has_the_average_as_its_headline_and_says_what_it_is() -> None:
    lines = terminal_table(shown(list(SETS))).splitlines()
    assert lines[0].startswith("M-BEIR: student beside teacher") and max(map(len, lines)) <= WIDTH
    assert any(line.strip().startswith("M-BEIR, local pools") for line in lines)
    assert any("over 16 of its 16 sets: hit@10 for Fashion200K and FashionIQ, else hit@5" in line for line in lines)
    assert not any("M-BEIR" in line for line in terminal_table(metrics(["shop_task0"])).splitlines())
