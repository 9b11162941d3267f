"""The Lance backend: a table on disk with an IVF_RQ index of one bit a dimension, and filters that apply first.

A search ranks by the codes of the nearest partitions, reads REFINE times as many vectors as are wanted, and compares
those exactly. IVF_PQ needs eight times as long to build for a lower recall (measured on 200,000 × 512). Where a filter
lets few rows through, these are compared without the index: it is faster there, and misses nothing.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import lance
import numpy as np

from stages.contract.params import cores
from stages.search.columns import vectors
from stages.search.exact import ExactIndex
from stages.search.filters import Filter
from stages.search.ranking import Ranking, best_first, check_dimension

REFINE = 10  # vectors that are compared exactly for each wanted one
SELECTIVE = 0.02  # share of rows below which a filter makes the index slower than comparing them all
LEAST_INDEXED = 1024  # fewer rows have no index: k-means would have nothing to learn from
INDEX = "vector_idx"


class LanceIndex:
    """A Lance table at `uri`, at one version or the newest. Picklable: it opens again where it arrives."""

    def __init__(self, uri: str, version: int | None = None) -> None:
        self.uri, self.version = uri, version

    def __reduce__(self) -> tuple[object, ...]:
        return LanceIndex, (self.uri, self.version)

    @classmethod
    def build(cls, uri: str, stored: ExactIndex) -> "LanceIndex":
        """Writes the stored vectors as a table at `uri` and indexes it; memory stays flat while they stream by."""
        columns = stored.columns()
        table = lance.write_dataset(stored.batches(columns), uri, schema=stored.schema(columns))
        rows = table.count_rows()
        if rows >= LEAST_INDEXED:
            # Five bits are the default, and queries by them are slower for nothing that refining does not give.
            table.create_index(
                "vector", "IVF_RQ", name=INDEX, metric="dot", num_partitions=partitions(rows), num_bits=1
            )
        for name in columns:
            if name not in ("did", "vector", "pools"):
                lance.dataset(uri).create_scalar_index(
                    name, "BITMAP" if name in ("modality", "dataset_id") else "BTREE"
                )
        lance.dataset(uri).create_scalar_index("did", "BTREE")
        return cls(uri, lance.dataset(uri).version)

    @cached_property
    def table(self) -> lance.LanceDataset:
        """The opened table."""
        return lance.dataset(self.uri, version=self.version)

    @cached_property
    def dim(self) -> int:
        """Length of a stored vector."""
        return self.table.schema.field("vector").type.list_size

    def search(self, queries_QD: np.ndarray, k: int, *filters: Filter) -> list[Ranking]:
        """See `backends.Index`."""
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        check_dimension(queries_QD, self.dim)
        found = []
        with ThreadPoolExecutor(cores()) as pool:  # one query keeps few of them busy
            for chosen in filters or (Filter(),):
                nearest, condition = self._nearest(chosen.sql(), k)
                answers = list(pool.map(lambda query: self._find(query, k, nearest, condition), queries_QD))  # noqa: B023
                found.append(Ranking([dids for dids, _ in answers], [scores for _, scores in answers]))
        return found

    def _nearest(self, condition: str, k: int) -> tuple[dict[str, Any], str]:
        """How to search under a condition."""
        rows = self.rows
        share = self.table.count_rows(condition) / max(1, rows) if condition else 1.0
        whole = {"column": "vector", "k": k, "metric": "dot"}
        if share < SELECTIVE or rows < LEAST_INDEXED:
            return {**whole, "use_index": False}, condition
        count = partitions(rows)
        probes = min(count, math.ceil(max(16, count / 8) / math.sqrt(share)))
        return {**whole, "minimum_nprobes": probes, "maximum_nprobes": count, "refine_factor": REFINE}, condition

    @cached_property
    def rows(self) -> int:
        """Rows of the opened version."""
        return self.table.count_rows()

    def _find(
        self, query_D: np.ndarray, k: int, nearest: dict[str, Any], condition: str
    ) -> tuple[list[str], list[float]]:
        table = self.table.to_table(
            columns=["did", "vector", "_distance"],
            nearest={**nearest, "q": query_D},
            filter=condition or None,
            prefilter=True,
        )
        if not table.num_rows:
            return [], []
        return best_first(table["did"].to_pylist(), vectors(table).astype(np.float32) @ query_D, k)


def partitions(rows: int) -> int:
    """Lists of the index: about as many as give each the square root of twice the rows."""
    return max(1, min(rows // 64, round(math.sqrt(rows / 2))))
