"""What a run over M-BEIR cost before these parts were mended, and costs now: measured, or counted if it is too large.

"Before" is commit 504c46f. Its ways are written here again, in the few lines that matter: a pass over the candidates
for each 1,024 queries and each pool, and vectors in Parquet with the writer's defaults. Passes and bytes are counted
from the blocks that the code has, for 190,000 test queries, 1.3 million train queries and 5.6 million candidates of
3,584 numbers in float16.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from stages.distributed.shards import parquet_options
from stages.evaluation import rank
from stages.mining import mine
from stages.search.exact import ExactIndex, asked_of, search_all
from stages.search.filters import Filter

ROWS, DIM, FILES = 16_384, 3_584, 2
QUERIES, BLOCK, K, ROUNDS = 4_096, 1_024, 50, 5
TEST, TRAIN, CANDIDATES = 190_000, 1_300_000, 5_600_000
FILTERS = (Filter("set"), Filter("union"))


def costs(directory: Path) -> dict[str, Any]:
    """Ranking 4,096 queries in two pools over 16,384 stored vectors, against a pass for each block and pool."""
    stored = {name: _write(directory / name, how) for name, how in (("plain", parquet_options), ("defaults", _none))}
    queries_QD = _vectors(QUERIES, seed=9)
    ranking = _in_turns(lambda: _together(stored["plain"], queries_QD), lambda: _apart(stored["defaults"], queries_QD))
    reading = _in_turns(lambda: _read(stored["plain"]), lambda: _read(stored["defaults"]))
    ratios = sorted(before / now for now, before in zip(*ranking, strict=True))
    return {
        "ratio": {"min": ratios[0], "median": median(ratios), "max": ratios[-1]},
        "section": _section(ranking, reading),
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


def _section(ranking: tuple[list[float], ...], reading: tuple[list[float], ...]) -> str:
    terabytes = CANDIDATES * DIM * 2 / 1e12
    before = _passes(TEST, BLOCK, 2)
    now = {device: _passes(TEST, queries) for device, queries in rank.QUERIES.items()}
    mined = {device: _passes(TRAIN, queries, 2) for device, queries in mine.QUERIES.items()}
    (rank_now, rank_before), (read_now, read_before) = (
        [f"{median(of):.2f}" for of in both] for both in (ranking, reading)
    )
    lines = [
        "| cost | before | now | how it was got |",
        "| --- | ---: | ---: | --- |",
        f"| CPU s to rank {QUERIES:,} queries in two pools over {ROWS:,} × {DIM:,} | {rank_before} | {rank_now} "
        f"| measured, the same lists; median of {ROUNDS} rounds in turns |",
        f"| CPU s to read {ROWS:,} × {DIM:,} from Parquet | {read_before} | {read_now} | measured, likewise |",
        f"| passes over the candidates to rank {TEST:,} queries | {before} "
        f"| {now['cpu']}, on GPUs {now['cuda']} | counted |",
        f"| TB read for it | {before * terabytes:.1f} | {now['cpu'] * terabytes:.2f}, on GPUs "
        f"{now['cuda'] * terabytes:.2f} | counted |",
        f"| passes over the candidates to mine for {TRAIN:,} queries | {_passes(TRAIN, BLOCK, 2):,} "
        f"| {mined['cpu']}, on GPUs {mined['cuda']} | counted |",
    ]
    return "\n".join(lines)
