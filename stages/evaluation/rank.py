"""Ranks a block of queries in the local and the union pool and measures the lists: the work of one evaluation task.

It returns sums and finished TREC lines, not lists of objects, so that a driver can add up any number of blocks.
A query's own picture may be among the candidates (an image→image task on shared photos); M-BEIR leaves it in the pool
and so does this. Relevant candidates that the pool does not hold count as missed; chance knows only those it holds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.evaluation.chance import chance_of_hit
from stages.evaluation.measures import HITS, cutoff, measure_queries, trec_lines
from stages.evaluation.sets import EvaluationSet, set_name
from stages.search import leading
from stages.search.exact import ExactIndex, search_batches, vectors
from stages.search.filters import Filter
from stages.search.leading import Leading


@dataclass
class Tally:
    """What one evaluation set came to in one pool: sums over its queries, and the run.

    `queries` may begin with those that nobody could ask: they add to no sum, which is to count them as missed.
    """

    queries: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    trec: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Adds the numbers of another block; its run lines are the caller's to write."""
        self.queries += other.queries
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for name, value in other.chance.items():
            self.chance[name] = self.chance.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The mean of each measure over the queries."""
        return {name: value / self.queries for name, value in self.sums.items()}

    def chances(self) -> dict[str, float]:
        """The mean of a random ranking's expected hit@k over the queries."""
        return {name: value / self.queries for name, value in self.chance.items()}


@dataclass(frozen=True)
class Pools:
    """Where each set is searched: its local pool and the union, with their sizes."""

    union: str | None
    sizes: Mapping[str, int]
    total: int

    def filters(self, one: EvaluationSet) -> dict[str, Filter]:
        """The filter of each scope for a set."""
        return {"local": Filter(one.pool if one.pool is not None else self.union), "union": Filter(self.union)}

    def size(self, chosen: Filter) -> int:
        """Candidates that a filter lets through."""
        return self.total if chosen.pool is None else self.sizes[chosen.pool]


def rank_file(
    path: str,
    filesystem: Any,
    dim: int | None,
    sets: Sequence[EvaluationSet],
    pools: Pools,
    index: Any,
    depth: int,
    tag: str,
) -> dict[tuple[str, str], Tally]:
    """`rank_block` of a stored block of queries with vectors, of which the first `dim` values are read (None: all)."""
    import pyarrow.parquet as pq

    block = pq.read_table(path, filesystem=filesystem)
    return rank_block(block if dim is None else leading.shorten(block, dim), sets, pools, index, depth, tag)


def rank_block(
    block: pa.Table, sets: Sequence[EvaluationSet], pools: Pools, index: ExactIndex | Leading, depth: int, tag: str
) -> dict[tuple[str, str], Tally]:
    """Ranks queries with vectors (schema of queries, plus `vector`): a tally for each (set, "local" | "union").

    depth: ranked candidates kept for each query. Each set of the block costs a pass over the corpus, for both scopes.
    """
    named = {one.name: one for one in sets}
    tallies = {}
    for name, queries in by_set(block):
        scopes = pools.filters(named[name])
        reachable = _Reachable(queries, list(scopes.values()))
        rankings = search_batches(
            reachable.watch(index.batches()), vectors(queries).astype(np.float32), depth, list(scopes.values())
        )
        for scope, ranking, counts in zip(scopes, rankings, reachable.counts(), strict=True):
            tally = _measure(queries, ranking.dids, counts, pools.size(scopes[scope]))
            tally.trec = _trec(queries["qid"].to_pylist(), ranking.dids, ranking.scores, tag)
            tallies[name, scope] = tally
    return tallies


def by_set(block: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each evaluation set in the block, in order of appearance."""
    names = pa.array(map(set_name, block["dataset"].to_pylist(), block["task_id"].to_pylist()), pa.string())
    for name in pc.unique(names).to_pylist():
        yield name, block.filter(pc.equal(names, name)).combine_chunks()


class _Reachable:
    """Counts, while the corpus streams by, how many of each query's positives a filter lets through."""

    def __init__(self, queries: pa.Table, filters: Sequence[Filter]) -> None:
        self.positives = queries["positives"].to_pylist()
        self.wanted = pa.array(sorted({did for dids in self.positives for did in dids}), pa.string())
        self.filters = filters
        self.found: list[set[str]] = [set() for _ in filters]

    def watch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Passes the batches on."""
        for batch in batches:
            table = pa.Table.from_batches([batch])
            hits = table.filter(pc.is_in(table["did"], value_set=self.wanted))
            for found, chosen in zip(self.found, self.filters, strict=True):
                found.update(hits["did"].take(pa.array(chosen.rows(hits))).to_pylist())
            yield batch

    def counts(self) -> list[list[int]]:
        """For each filter, the number of positives that passed, query by query."""
        return [[sum(did in found for did in set(dids)) for dids in self.positives] for found in self.found]


def _measure(queries: pa.Table, dids: list[list[str]], reachable: list[int], pool_size: int) -> Tally:
    qids = queries["qid"].to_pylist()
    relevant = dict(zip(qids, queries["positives"].to_pylist(), strict=True))
    tally = Tally(queries=len(qids))
    for values in measure_queries(dict(zip(qids, dids, strict=True)), relevant).values():
        for name, value in values.items():
            tally.sums[name] = tally.sums.get(name, 0.0) + value
    for name in HITS:
        tally.chance[name] = sum(chance_of_hit(pool_size, count, cutoff(name)) for count in reachable)
    return tally


def _trec(qids: list[str], dids: list[list[str]], scores: list[list[float]], tag: str) -> list[str]:
    lines = []
    for qid, found, values in zip(qids, dids, scores, strict=True):
        lines += trec_lines(qid, found, values, tag)
    return lines
