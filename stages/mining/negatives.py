"""Hard negatives of a block of queries: the nearest candidates that are clearly not what was asked for.

A nearest neighbour that nobody labelled is often right, and training against it harms (U-MARVEL: unfiltered hard
negatives cost points, filtered ones win more). So a negative has to score below a share of its query's positive, as in
NV-Retriever's TopK-PercPos (arXiv 2407.15831): `limit = p - (1 - margin)·|p|`, which is `margin·p` for p > 0. Where a
query has several positives, p is the farthest one's: then a negative is one beside every positive that training draws.
Known positives are left out, and copies of one, or of the query itself, under another id.

The corpus streams by twice, once for the positives' scores and once for the rest; memory is a tile of it. The scores
are cosines; candidates come from ids and contents hashed beforehand, because every block goes over the corpus.

Letters in shapes: Q queries, N rows of a tile, D dimensions, P (hash, query) pairs.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileSystem

from stages.data.keys import content_id, hash_ids
from stages.data.modalities import MODALITIES
from stages.data.schemas import NEGATIVES
from stages.search.exact import TopK, tiles, vectors

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


@dataclass
class Block:
    """Queries with their vectors, and what is known about their positives."""

    table: pa.Table
    vectors_QD: np.ndarray
    positives: QueryHashes
    positive_Q: np.ndarray
    """Cosine of the farthest positive; NaN where none was found."""
    contents: QueryHashes
    """Contents that are right or the query's own."""


def mine_block(queries: pa.Table, candidates: Batches, rule: Rule) -> pa.Table:
    """The negatives of each query, schema NEGATIVES.

    Args:
        queries: columns qid, modality, target_modality, text, image_id, positives and vector (unit length).
        candidates: the pool, with unit vectors; negatives are of the query's target modality.
        rule: how many and how far.
    """
    block = read_positives(queries, candidates())
    limit_Q = rule.limits(block.positive_Q)
    chosen = ChosenNegatives(len(queries), rule.per_query)
    target_Q = codes(queries["target_modality"])
    for tile in sorted_tiles(candidates()):
        scores_QN = block.vectors_QD @ vectors(tile).astype(np.float32).T
        positive_QN = mark(block.positives.match(numbers(tile["did_hash"])), scores_QN.shape)
        copy_QN = mark(block.contents.match(numbers(tile["content_hash"])), scores_QN.shape) & ~positive_QN
        candidate_QN = (target_Q[:, None] == codes(tile["modality"])[None, :]) & ~positive_QN
        close_QN = candidate_QN & ~copy_QN & (scores_QN >= limit_Q[:, None])
        chosen.add(tile["did"], scores_QN, candidate_QN & copy_QN, close_QN, candidate_QN & ~copy_QN & ~close_QN)
    return chosen.table(queries["qid"], block.positive_Q, limit_Q)


def read_positives(queries: pa.Table, batches: Iterable[pa.RecordBatch]) -> Block:
    """The block with the scores and contents of its positives, from one pass that computes nothing else."""
    vectors_QD = vectors(queries).astype(np.float32)
    positives = QueryHashes.of(hash_ids(set(dids)) for dids in queries["positives"].to_pylist())
    positive_Q = np.full(len(queries), np.nan, np.float32)
    own = [
        content_id(text, image)
        for text, image in zip(queries["text"].to_pylist(), queries["image_id"].to_pylist(), strict=True)
    ]
    found, owners = [hash_ids(own)], [np.arange(len(queries))]
    for batch in batches:
        table = pa.Table.from_batches([batch])
        asked, rows = positives.match(numbers(table["did_hash"]))
        if len(rows):
            vectors_PD = vectors(table.take(pa.array(rows))).astype(np.float32)
            np.fmin.at(positive_Q, asked, (vectors_QD[asked] * vectors_PD).sum(1))
            found.append(numbers(table["content_hash"])[rows])
            owners.append(asked)
    hash_P, query_P = np.concatenate(found), np.concatenate(owners)
    order = np.argsort(hash_P, kind="stable")
    return Block(queries, vectors_QD, positives, positive_Q, QueryHashes(hash_P[order], query_P[order]))


class ChosenNegatives:
    """What was chosen and left out of the tiles so far."""

    def __init__(self, queries: int, per_query: int) -> None:
        self.copies_Q, self.close_Q = np.zeros(queries, np.int32), np.zeros(queries, np.int32)
        self.chosen, self.left_out = TopK(queries, per_query), TopK(queries, LEFT_OUT)

    def add(
        self,
        dids_N: pa.ChunkedArray,
        scores_QN: np.ndarray,
        copy_QN: np.ndarray,
        close_QN: np.ndarray,
        negative_QN: np.ndarray,
    ) -> None:
        """Adds a tile: what is a copy, what is too close, and what may be a negative."""
        self.copies_Q += copy_QN.sum(1, dtype=np.int32)
        self.close_Q += close_QN.sum(1, dtype=np.int32)
        for top, mask_QN in ((self.chosen, negative_QN), (self.left_out, close_QN)):
            top.add(np.where(mask_QN, scores_QN, -np.inf), dids_N)

    def table(self, qids: pa.ChunkedArray, positive_Q: np.ndarray, limit_Q: np.ndarray) -> pa.Table:
        """The rows of NEGATIVES."""
        named, scored = drop_padding(self.chosen)
        left_out, left_out_scores = drop_padding(self.left_out)
        missing_Q = ~np.isfinite(positive_Q)
        columns = {
            "qid": qids,
            "positive_score": pa.array(positive_Q, mask=missing_Q),
            "limit": pa.array(limit_Q, mask=missing_Q),
            "negatives": named,
            "scores": scored,
            "copies": self.copies_Q,
            "too_close": self.close_Q,
            "left_out": left_out,
            "left_out_scores": left_out_scores,
        }
        return pa.Table.from_pydict(columns, NEGATIVES)


def drop_padding(top: TopK) -> tuple[list[list[str]], list[list[float]]]:
    """Ids and scores without what was only there to fill the list."""
    ranking = top.ranking()
    counts = [sum(score > -np.inf for score in scores) for scores in ranking.scores]  # the lists fall
    dids = [found[:count] for found, count in zip(ranking.dids, counts, strict=True)]
    scores = [found[:count] for found, count in zip(ranking.scores, counts, strict=True)]
    return dids, scores


def mark(pairs: tuple[np.ndarray, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """A bool matrix that is true at the (query, row) pairs."""
    marked_QN = np.zeros(shape, bool)
    marked_QN[pairs] = True
    return marked_QN


def sorted_tiles(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tiles whose rows are in order of their ids, by which equal scores are ordered."""
    for tile in tiles(batches):
        yield tile.take(pc.sort_indices(tile["did"]))


def codes(modalities: pa.ChunkedArray) -> np.ndarray:
    """Modalities as numbers."""
    return pc.index_in(modalities, value_set=pa.array(MODALITIES)).to_numpy()


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of hashes as uint64 [N]."""
    return column.to_numpy()
