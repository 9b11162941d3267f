"""Exact search: blockwise inner products over the stored vectors, with filters and a running top k.

Every reported number comes from here, because an approximate index would mix its own misses with the model's.
FAISS `IndexFlatIP` gives the same ranking, but it keeps the corpus in memory as float32, knows no pools, and breaks
ties by insertion order; Parquet stays the source of truth and is streamed instead.

Memory, whatever the corpus size: a few tiles of TILE rows as stored and one as float32 (TILE·D·(3·2 + 4) bytes); the
queries (Q·D·4); the scores of the B queries that are compared together, twice (2·B·TILE·4); and for each query and
filter its k best ids of C letters (k·(12 + 4·C)). 8,192 queries of 3,584 dimensions in blocks of 1,024, the 50 best of
two filters, ids of ten letters: 300 + 120 + 70 + 45 MB.

Letters in shapes: Q queries, N rows of a tile, D dimensions, P kept (query, row) pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from stages.contract.context import Artifact
from stages.search.columns import COLUMNS, vectors
from stages.search.filters import Filter
from stages.search.precision import AS_STORED, Precision
from stages.search.ranking import Ranking, check_dimension

TILE = 8192
HELD_BYTES = 2**30
MOST_HELD = 8 * 2**30
"""Bytes of stored vectors above which they are streamed at every search, for a machine that does other things too."""


@dataclass(frozen=True)
class Asked:
    """Queries that are compared together, float32 [Q, D], and the filters for each of which they have a ranking."""

    vectors_QD: np.ndarray
    filters: tuple[Filter, ...]


@dataclass(frozen=True)
class ExactIndex:
    """Vectors in Parquet files (schema EMBEDDINGS), streamed at every search. Picklable."""

    files: tuple[str, ...]
    filesystem: FileSystem
    precision: Precision = AS_STORED

    @classmethod
    def open(cls, artifact: Artifact, precision: Precision = AS_STORED) -> "ExactIndex":
        """The index over the listed files of a committed artifact, whose vectors are stored in a precision."""
        return cls(tuple(artifact.files("embeddings")), artifact.filesystem, precision)

    def batches(self, columns: Sequence[str] = COLUMNS) -> Iterator[pa.RecordBatch]:
        """The stored rows in file order, with vectors of numbers whatever they are stored as."""
        stored = pyarrow.dataset.dataset(list(self.files), filesystem=self.filesystem, format="parquet")
        # Little read-ahead: the matrix product is the slow part, and the default would hold gigabytes of wide rows.
        found = stored.to_batches(columns=list(columns), batch_size=TILE, batch_readahead=2, fragment_readahead=1)
        for batch in found:
            yield self.precision.decoded(batch) if "vector" in columns else batch

    def search(self, queries_QD: np.ndarray, k: int, *filters: Filter) -> list[Ranking]:
        """The k best candidates of each query, once for each filter (one pass over the corpus serves them all).

        queries_QD: float32 [Q, D]. Order: falling score, then rising id. No filter is the same as `Filter()`.

        Raises:
            InputError: the queries have another dimension than the index.
        """
        check_dimension(queries_QD, self.dim)
        filters = filters or (Filter(),)
        columns = sorted({"did", "vector"}.union(*(one.columns() for one in filters)))
        return search_batches(self.batches(columns), queries_QD, k, filters)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.precision.dim or self.schema().field("vector").type.list_size

    def schema(self, columns: Sequence[str] = ()) -> pa.Schema:
        """The schema of the stored rows, of all columns or some."""
        stored = pq.read_schema(self.files[0], filesystem=self.filesystem).remove_metadata()
        return pa.schema([stored.field(name) for name in columns or stored.names])

    def columns(self) -> list[str]:
        """The names of all stored columns."""
        return self.schema().names

    def nbytes(self) -> int:
        """Bytes of all vectors as they are stored, by the files' footers."""
        stored = self.schema().field("vector").type
        rows = pyarrow.dataset.dataset(list(self.files), filesystem=self.filesystem, format="parquet").count_rows()
        return rows * stored.list_size * stored.value_type.bit_width // 8

    def ready(self) -> "ExactIndex | HeldIndex":
        """The index for one query after another: held in memory, or streamed where that would take too much of it."""
        return self if self.nbytes() > MOST_HELD else HeldIndex(self)


