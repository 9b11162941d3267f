"""Bytes of a candidate against quality: the student's vectors, at each length it was trained for, in each precision.

Made from the vectors that index and evaluate have: they are cut, coded and decoded while the corpus streams by, so
that memory is a tile whatever the corpus; a pass before finds the ranges of int8. All rows of the table are asked by
the same queries, at most QUERIES of them, as many of each set: a difference is told by fewer queries than a quality,
because what is easy or hard is so in every row.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from stages.evaluation import mbeir
from stages.evaluation.measures import mean
from stages.evaluation.rank import Pools, Tally, rank_blocks
from stages.evaluation.sets import BLOCK, EvaluationSet, limited, pick
from stages.search.columns import vectors
from stages.search.exact import ExactIndex
from stages.search.leading import Leading, shorten
from stages.search.precision import FLOAT16, INT8, PRECISIONS, Coded, Precision, find_ranges

QUERIES = 4096
DEPTH = 10  # no measure looks further

Tallies = dict[tuple[str, str], Tally]


def choose(
    paths: Sequence[str], filesystem: Any, sets: Sequence[EvaluationSet]
) -> tuple[list[EvaluationSet], pa.Table]:
    """The sets with at most an even share of QUERIES each, and these queries with their vectors, of stored blocks."""
    share = max(1, QUERIES // len(sets))
    fewer = [limited(replace(one, stored=one.asked), share, one.missed) for one in sets]
    stored = pyarrow.dataset.dataset(list(paths), filesystem=filesystem, format="parquet")
    return fewer, pa.Table.from_batches(pick(stored.to_batches(), fewer), stored.schema).combine_chunks()


def find_precisions(index: ExactIndex, dims: Sequence[int]) -> list[Precision]:
    """Each length in each precision, with the ranges of int8 over all candidates, from one pass."""
    parts = ([vectors(read(batch, dim, index.dim)) for dim in dims] for batch in index.batches(["vector"]))
    ranges_2S = find_ranges(np.concatenate(lengths, axis=1) for lengths in parts)
    by_dim = dict(zip(dims, np.split(ranges_2S, np.cumsum(dims)[:-1], axis=1), strict=True))
    return [Precision(name, dim, by_dim[dim] if name == INT8 else None) for dim in dims for name in PRECISIONS]


def rank(
    queries: pa.Table,
    sets: Sequence[EvaluationSet],
    pools: Pools,
    index: ExactIndex,
    precisions: Sequence[Precision],
    device: str,
) -> list[Tallies]:
    """For each length and precision a tally for each (set, "local" | "union")."""
    found = []
    for precision in precisions:
        asked = read(queries, precision.dim, index.dim)
        shorter = index if precision.dim == index.dim else Leading(index, precision.dim)
        coded = shorter if precision.name == FLOAT16 else Coded(shorter, precision)
        found += rank_blocks([asked], sets, pools, coded, DEPTH, None, device)
    return found


def read(rows: Any, dim: int, whole: int) -> Any:
    """A table or record batch with the leading values of its vectors, or as it is where these are all."""
    return rows if dim == whole else shorten(rows, dim)


def shares(queries: pa.Table, most: int) -> list[pa.Table]:
    """The queries as tables of like sizes, for at most so many tasks: each reads the corpus for a block at least."""
    count = min(most, -(-queries.num_rows // BLOCK))
    return [queries.take(pa.array(range(start, queries.num_rows, count))) for start in range(count)]


def tabulate(
    sets: Sequence[EvaluationSet],
    precisions: Sequence[Precision],
    parts: Sequence[Sequence[Tallies]],
    lost: Collection[str] = (),
) -> list[dict[str, Any]]:
    """A row for each length and precision, of which the whole vector as float16 is what others lose against.

    Args:
        parts: what `rank` gave of each share of the queries.
        lost: as `means` has it.
    """
    rows: list[dict[str, Any]] = []
    for precision, *tallies in zip(precisions, *parts, strict=True):
        size = {"dim": precision.dim, "precision": precision.name, "bytes": precision.nbytes}
        rows.append({**size, **means(sets, total(sets, tallies), lost)})
    best = max((row for row in rows if row["precision"] == FLOAT16), key=lambda row: row["dim"])
    for row in rows:
        row["lost"] = {scope: mbeir.headline(best, scope) - mbeir.headline(row, scope) for scope in mbeir.SCOPES}
    return rows


def total(sets: Sequence[EvaluationSet], tallies: Sequence[Tallies]) -> Tallies:
    """The sum of tallies, with the queries of each set that nobody could ask."""
    found = {(one.name, scope): Tally(queries=one.missed) for one in sets for scope in mbeir.SCOPES}
    for part in tallies:
        for key, tally in part.items():
            found[key].add(tally)
    return found


def means(sets: Sequence[EvaluationSet], tallies: Tallies, lost: Collection[str] = ()) -> dict[str, Any]:
    """The means over sets in each scope, and M-BEIR's average where sets are its; `lost` as `mbeir.score` has it."""
    tasks = {scope: {one.name: tallies[one.name, scope].means() for one in sets} for scope in mbeir.SCOPES}
    score = mbeir.score({scope: {"tasks": tasks[scope]} for scope in mbeir.SCOPES}, lost)
    return {**{scope: mean(tasks[scope].values()) for scope in mbeir.SCOPES}, **score}
