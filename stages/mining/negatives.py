"""Hard negatives of a block of queries: the nearest candidates that are clearly not what was asked for.

A nearest neighbour that nobody labelled is often right, and training against it harms (U-MARVEL: unfiltered hard
negatives cost points, filtered ones win more). So a negative has to score below a share of its query's positive, as in
NV-Retriever's TopK-PercPos (arXiv 2407.15831): `limit = p - (1 - margin)·|p|`, which is `margin·p` for p > 0. Where a
query has several positives, p is the farthest one's: then a negative is one beside every positive that training draws.
Known positives are left out, and copies of one, or of the query itself, under another id.

The corpus streams by twice, once for the positives' scores and once for the rest, past all queries of a task in blocks
of BLOCK. Memory is what `stages.search.device` says of ranking. The scores are cosines; candidates come from ids and
contents hashed beforehand, because every task goes over the corpus.

Letters in shapes: Q queries of a block, N rows of a tile, D dimensions, P (hash, query) pairs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow.fs import FileSystem

from stages.data.keys import content_id, hash_ids
from stages.data.modalities import MODALITIES
from stages.data.schemas import NEGATIVES
from stages.search.columns import vectors
from stages.search.device import NOTHING, Best, Ids, Tile, keys, prepared

BLOCK = 1024  # queries that are compared with a tile together
COLUMNS = ("did", "modality", "did_hash", "content_hash", "vector")
LEFT_OUT = 3  # of the candidates that are too close, how many are named

Batches = Callable[[], Iterable[pa.RecordBatch]]
"""Opens the stream of candidates with the columns COLUMNS."""


@dataclass(frozen=True)
class Rule:
    """How many negatives a query gets, and how far below its positive they have to score."""

    per_query: int
    margin: float

    def limits(self, positive_Q: np.ndarray) -> np.ndarray:
        """The cosine that negatives stay below, [Q]; nothing is below it where no positive was found."""
        with np.errstate(invalid="ignore"):
            limit_Q = positive_Q - (1 - self.margin) * np.abs(positive_Q)
        return np.where(np.isfinite(positive_Q), limit_Q, -np.inf).astype(np.float32)


@dataclass(frozen=True)
class Mined:
    """The mined table before it is committed, opened like an artifact; picklable."""

    stage: str
    key: str
    paths: tuple[str, ...]
    filesystem: FileSystem
    manifest: dict[str, Any] = field(default_factory=dict)

    def files(self, prefix: str) -> list[str]:
        """Paths of the table `negatives/`."""
        return list(self.paths) if prefix == "negatives" else []


@dataclass
class QueryHashes:
    """Which hash concerns which query, sorted by hash."""

    hash_P: np.ndarray
    query_P: np.ndarray

    @classmethod
    def of(cls, hashes: Iterable[np.ndarray]) -> "QueryHashes":
        """From the hashes of each query."""
        parts = list(hashes)
        hash_P = np.concatenate([np.empty(0, np.uint64), *parts])
        query_P = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        order = np.argsort(hash_P, kind="stable")
        return cls(hash_P[order], query_P[order])

    def match(self, hash_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(queries, rows) of every pair whose hash a row has."""
        first, last = (np.searchsorted(self.hash_P, hash_N, side) for side in ("left", "right"))
        count = last - first
        rows = np.repeat(np.arange(len(hash_N)), count)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        return self.query_P[first[rows] + within], rows


def mine_block(queries: pa.Table, candidates: Batches, rule: Rule, device: str = "cpu") -> pa.Table:
    """The negatives of each query, schema NEGATIVES.

    Args:
        queries: columns qid, modality, target_modality, text, image_id, positives and vector (unit length).
        candidates: the pool, with unit vectors; negatives are of the query's target modality.
        rule: how many and how far.
        device: cpu or cuda.
    """
    blocks = [Positives.of(queries.slice(start, BLOCK)) for start in range(0, max(1, len(queries)), BLOCK)]
    dids = []
    for batch in candidates():
        table = pa.Table.from_batches([batch])
        dids.append(table["did"])
        for block in blocks:
            block.read(table)
    ids = Ids.of(dids)
    chosen = [ChosenNegatives(block, rule, device) for block in blocks]
    for tile in prepared(candidates(), ids, device):
        for block in chosen:
            block.add(tile)
    return pa.concat_tables(block.table(ids) for block in chosen)


