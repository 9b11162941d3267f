"""The faiss backend: an in-memory replica of an index for many queries a second.

IVF over float16 or int8 vectors: scores are those of the stored vectors, only which lists are read is approximate. It
is made from the stored vectors whenever it is opened, so it can't be out of date, and takes the bytes of these beside
the columns that filters look at.
"""

# faiss declares its C++ side and not the Python over it.
# mypy: disable-error-code="arg-type,attr-defined,call-arg"

import math
from collections.abc import Iterable
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from stages.search.columns import vectors
from stages.search.filters import Filter
from stages.search.precision import AS_STORED, Precision
from stages.search.ranking import Ranking, best_first, check_dimension

FLAT = 10_000  # rows below which lists would only lose
TRAINED_PER_LIST = 64  # vectors that k-means sees for each list
PROBED = 48  # lists that are read, of some hundreds
SEED = 0
PRODUCT = faiss.METRIC_INNER_PRODUCT


class FaissIndex:
    """Vectors in lists, and beside them the ids and the columns to filter by."""

    def __init__(self, index: Any, columns: pa.Table) -> None:
        self.index, self.columns = index, columns

    @classmethod
    def of(cls, batches: Iterable[pa.RecordBatch], rows: int, precision: Precision = AS_STORED) -> "FaissIndex":
        """From batches with `did`, `vector` and any other columns, `rows` rows in all, held in a precision.

        Args:
            batches: vectors of numbers.
            precision: float16 or int8.
        """
        held, kept = [], []
        for batch in batches:
            held.append(precision.encode(vectors(batch)))
            kept.append(batch.drop_columns(["vector"]))
        index = _trained(held, rows, precision)
        for part in held:
            index.add(precision.decode(part))
        return cls(index, pa.Table.from_batches(kept).combine_chunks())

    @property
    def dim(self) -> int:
        """Length of a stored vector."""
        return self.index.d

    def search(self, queries_QD: np.ndarray, k: int, *filters: Filter) -> list[Ranking]:
        """See `backends.Index`."""
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        check_dimension(queries_QD, self.dim)
        return [self._search(queries_QD, k, chosen) for chosen in filters or (Filter(),)]

    def _search(self, queries_QD: np.ndarray, k: int, chosen: Filter) -> Ranking:
        passing = np.zeros(self.columns.num_rows, dtype=bool)
        passing[chosen.rows(self.columns)] = True
        count = int(passing.sum())
        if not count:
            return Ranking([[] for _ in queries_QD], [[] for _ in queries_QD])
        selector = faiss.IDSelectorBitmap(np.packbits(passing, bitorder="little"))
        settings = faiss.SearchParameters(sel=selector)
        if hasattr(self.index, "nlist"):
            share = count / self.columns.num_rows
            probes = min(self.index.nlist, math.ceil(PROBED / share))
            # An unfiltered search needs no selector, which would cost a look at each row.
            settings = faiss.SearchParametersIVF(nprobe=probes, **({"sel": selector} if share < 1 else {}))
        scores_QK, places_QK = self.index.search(queries_QD, min(k, count), params=settings)
        short = (places_QK < 0).any(axis=1)  # what passes the filter may lie in other lists than the nearest
        if short.any() and hasattr(self.index, "nlist"):
            settings.nprobe = self.index.nlist
            scores_QK[short], places_QK[short] = self.index.search(queries_QD[short], min(k, count), params=settings)
        dids, scores = [], []
        for row, places in zip(scores_QK, places_QK, strict=True):
            found = places >= 0
            names = self.columns["did"].take(pa.array(places[found])).to_pylist()
            names, values = best_first(names, row[found], k)
            dids.append(names)
            scores.append(values)
        return Ranking(dids, scores)


def _trained(held: list[np.ndarray], rows: int, precision: Precision) -> Any:
    """An index that knows its lists and codes, and holds nothing yet."""
    dim, ranges_2D = held[0].shape[1], precision.ranges_2D
    kind = faiss.ScalarQuantizer.QT_fp16 if ranges_2D is None else faiss.ScalarQuantizer.QT_8bit
    index: Any  # faiss declares neither what an index learns from nor how it is asked
    if rows < FLAT:
        index = faiss.IndexScalarQuantizer(dim, kind, PRODUCT)
    else:
        index = _lists(dim, rows, kind)
        index.train(precision.decode(_sample(held, rows, index.nlist * TRAINED_PER_LIST)))
    if ranges_2D is not None:
        _set_ranges(index, ranges_2D)
    return index


def _set_ranges(index: Any, ranges_2D: np.ndarray) -> None:
    """Has faiss code by the stored ranges: its codes are then the stored ones, and stand for the same values."""
    learnt = np.concatenate([ranges_2D[0], ranges_2D[1] - ranges_2D[0]]).astype(np.float32)
    faiss.copy_array_to_vector(learnt, index.sq.trained)
    index.is_trained = True


def _lists(dim: int, rows: int, kind: int) -> Any:
    lists = round(2 * math.sqrt(rows))
    coarse = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, kind, PRODUCT, False)
    index.own_fields = True
    coarse.this.disown()
    return index


def _sample(held: list[np.ndarray], rows: int, wanted: int) -> np.ndarray:
    """About `wanted` vectors drawn from all parts, as they are held."""
    random = np.random.default_rng(SEED)
    share = min(1.0, wanted / rows)
    return np.concatenate([part[random.random(len(part)) < share] for part in held])
