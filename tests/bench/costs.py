"""What a run over M-BEIR cost before these parts were mended, and costs now: measured, or counted if it is too large.

"Before" is commit 504c46f. Its ways are written here again, in the few lines that matter: a pass over the candidates
for each 1,024 queries and each pool, and vectors in Parquet with the writer's defaults. Passes and bytes are counted
from the groups that the code makes of blocks, for 190,000 test queries, 1.3 million train queries and 5.6 million
candidates of 3,584 numbers in float16; what else is counted stands in `tests.bench.counted`.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from stages.distributed.shards import parquet_options
from stages.evaluate import grouped
from stages.evaluation import sets
from stages.mining import mine
from stages.search.exact import ExactIndex, asked_of, search_all
from stages.search.filters import Filter
from tests.bench import counted
from tests.bench.turns import ratio

ROWS, DIM, FILES = 16_384, 3_584, 2
QUERIES, BLOCK, K, ROUNDS = 2_048, 1_024, 50, 3
TEST, TRAIN, CANDIDATES = 190_000, 1_300_000, 5_600_000
FILTERS = (Filter("set"), Filter("union"))
MACHINES = (("cpu", 4, "4 CPUs"), ("cpu", 384, "384 CPUs"), ("cuda", 4, "4 GPUs"), ("cuda", 32, "32 GPUs"))
"""What ranks, how many tasks of it run at once, and in words."""


def costs(directory: Path) -> dict[str, Any]:
    """Ranking 2,048 queries in two pools over 16,384 stored vectors, against a pass for each block and pool."""
    stored = {name: _write(directory / name, how) for name, how in (("plain", parquet_options), ("defaults", _none))}
    queries_QD = _vectors(QUERIES, seed=9)
    ranking = _in_turns(lambda: _together(stored["plain"], queries_QD), lambda: _apart(stored["defaults"], queries_QD))
    reading = _in_turns(lambda: _read(stored["plain"]), lambda: _read(stored["defaults"]))
    now, before = ranking
    return {
        "ratio": ratio(before, now),
        "ours": {"CPU s": median(now)},
        "rival": {"CPU s": median(before)},
        "section": _section(ranking, reading, counted.rows(directory)),
    }


def _vectors(rows: int, seed: int) -> np.ndarray:
    """Unit vectors float32 [rows, DIM]."""
    drawn = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _none(schema: pa.Schema) -> dict[str, Any]:
    return {}


def _write(root: Path, how: Callable[[pa.Schema], dict[str, Any]]) -> ExactIndex:
    """An index of stored vectors; half of the rows are in the pool of a set, all in the union."""
    root.mkdir()
    each = ROWS // FILES
    for file in range(FILES):
        table = pa.table(
            {
                "did": [f"{file}:{row}" for row in range(each)],
                "pools": [["set", "union"] if row % 2 else ["union"] for row in range(each)],
                "vector": pa.FixedSizeListArray.from_arrays(
                    pa.array(_vectors(each, file).astype(np.float16).reshape(-1)), DIM
                ),
            }
        )
        pq.write_table(table, root / f"{file}.parquet", **how(table.schema))
    return ExactIndex(tuple(sorted(map(str, root.glob("*.parquet")))), LocalFileSystem())


def _together(index: ExactIndex, queries_QD: np.ndarray) -> list[list[str]]:
    """All queries and both pools in one pass."""
    asked = [asked_of(queries_QD[start : start + BLOCK], FILTERS) for start in range(0, QUERIES, BLOCK)]
    found = search_all(index.batches(["did", "pools", "vector"]), asked, K)
    return [dids for block in found for dids in block[1].dids]


def _apart(index: ExactIndex, queries_QD: np.ndarray) -> list[list[str]]:
    """A pass for each block of queries and each pool."""
    dids = []
    for start in range(0, QUERIES, BLOCK):
        for chosen in FILTERS:
            (found,) = index.search(queries_QD[start : start + BLOCK], K, chosen)
        dids += found.dids
    return dids


def _read(index: ExactIndex) -> int:
    return sum(batch.num_rows for batch in index.batches(["vector"]))


def _in_turns(now: Callable[[], Any], before: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """CPU seconds of both ways, round by round.

    Raises:
        AssertionError: they find different things.
    """
    assert now() == before(), "the two ways differ"
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for way, times in zip((now, before), took, strict=True):
            start = sum(os.times()[:2])
            way()
            times.append(sum(os.times()[:2]) - start)
    return took


def _passes(queries: int, block: int, each: int = 1) -> int:
    return each * math.ceil(queries / block)


def _ranking() -> list[counted.Row]:
    """Passes over the candidates, by the groups that the stage makes."""
    terabytes, before = CANDIDATES * DIM * 2 / 1e12, _passes(TEST, BLOCK, 2)
    blocks = [str(number) for number in range(math.ceil(TEST / sets.BLOCK))]
    found = []
    for device, slots, who in MACHINES:
        passes = len(grouped(blocks, device, slots, CANDIDATES))
        what = f"passes over the candidates to rank {TEST:,} queries on {who}, and TB read"
        now = f"{passes}, {passes * terabytes:.2f}"
        found.append((what, f"{before}, {before * terabytes:.1f}", now, "counted, by the tasks that the stage makes"))
    return found


def _mining() -> counted.Row:
    """Passes over the candidates; a task takes as many queries however many machines there are."""
    mined = {device: _passes(TRAIN, queries, 2) for device, queries in mine.QUERIES.items()}
    what = f"passes over the candidates to mine for {TRAIN:,} queries"
    now = f"{mined['cpu']}, on GPUs, whatever their number, {mined['cuda']}"
    return (what, f"{_passes(TRAIN, BLOCK, 2):,}", now, "counted")


def _section(ranking: tuple[list[float], ...], reading: tuple[list[float], ...], more: list[counted.Row]) -> str:
    (rank_now, rank_before), (read_now, read_before) = (
        [f"{median(of):.2f}" for of in both] for both in (ranking, reading)
    )
    ranked = f"CPU s to rank {QUERIES:,} queries in two pools over {ROWS:,} × {DIM:,}"
    rows: list[counted.Row] = [
        (ranked, rank_before, rank_now, f"measured, the same lists; median of {ROUNDS} rounds in turns"),
        (f"CPU s to read {ROWS:,} × {DIM:,} from Parquet", read_before, read_now, "measured, likewise"),
        *_ranking(),
        _mining(),
        *more,
    ]
    lines = ["| cost | before | now | how it was got |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", fill(counted.sorting(), 119, break_long_words=False)])
