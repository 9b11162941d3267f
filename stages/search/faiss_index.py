"""The faiss backend: an in-memory replica of an index for many queries a second.

IVF over float16 vectors: scores are those of the stored vectors, only which lists are read is approximate. It is made
from the stored vectors whenever it is opened, so it can't be out of date, and takes two bytes a number beside the
columns that filters look at.
"""

# faiss declares its C++ side and not the Python over it.
# mypy: disable-error-code="arg-type,attr-defined,call-arg"

import math
from collections.abc import Iterable
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from stages.search.exact import vectors
from stages.search.filters import Filter
from stages.search.ranking import Ranking, best_first, check_dimension

FLAT = 10_000  # rows below which lists would only lose
TRAINED_PER_LIST = 64  # vectors that k-means sees for each list
PROBED = 48  # lists that are read, of some hundreds
SEED = 0
FP16, PRODUCT = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT


class FaissIndex:
    """Vectors in lists, and beside them the ids and the columns to filter by."""

    def __init__(self, index: Any, columns: pa.Table) -> None:
        self.index, self.columns = index, columns

    @classmethod
    def of(cls, batches: Iterable[pa.RecordBatch], rows: int) -> "FaissIndex":
        """From batches with `did`, `vector` and any other columns, `rows` rows in all. Vectors are held as float16."""
        held, kept = [], []
        for batch in batches:
            held.append(vectors(pa.Table.from_batches([batch])).astype(np.float16))
            kept.append(batch.drop_columns(["vector"]))
        dim = held[0].shape[1]
        index: Any  # faiss declares neither what an index learns from nor how it is asked
        if rows < FLAT:
            index = faiss.IndexScalarQuantizer(dim, FP16, PRODUCT)
        else:
            index = _lists(dim, rows)
            index.train(_sample(held, rows, index.nlist * TRAINED_PER_LIST))
        for part in held:
            index.add(part.astype(np.float32))
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
        dids, scores = [], []
        for row, places in zip(scores_QK, places_QK, strict=True):
            found = places >= 0
            names = self.columns["did"].take(pa.array(places[found])).to_pylist()
            names, values = best_first(names, row[found], k)
            dids.append(names)
            scores.append(values)
        return Ranking(dids, scores)


def _lists(dim: int, rows: int) -> Any:
    lists = round(2 * math.sqrt(rows))
    coarse = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, FP16, PRODUCT, False)
    index.own_fields = True
    coarse.this.disown()
    return index


def _sample(held: list[np.ndarray], rows: int, wanted: int) -> np.ndarray:
    """About `wanted` vectors drawn from all parts, float32."""
    random = np.random.default_rng(SEED)
    share = min(1.0, wanted / rows)
    return np.concatenate([part[random.random(len(part)) < share] for part in held]).astype(np.float32)
