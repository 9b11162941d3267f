"""Mined negatives against a reference that looks at one query and one candidate at a time."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from stages.contract.params import Cluster
from stages.data.keys import content_id, hash_ids
from stages.data.schemas import NEGATIVES
from stages.mining import mine, negatives
from stages.mining.negatives import LEFT_OUT, QueryHashes, Rule, mine_block
from stages.search import exact
from tests.support import begin, rows
from tests.training_world import PAIRS, write_ingest

DIM = 8


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def column(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def world(seed: int, queries: int = 12, candidates: int = 60) -> tuple[list[dict], list[dict]]:
    """Random vectors; several positives, copies of contents, one query that is a candidate, one unmet positive."""
    draw = np.random.default_rng(seed)
    vectors_QD, vectors_ND = (unit(draw.normal(size=(size, DIM))) for size in (queries, candidates))
    pool = [
        {
            "did": f"1:{number}",
            "modality": ("text", "image")[number % 2],
            "text": f"text {number // 4}",
            "image_id": None,
            "vector": vectors_ND[number],
        }
        for number in draw.permutation(candidates)
    ]
    asked = [
        {
            "qid": f"1:{number}",
            "modality": "text",
            "target_modality": ("text", "image")[number % 2],
            "text": "text 3" if number == 5 else f"question {number}",
            "image_id": None,
            "positives": [f"1:{place}" for place in draw.choice(candidates, 1 + number % 3, replace=False)],
            "vector": vectors_QD[number],
        }
        for number in range(queries)
    ]
    asked[7]["positives"] = ["1:elsewhere"]
    return asked, pool


def mined(asked: list[dict], pool: list[dict], rule: Rule, batch: int = 17) -> list[dict]:
    queries = pa.Table.from_pylist([{name: value for name, value in row.items() if name != "vector"} for row in asked])
    queries = queries.append_column("vector", column(np.array([row["vector"] for row in asked])))
    stored = pa.table(
        {
            "did": [row["did"] for row in pool],
            "modality": [row["modality"] for row in pool],
            "did_hash": pa.array(hash_ids(row["did"] for row in pool)),
            "content_hash": pa.array(hash_ids(content_id(row["text"], row["image_id"]) for row in pool)),
            "vector": column(np.array([row["vector"] for row in pool])),
        }
    )
    table = mine_block(queries, lambda: stored.to_batches(max_chunksize=batch), rule)
    assert table.schema == NEGATIVES
    return table.to_pylist()


def expected(query: dict, pool: list[dict], rule: Rule) -> dict:
    """The same in words: one candidate after the other."""
    score = {row["did"]: float(query["vector"].astype(np.float32) @ row["vector"].astype(np.float32)) for row in pool}
    right = [row for row in pool if row["did"] in query["positives"]]
    contents = {row["text"] for row in right} | {query["text"]}
    farthest = min((score[row["did"]] for row in right), default=None)
    chosen, close, copies = [], [], 0
    for row in pool:
        if row["modality"] != query["target_modality"] or row in right:
            continue
        if row["text"] in contents:
            copies += 1
        elif farthest is None or score[row["did"]] >= farthest - (1 - rule.margin) * abs(farthest):
            close.append(row["did"])
        else:
            chosen.append(row["did"])
    rank = sorted(chosen, key=lambda did: (-score[did], did))
    left = sorted(close, key=lambda did: (-score[did], did))
    return {"positive": farthest, "negatives": rank[: rule.per_query], "copies": copies,
            "too_close": len(close), "left_out": left[:LEFT_OUT]}  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("rule", "batch", "tile", "block"),
    [(Rule(4, 0.95), 17, 32, 5), (Rule(3, 0.5), 60, 8192, 1024), (Rule(9, 1.0), 5, 7, 12)],
)
def test_blockwise_mining_is_what_one_by_one_gives(monkeypatch, seed, rule, batch, tile, block):
    monkeypatch.setattr(exact, "TILE", tile)
    monkeypatch.setattr(negatives, "BLOCK", block)
    asked, pool = world(seed)
    for row, query in zip(mined(asked, pool, rule, batch), asked, strict=True):
        right = expected(query, pool, rule)
        assert row["qid"] == query["qid"]
        assert {name: row[name] for name in ("negatives", "copies", "too_close", "left_out")} == {
            name: right[name] for name in ("negatives", "copies", "too_close", "left_out")
        }
        if right["positive"] is None:
            assert row["positive_score"] is None and row["limit"] is None and row["negatives"] == []
        else:
            assert row["positive_score"] == pytest.approx(right["positive"], abs=1e-6)
            assert all(score < row["limit"] <= row["positive_score"] for score in row["scores"])
            assert row["scores"] == sorted(row["scores"], reverse=True)
        assert len(row["scores"]) == len(row["negatives"])


def test_the_farthest_positive_sets_the_limit_also_below_zero():
    limits = Rule(1, 0.9).limits(np.array([0.5, -0.5, 0.0, np.nan], np.float32))
    np.testing.assert_allclose(limits, [0.45, -0.55, 0.0, -np.inf])


def test_a_pool_of_nothing_but_positives_gives_no_negative():
    asked, pool = world(0)
    asked[0]["positives"] = [row["did"] for row in pool]
    row = mined(asked[:1], pool, Rule(4, 0.95))[0]
    assert row["negatives"] == [] and row["too_close"] == row["copies"] == 0


def test_no_query_gives_no_row():
    asked, pool = world(0)
    table = pa.Table.from_pylist(asked[:1]).slice(0, 0)
    empty = table.set_column(table.schema.get_field_index("vector"), "vector", column(np.zeros((0, DIM), np.float16)))
    assert mine_block(empty, lambda: iter(()), Rule(1, 0.9)).num_rows == 0 and pool


def test_hashes_match_once_for_every_query_and_row():
    hashes = QueryHashes.of([np.array([5, 9], np.uint64), np.array([], np.uint64), np.array([5], np.uint64)])
    queries, rows = hashes.match(np.array([9, 5, 5, 1], np.uint64))
    assert sorted(zip(queries.tolist(), rows.tolist(), strict=True)) == [(0, 0), (0, 1), (0, 2), (2, 1), (2, 2)]


def test_a_part_of_a_killed_attempt_is_thrown_away_and_a_whole_one_kept(tmp_path):
    def killed(path):
        Path(path, "half.parquet").touch()
        raise KeyboardInterrupt

    output = SimpleNamespace(filesystem=LocalFileSystem(), work_uri=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        mine._once(output, "rows", killed)
    for write in (lambda path: Path(path, "whole.parquet").touch(), killed):
        assert mine._once(output, "rows", write) == [str(tmp_path / "mining" / "rows" / "whole.parquet")]


class EmbedsLengths:
    """Stands for the models of an actor: the vector of a row tells how long its text is."""

    batch_size = 4

    def reader(self, side):
        return SimpleNamespace(rows=lambda table: [(side, len(text or "")) for text in table["text"].to_pylist()])

    def encoder(self, name):
        return SimpleNamespace(encode=lambda rows, batch: np.array([[n, 1] for _, n in rows], float).reshape(-1, 2))


def embed_here(monkeypatch, store: Path, ingest, most: int = 2 * PAIRS) -> tuple[list[str], list[str]]:
    """`mine.embed` in shards of four rows by this process, which is killed after `most` of them."""

    def carry_out(context, models, work, *, label):
        for one in work[:most]:
            one(EmbedsLengths())
        if most < len(work):
            raise KeyboardInterrupt

    monkeypatch.setattr(mine, "carry_out", carry_out)
    monkeypatch.setattr(mine.checkpoint, "place", lambda artifact: "not loaded")
    context = replace(begin(store, "train", {"ingest": ingest}), cluster=Cluster(rows_per_shard=4))
    return mine.embed(context, ingest)


def test_shards_that_a_killed_run_embedded_are_taken_over_and_the_rest_is_embedded(tmp_path, monkeypatch, capfd):
    store = tmp_path / "store"
    ingest = write_ingest(store, validation=6)
    with pytest.raises(KeyboardInterrupt):
        embed_here(monkeypatch, store, ingest, most=4)
    files = embed_here(monkeypatch, store, ingest)
    assert "train: 4 of 6 shards of mining/candidates were there" in capfd.readouterr().err
    candidates, queries = (pa.concat_tables(map(pq.read_table, paths)) for paths in files)
    assert candidates["did"].to_pylist() == [f"9:{row}" for row in range(PAIRS)]
    assert candidates.column_names == list(negatives.COLUMNS)
    assert queries["qid"].to_pylist() == [f"9:{row}" for row in range(PAIRS - 6)]  # the others are for validation
    assert queries["vector"].to_pylist() == [[len(text or ""), 1] for text in queries["text"].to_pylist()]


def test_what_is_only_there_to_be_searched_is_not_trained_on():
    pools = [["union_train"], ["union_test", "union_train"], ["union_test"], [], ["union_test"]]
    table = pa.table({"did": ["a", "b", "c", "d", "e"], "pools": pools})
    kept = mine.keep_training(table, lambda dids: np.array([did == "e" for did in dids]))
    assert kept.to_pydict() == {"did": ["a", "b", "d", "e"]}


def test_where_all_candidates_are_searched_train_queries_tell_which_are_trained_on(tmp_path, monkeypatch):
    """As in pairs of a user's own, whose candidates are all in the pool of their task."""
    monkeypatch.setattr(mine, "_trains", lambda pools: False)
    ingest = write_ingest(tmp_path / "store", validation=6)
    candidates, _ = embed_here(monkeypatch, tmp_path / "store", ingest)
    named = [row for row in rows(ingest, "queries") if row["split"] == "train"]
    wanted = {did for row in named for did in (*row["positives"], *row["negatives"])}
    assert {did for path in candidates for did in pq.read_table(path)["did"].to_pylist()} == wanted
    assert len(wanted) < PAIRS
