"""Vectors by their first values alone: what a Matryoshka student's shorter vectors find.

Cutting is a view of what is stored: the same Parquet, the same exact search, fewer values, unit length again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.search.columns import COLUMNS, Rows, vectors, with_vectors
from stages.search.exact import ExactIndex


def trained_dimensions(model: Path) -> list[int]:
    """The numbers of leading values that a model directory was trained to be read by, ascending; often none."""
    return json.loads((model / "config.json").read_text()).get("matryoshka_dimensions", [])


def shorten(table: Rows, dim: int) -> Rows:
    """A table (or record batch) whose column `vector` holds the first `dim` values, at unit length, as float32."""
    rows_ND = vectors(table)[:, :dim].astype(np.float32)
    rows_ND /= np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)
    return with_vectors(table, rows_ND)


@dataclass(frozen=True)
class Leading:
    """An index of which the first `dim` values of each vector are read. Picklable, as the index is."""

    index: ExactIndex
    dim: int

    def batches(self, columns: Sequence[str] = COLUMNS) -> Iterator[pa.RecordBatch]:
        """The stored rows in file order."""
        for batch in self.index.batches(columns):
            yield shorten(batch, self.dim) if "vector" in columns else batch
