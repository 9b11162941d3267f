"""Exact search with torch, for a GPU: the rankings of `exact.py`, which stays with numpy where there is none.

A score and the place of the candidate's id among all ids make one integer. So the k best of whatever is at hand are
one `topk`, ties in order of their ids included, and nothing leaves the device before the end. A running top k that
knows ids as strings, as on the CPU, would take longer than the matrix products do there.

Stored vectors are float16, whose products are exact in TF32, and sums are float32: scores differ from the CPU's by the
order of summation alone, by 1e-6 and less for unit vectors of 256 dimensions. Vectors that are no float16 are
multiplied as float32.

Memory: of the machine some 30 bytes for each candidate's id and its place. Of the device Q·D·4 bytes for the queries,
TILE·D·4 for a tile, about 40·TILE bytes for each of the queries that are multiplied with it together (measured), and
8·k for each query and filter. 32,768 queries of 3,584 dimensions in blocks of 1,024, two filters each: about 1 GB.

Letters in shapes: Q queries, N rows of a tile, D dimensions, K kept candidates.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stages.search import exact
from stages.search.columns import vectors
from stages.search.exact import Asked
from stages.search.filters import Filter
from stages.search.ranking import Ranking

LAST = 2**32 - 1
NOTHING = torch.iinfo(torch.int64).min
"""The key of what may not be found."""


@dataclass(frozen=True)
class Ids:
    """All ids of a corpus in their order, and the place of each stored row's id among them, int64 [rows]."""

    ids: pa.ChunkedArray
    places: np.ndarray

    @classmethod
    def of(cls, stored: Iterable[pa.ChunkedArray | pa.Array]) -> "Ids":
        """From the column `did`, part by part."""
        arrays = [part for one in stored for part in (one.chunks if isinstance(one, pa.ChunkedArray) else [one])]
        ids = pa.chunked_array(arrays, pa.string())
        order = pc.sort_indices(ids)
        places = np.empty(len(ids), np.int64)
        places[order.to_numpy()] = np.arange(len(ids))
        return cls(ids.take(order), places)


@dataclass(frozen=True)
class Tile:
    """Rows of the corpus on a device: their other columns, vectors float32 [N, D], places of their ids [N]."""

    columns: pa.Table
    vectors_ND: torch.Tensor
    place_N: torch.Tensor
    halves: bool
    """Whether the vectors are float16 as stored."""

    def scores(self, queries_QD: torch.Tensor) -> torch.Tensor:
        """Inner products float32 [Q, N] with queries that are stored as the rows are."""
        with precision("high" if self.halves else "highest"):  # high is TF32
            return (queries_QD @ self.vectors_ND.T)[:, : len(self.place_N)]


def prepared(batches: Iterable[pa.RecordBatch], ids: Ids, device: str) -> Iterator[Tile]:
    """The corpus in tiles of one shape; see `exact.float32_rows`."""
    first = 0
    for table in exact.tiles(batches):
        stored_ND = vectors(table)
        vectors_ND = torch.zeros(exact.TILE, stored_ND.shape[1], device=device)
        vectors_ND[: len(stored_ND)] = torch.tensor(stored_ND, device=device)
        place_N = torch.from_numpy(ids.places[first : first + len(stored_ND)]).to(device)
        first += len(stored_ND)
        yield Tile(table.drop_columns(["vector"]), vectors_ND, place_N, stored_ND.dtype == np.float16)


def search_all(
    batches: Iterable[pa.RecordBatch], ids: Ids, asked: Sequence[Asked], k: int, device: str
) -> list[list[Ranking]]:
    """`exact.search_all` on a device; `ids` are those of the rows in `batches`, in their order."""
    queries = [torch.from_numpy(one.vectors_QD).to(device) for one in asked]
    best = [[Best(len(one.vectors_QD), k, device) for _ in one.filters] for one in asked]
    for tile in prepared(batches, ids, device):
        passing = {chosen: passing_rows(tile, chosen) for one in asked for chosen in one.filters}
        for queries_QD, one, found in zip(queries, asked, best, strict=True):
            keys_QN = keys(tile.scores(queries_QD), tile.place_N)
            for top, chosen in zip(found, one.filters, strict=True):
                rows = passing[chosen]
                top.add(keys_QN if rows is None else keys_QN[:, rows])
    return [[top.ranking(ids) for top in found] for found in best]


def passing_rows(tile: Tile, chosen: Filter) -> torch.Tensor | None:
    """The rows that a filter lets through; None is all."""
    rows = chosen.rows(tile.columns)
    return None if len(rows) == tile.columns.num_rows else torch.from_numpy(rows).to(tile.place_N.device)


def keys(scores_QN: torch.Tensor, place_N: torch.Tensor) -> torch.Tensor:
    """One int64 for each score, [Q, N], that rises with it and, among equal ones, the lower the place is."""
    bits_QN = (scores_QN + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    rising_QN = torch.where(bits_QN < 0, bits_QN ^ 0x7FFFFFFF, bits_QN)
    return (rising_QN.long() << 32) + (LAST - place_N)


class Best:
    """The k best keys of each query so far, best first."""

    def __init__(self, queries: int, k: int, device: str) -> None:
        self.k = k
        self.keys_QK = torch.empty(queries, 0, dtype=torch.int64, device=device)

    def add(self, keys_QN: torch.Tensor) -> None:
        """Merges the keys of more rows; those that may not be found are NOTHING."""
        found_QK = torch.cat([self.keys_QK, _highest(keys_QN, self.k)], dim=1)
        self.keys_QK = _highest(found_QK, self.k)

    def ranking(self, ids: Ids) -> Ranking:
        """The lists, best first; shorter than k where fewer rows passed."""
        keys_QK = self.keys_QK.cpu().numpy()
        found_QK = keys_QK != NOTHING
        ends = np.cumsum(found_QK.sum(1))[:-1]
        rising_P, place_P = (keys_QK[found_QK] >> 32).astype(np.int32), LAST - (keys_QK[found_QK] & LAST)
        scores_P = np.where(rising_P < 0, rising_P ^ 0x7FFFFFFF, rising_P).astype(np.int32).view(np.float32)
        dids_P = np.array(ids.ids.take(pa.array(place_P)).to_pylist(), object)
        parts = [np.split(values_P, ends) if len(keys_QK) else [] for values_P in (dids_P, scores_P)]
        return Ranking(*([part.tolist() for part in found] for found in parts))


def _highest(keys_QN: torch.Tensor, k: int) -> torch.Tensor:
    return keys_QN.topk(min(k, keys_QN.shape[1]), dim=1).values


@contextmanager
def precision(name: str) -> Iterator[None]:
    """How float32 matrices are multiplied on a GPU, until the block ends."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
