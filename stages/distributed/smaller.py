"""The vectors of an index in a smaller precision: models write float16, of which int8 and binary are made.

The ranges of int8 are those of all candidates, so nothing can be coded before the last one is embedded. Until then the
vectors lie below FLOATS, where a killed run finds them again. Then each file is read, coded and written by itself.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.contract.context import Attempt
from stages.distributed.pools import EMBEDDINGS, written
from stages.distributed.shards import write_file
from stages.search.columns import vectors
from stages.search.precision import FLOAT16, INT8, Precision, find_ranges

FLOATS = "float16"
"""Where models write, in place of EMBEDDINGS; gone when the artifact is whole."""


def store(
    output: Attempt, name: str, rows: int, embed: Callable[[str], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Has `rows` vectors embedded and keeps them in `embeddings/` in a precision.

    Args:
        name: of the precision.
        embed: writes the vectors below the prefix that it is given, as float16; see `pools.written`.

    Returns:
        What `embed` gave, with files, bytes and dim of `embeddings/`; and what `retriever.json` says of the precision.
    """
    if name == FLOAT16:
        return embed(EMBEDDINGS), {}
    floats = embed(FLOATS)
    precision = Precision(name, floats["dim"], _ranges(floats["files"], output) if name == INT8 else None)
    for path in floats["files"]:
        table = precision.encoded(pq.read_table(path, filesystem=output.filesystem))
        write_file(table, output, f"{EMBEDDINGS}/{PurePosixPath(path).name}")
    output.filesystem.delete_dir(f"{output.base}/{FLOATS}")
    return {**floats, **written(output, EMBEDDINGS, rows), "dim": precision.dim}, precision.describe()


def _ranges(paths: Sequence[str], output: Attempt) -> np.ndarray:
    read = partial(pq.read_table, columns=["vector"], filesystem=output.filesystem)
    return find_ranges(vectors(read(path)) for path in paths)