class HeldIndex:
    """The same search over vectors that stay in memory, for one query after another: nothing is read or sorted again.

    Vectors are held as float32 up to HELD_BYTES, and above as they are stored, converted at each search.
    """

    def __init__(self, stored: ExactIndex) -> None:
        self.dim, self.precision = stored.dim, stored.precision
        self.held: list[tuple[pa.Table, np.ndarray]] = []
        room = HELD_BYTES
        for tile, rows_ND in prepared(stored.batches(stored.columns())):
            room -= rows_ND.nbytes
            self.held.append((tile, rows_ND if room >= 0 else self.precision.encode(rows_ND)))

    def search(self, queries_QD: np.ndarray, k: int, *filters: Filter) -> list[Ranking]:
        """See `ExactIndex.search`."""
        check_dimension(queries_QD, self.dim)
        return search_tiles(self.tiles(), [asked_of(queries_QD, filters or (Filter(),))], k)[0]

    def tiles(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """What `prepared` gives."""
        for tile, rows_ND in self.held:
            yield tile, rows_ND if rows_ND.dtype == np.float32 else self.precision.decode(rows_ND)


def search_batches(
    batches: Iterable[pa.RecordBatch], queries_QD: np.ndarray, k: int, filters: Sequence[Filter]
) -> list[Ranking]:
    """`ExactIndex.search` over any stream of record batches with the columns COLUMNS."""
    return search_all(batches, [asked_of(queries_QD, filters)], k)[0]


def asked_of(queries_QD: np.ndarray, filters: Sequence[Filter]) -> Asked:
    """Queries in the form in which matrices are multiplied fastest."""
    return Asked(np.ascontiguousarray(queries_QD, dtype=np.float32), tuple(filters))


def search_all(batches: Iterable[pa.RecordBatch], asked: Sequence[Asked], k: int) -> list[list[Ranking]]:
    """`search_batches` for several blocks of queries, which all go by in one pass: the rankings of each."""
    return search_tiles(prepared(batches), asked, k)


def prepared(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Each tile's columns in order of the ids, so that among equal scores the lowest id is first, and its vectors."""
    several = False
    for tile in tiles(batches):
        tile = tile.take(pc.sort_indices(tile["did"]))
        yield tile.drop_columns(["vector"]), _float32_rows(tile, several)
        several = True


def search_tiles(held: Iterable[tuple[pa.Table, np.ndarray]], asked: Sequence[Asked], k: int) -> list[list[Ranking]]:
    """`search_all` over what `prepared` gives. A block's scores do not depend on the blocks beside it."""
    best = [[TopK(len(one.vectors_QD), k) for _ in one.filters] for one in asked]
    for tile, rows_ND in held:
        passing = {chosen: chosen.rows(tile) for one in asked for chosen in one.filters}
        dids = {chosen: tile["did"].take(pa.array(rows)) for chosen, rows in passing.items()}
        for one, found in zip(asked, best, strict=True):
            scores_QN = one.vectors_QD @ rows_ND.T
            for top, chosen in zip(found, one.filters, strict=True):
                rows = passing[chosen]
                whole = len(rows) == tile.num_rows  # a slice is a view, row numbers make a copy
                top.add(scores_QN[:, : len(rows)] if whole else scores_QN[:, rows], dids[chosen])
    return [[top.ranking() for top in found] for found in best]


def tiles(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables of TILE rows; the last may be shorter."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        while count >= TILE:
            table = pa.Table.from_batches(held)
            yield table.slice(0, TILE)
            held = table.slice(TILE).to_batches()
            count -= TILE
    if count:
        yield pa.Table.from_batches(held)


def _float32_rows(tile: pa.Table, pad: bool) -> np.ndarray:
    """The tile's vectors as float32; zero rows fill a short tile when it is not the only one.

    Equal vectors must score equally wherever they lie, or ties would depend on the file layout. Matrix libraries
    choose their kernel, and with it the order of summation, by the shape: hence one shape for all tiles.
    """
    rows_ND = vectors(tile)
    out_ND = np.zeros((TILE if pad else -(-len(rows_ND) // 64) * 64, rows_ND.shape[1]), dtype=np.float32)
    out_ND[: len(rows_ND)] = rows_ND
    return out_ND


@dataclass
class TopK:
    """The k best rows of each query so far, as flat (query, score, did) columns sorted by query and rank."""

    queries: int
    k: int
    query_P: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    score_P: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    did_P: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype="U1"))

    def __post_init__(self) -> None:
        self.floor_Q = np.full(self.queries, -np.inf, dtype=np.float32)

    def add(self, scores_QN: np.ndarray, dids_N: pa.ChunkedArray) -> None:
        """Merges the scores of more rows, which come in order of their ids."""
        if not scores_QN.size:
            return
        passing_QN = scores_QN >= self.floor_Q[:, None]  # what ties with the k-th best may have a lower id
        crowded = np.flatnonzero(np.count_nonzero(passing_QN, axis=1) > self.k)
        if len(crowded):  # the first tiles, before the floor has risen, or a model that gives everything one vector
            passing_QN[crowded] = self._best(scores_QN[crowded])
        # By flat places: numpy looks for those of a matrix ten times as long, which is longer than the scores take.
        query, row = np.divmod(np.flatnonzero(passing_QN), passing_QN.shape[1])
        if not len(row):
            return
        used, place = np.unique(row, return_inverse=True)
        names = np.array(dids_N.take(pa.array(used)).to_pylist(), dtype="U")
        self._merge(query, scores_QN[query, row], names[place])

    def _best(self, scores_QN: np.ndarray) -> np.ndarray:
        """Marks what can be among the k best of these rows: all above the k-th score, the first k that equal it."""
        edge_Q1 = np.partition(scores_QN, -self.k, axis=1)[:, -self.k, None]
        equal_QN = scores_QN == edge_Q1
        return (scores_QN > edge_Q1) | (equal_QN & (np.cumsum(equal_QN, axis=1, dtype=np.int32) <= self.k))

    def _merge(self, query: np.ndarray, score: np.ndarray, did: np.ndarray) -> None:
        query = np.concatenate([self.query_P, query])
        score = np.concatenate([self.score_P, score])
        did = np.concatenate([self.did_P, did])
        order = np.lexsort((did, -score, query))
        query, score, did = query[order], score[order], did[order]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        kept = rank < self.k
        self.query_P, self.score_P, self.did_P = query[kept], score[kept], did[kept]
        last = rank == self.k - 1
        self.floor_Q[query[last]] = score[last]

    def ranking(self) -> Ranking:
        """The lists, best first; shorter than k where fewer rows passed."""
        edges = np.searchsorted(self.query_P, np.arange(1, self.queries))
        return Ranking(
            [part.tolist() for part in np.split(self.did_P, edges)] if self.queries else [],
            [part.tolist() for part in np.split(self.score_P, edges)] if self.queries else [],
        )
