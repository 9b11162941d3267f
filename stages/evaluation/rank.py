"""Ranks blocks of queries in the local and the union pool and measures the lists: the work of one evaluation task.

The blocks of a task go over the corpus together, in one pass for all of them and for both pools: QUERIES of a CPU are
compared with a tile for ten seconds once it has been read for a tenth of one. On a GPU they are many more, for there
reading is what takes time.

It returns sums and finished TREC lines, not lists of objects, so that a driver can add up any number of blocks.
A query's own picture may be among the candidates (an image→image task on shared photos); M-BEIR leaves it in the pool
and so does this. Relevant candidates that the pool does not hold count as missed; chance knows only those it holds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.evaluation.chance import chance_of_hit
from stages.evaluation.measures import HITS, cutoff, measure_queries, trec_lines
from stages.evaluation.sets import EvaluationSet, set_name
from stages.search import leading
from stages.search.columns import vectors
from stages.search.exact import ExactIndex, asked_of, search_all
from stages.search.filters import Filter
from stages.search.leading import Leading
from stages.search.precision import Coded

QUERIES = {"cpu": 8192, "cuda": 32768}
"""Queries of a task, by device; memory as in `stages.search.exact` and `stages.search.device`."""


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


def rank_files(
    paths: Sequence[str],
    filesystem: Any,
    dim: int | None,
    sets: Sequence[EvaluationSet],
    pools: Pools,
    index: ExactIndex | Leading,
    depth: int,
    tag: str,
    device: str,
) -> Iterator[dict[tuple[str, str], Tally]]:
    """`rank_blocks` of stored blocks of queries with vectors, whose first `dim` values are read (None: all)."""
    import pyarrow.parquet as pq

    blocks = [pq.read_table(path, filesystem=filesystem) for path in paths]
    blocks = [block if dim is None else leading.shorten(block, dim) for block in blocks]
    yield from rank_blocks(blocks, sets, pools, index, depth, tag, device)


def rank_blocks(
    blocks: Sequence[pa.Table],
    sets: Sequence[EvaluationSet],
    pools: Pools,
    index: ExactIndex | Leading | Coded,
    depth: int,
    tag: str | None,
    device: str = "cpu",
) -> Iterator[dict[tuple[str, str], Tally]]:
    """Ranks blocks of queries with vectors (schema of queries, plus `vector`), all of them in one pass.

    Args:
        depth: ranked candidates kept for each query.
        tag: what the run is called in its lines; None writes none.
        device: cpu or cuda.

    Yields:
        For each block a tally for each (set, "local" | "union").
    """
    scopes = {one.name: pools.filters(one) for one in sets}
    parts = [list(by_set(block)) for block in blocks]
    pieces = [(name, queries) for part in parts for name, queries in part]
    reachable = _Reachable([queries for _, queries in pieces], [scopes[name] for name, _ in pieces])
    asked = [asked_of(vectors(queries), list(scopes[name].values())) for name, queries in pieces]
    if device == "cpu":
        found = iter(search_all(reachable.watch(index.batches()), asked, depth))
    else:
        from stages.search.device import Ids
        from stages.search.device import search_all as search_all_there

        ids = Ids.of(batch["did"] for batch in index.batches(["did"]))
        found = iter(search_all_there(reachable.watch(index.batches()), ids, asked, depth, device))
    for part in parts:
        tallies = {}
        for name, queries in part:
            for (scope, chosen), ranking in zip(scopes[name].items(), next(found), strict=True):
                tally = _measure(queries, ranking.dids, reachable.counts(queries, chosen), pools.size(chosen))
                if tag is not None:
                    tally.trec = _trec(queries["qid"].to_pylist(), ranking.dids, ranking.scores, tag)
                tallies[name, scope] = tally
        yield tallies


def by_set(block: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each evaluation set in the block, in order of appearance."""
    names = pa.array(map(set_name, block["dataset"].to_pylist(), block["task_id"].to_pylist()), pa.string())
    for name in pc.unique(names).to_pylist():
        yield name, block.filter(pc.equal(names, name)).combine_chunks()


class _Reachable:
    """Finds, while the corpus streams by, which of the queries' positives each filter lets through."""

    def __init__(self, blocks: Sequence[pa.Table], filters: Sequence[Mapping[str, Filter]]) -> None:
        wanted = {did for queries in blocks for dids in queries["positives"].to_pylist() for did in dids}
        self.wanted = pa.array(sorted(wanted), pa.string())
        self.found: dict[Filter, set[str]] = {chosen: set() for one in filters for chosen in one.values()}

    def watch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Passes the batches on."""
        for batch in batches:
            table = pa.Table.from_batches([batch]).drop_columns(["vector"])
            hits = table.filter(pc.is_in(table["did"], value_set=self.wanted))
            for chosen, found in self.found.items():
                found.update(hits["did"].take(pa.array(chosen.rows(hits))).to_pylist())
            yield batch

    def counts(self, queries: pa.Table, chosen: Filter) -> list[int]:
        """The number of positives that a filter let through, query by query."""
        found = self.found[chosen]
        return [sum(did in found for did in set(dids)) for dids in queries["positives"].to_pylist()]


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
