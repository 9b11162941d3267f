"""The columns of an index, and its column `vector` as a matrix and back."""

from typing import TypeVar

import numpy as np
import pyarrow as pa

COLUMNS = ("did", "modality", "pools", "vector")
"""What a search reads, if a filter asks for no more."""
Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


def vectors(rows: pa.Table | pa.RecordBatch) -> np.ndarray:
    """The fixed_size_list column `vector` as a matrix of its stored type, [N, D]."""
    column = rows.column("vector")
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)


def with_vectors(rows: Rows, vectors_ND: np.ndarray) -> Rows:
    """The table (or record batch) with another matrix [N, D] in its column `vector`, of the matrix's type."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1])
    place = rows.schema.get_field_index("vector")
    columns = [values if at == place else rows.column(at) for at in range(rows.num_columns)]
    return type(rows).from_arrays(columns, names=rows.schema.names)