@dataclass
class Positives:
    """A block of queries, and what a pass over the candidates tells about their positives."""

    queries: pa.Table
    vectors_QD: np.ndarray
    hashes: QueryHashes
    positive_Q: np.ndarray
    """Cosine of the farthest positive; NaN where none was found."""
    contents: list[np.ndarray]
    """Contents that are right or the query's own, and whose they are."""
    owners: list[np.ndarray]

    @classmethod
    def of(cls, queries: pa.Table) -> "Positives":
        """The block before the pass."""
        hashes = QueryHashes.of(hash_ids(set(dids)) for dids in queries["positives"].to_pylist())
        own = map(content_id, queries["text"].to_pylist(), queries["image_id"].to_pylist())
        unmet = np.full(len(queries), np.nan, np.float32)
        rows_QD = vectors(queries).astype(np.float32)
        return cls(queries, rows_QD, hashes, unmet, [hash_ids(own)], [np.arange(len(queries))])

    def read(self, candidates: pa.Table) -> None:
        """Notes the positives among these candidates; nothing else is computed."""
        asked, rows = self.hashes.match(numbers(candidates["did_hash"]))
        if len(rows):
            vectors_PD = vectors(candidates.take(pa.array(rows))).astype(np.float32)
            np.fmin.at(self.positive_Q, asked, (self.vectors_QD[asked] * vectors_PD).sum(1))
            self.contents.append(numbers(candidates["content_hash"])[rows])
            self.owners.append(asked)

    def right_contents(self) -> QueryHashes:
        """Which content is right, or the query's own, for which query."""
        hash_P, query_P = np.concatenate(self.contents), np.concatenate(self.owners)
        order = np.argsort(hash_P, kind="stable")
        return QueryHashes(hash_P[order], query_P[order])


class ChosenNegatives:
    """What was chosen for a block of queries, and left out, of the tiles so far."""

    def __init__(self, block: Positives, rule: Rule, device: str) -> None:
        self.queries, self.positive_Q, self.hashes = block.queries, block.positive_Q, block.hashes
        self.contents, self.limit_Q = block.right_contents(), rule.limits(block.positive_Q)
        self.vectors_QD, self.limits_Q = (torch.from_numpy(one).to(device) for one in (block.vectors_QD, self.limit_Q))
        self.target_Q = torch.tensor(codes(block.queries["target_modality"]), device=device)
        count = len(block.queries)
        self.copies_Q, self.close_Q = (torch.zeros(count, dtype=torch.int32, device=device) for _ in range(2))
        self.chosen, self.left_out = Best(count, rule.per_query, device), Best(count, LEFT_OUT, device)

    def add(self, tile: Tile) -> None:
        """Weighs the candidates of a tile: what is a copy, what is too close, and what may be a negative."""
        scores_QN, device = tile.scores(self.vectors_QD), self.vectors_QD.device
        modality_N = torch.tensor(codes(tile.columns["modality"]), device=device)
        positive_QN = mark(self.hashes.match(numbers(tile.columns["did_hash"])), scores_QN)
        copy_QN = mark(self.contents.match(numbers(tile.columns["content_hash"])), scores_QN)
        candidate_QN = (self.target_Q[:, None] == modality_N) & ~positive_QN
        copy_QN &= candidate_QN
        candidate_QN &= ~copy_QN
        close_QN = candidate_QN & (scores_QN >= self.limits_Q[:, None])
        self.copies_Q += copy_QN.sum(1)
        self.close_Q += close_QN.sum(1)
        keys_QN = keys(scores_QN, tile.place_N)
        self.chosen.add(keys_QN.masked_fill(~candidate_QN | close_QN, NOTHING))
        self.left_out.add(keys_QN.masked_fill(~close_QN, NOTHING))

    def table(self, ids: Ids) -> pa.Table:
        """The rows of NEGATIVES."""
        chosen, left_out = self.chosen.ranking(ids), self.left_out.ranking(ids)
        missing_Q = ~np.isfinite(self.positive_Q)
        columns = {
            "qid": self.queries["qid"],
            "positive_score": pa.array(self.positive_Q, mask=missing_Q),
            "limit": pa.array(self.limit_Q, mask=missing_Q),
            "negatives": chosen.dids,
            "scores": chosen.scores,
            "copies": self.copies_Q.cpu().numpy(),
            "too_close": self.close_Q.cpu().numpy(),
            "left_out": left_out.dids,
            "left_out_scores": left_out.scores,
        }
        return pa.Table.from_pydict(columns, NEGATIVES)


def mark(pairs: tuple[np.ndarray, np.ndarray], like_QN: torch.Tensor) -> torch.Tensor:
    """A bool matrix that is true at the (query, row) pairs."""
    marked_QN = torch.zeros(like_QN.shape, dtype=torch.bool, device=like_QN.device)
    marked_QN[tuple(torch.from_numpy(one).to(like_QN.device) for one in pairs)] = True
    return marked_QN


def codes(modalities: pa.ChunkedArray) -> np.ndarray:
    """Modalities as numbers."""
    return pc.index_in(modalities, value_set=pa.array(MODALITIES)).to_numpy()


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of hashes as uint64 [N]."""
    return column.to_numpy()
