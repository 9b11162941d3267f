"""Smaller vectors: int8 and binary beside float16, by sentence-transformers' names and to its bits.

    int8     where a value lies, in 256 steps from the least to the largest of its dimension among all candidates
    binary   the signs of the values, eight in a byte

`sentence_transformers.quantize_embeddings` gives the same bytes. The library is none of the core, and wants all
vectors in memory: so its few lines are here, and a test compares the two.

A query is never coded. It is compared with the values that a code stands for, the middle of the step or plus and minus
one: at the same bytes this finds more than to compare codes with codes. The library does so for the best of a first
search ("rescore"); here all candidates are compared at any rate.

Letters in shapes: N rows, D dimensions, B numbers of a code.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from stages.search.columns import COLUMNS, Rows, vectors, with_vectors

FLOAT16, INT8, BINARY = "float16", "int8", "binary"
PRECISIONS = (FLOAT16, INT8, BINARY)
STEPS = 255


@dataclass(frozen=True, eq=False)
class Precision:
    """How the vectors of an index are stored. Picklable."""

    name: str = FLOAT16
    dim: int = 0
    """Values of a vector; 0 where the column tells."""
    ranges_2D: np.ndarray | None = None
    """For int8: the least and the largest value of each dimension, float32."""

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> "Precision":
        """What `retriever.json` says; a card that says nothing has float16."""
        ranges = np.asarray(card["ranges"], np.float32) if "ranges" in card else None
        return cls(card.get("precision", FLOAT16), card["dim"], ranges)

    def describe(self) -> dict[str, Any]:
        """The same for `retriever.json`; nothing of float16."""
        ranges = {} if self.ranges_2D is None else {"ranges": self.ranges_2D.tolist()}
        return {} if self.name == FLOAT16 else {"precision": self.name, **ranges}

    @property
    def nbytes(self) -> int:
        """Bytes of a vector of `dim` values."""
        return {FLOAT16: 2 * self.dim, INT8: self.dim, BINARY: -(-self.dim // 8)}[self.name]

    def encode(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Vectors as they are stored: float16 [N, D], or int8 [N, B]."""
        if self.name == FLOAT16:
            return vectors_ND.astype(np.float16)
        return quantize(vectors_ND, self.name, self.ranges_2D)

    def decode(self, codes_NB: np.ndarray) -> np.ndarray:
        """The values that are compared with queries, float32 [N, D]; those of signs have unit length."""
        if self.name == BINARY:
            bits_ND = np.unpackbits((codes_NB ^ -128).view(np.uint8), axis=1, count=self.dim)
            return (bits_ND.astype(np.float32) - 0.5) * np.float32(2 / np.sqrt(self.dim))
        values_ND = codes_NB.astype(np.float32)
        if self.ranges_2D is not None:
            values_ND += 128.5
            values_ND *= (self.ranges_2D[1] - self.ranges_2D[0]) / STEPS
            values_ND += self.ranges_2D[0]
        return values_ND

    def encoded(self, rows: Rows) -> Rows:
        """A table (or record batch) with its vectors as they are stored."""
        return with_vectors(rows, self.encode(vectors(rows)))

    def decoded(self, rows: Rows) -> Rows:
        """A stored table (or record batch) with vectors that can be compared; float16 stays as it is."""
        return rows if self.name == FLOAT16 else with_vectors(rows, self.decode(vectors(rows)))


AS_STORED = Precision()
"""Vectors of floats, whatever their column holds."""


def quantize(vectors_ND: np.ndarray, precision: str, ranges_2D: np.ndarray | None = None) -> np.ndarray:
    """`sentence_transformers.quantize_embeddings` for int8 and uint8, [N, D], and binary and ubinary, [N, D/8].

    Args:
        vectors_ND: any float type.
        ranges_2D: of `find_ranges`, for int8 and uint8.
    """
    if precision.endswith(BINARY):
        bits_NB = np.packbits(vectors_ND > 0, axis=-1)
        return bits_NB if precision == "ubinary" else (bits_NB ^ 128).view(np.int8)
    assert ranges_2D is not None
    steps_D = (ranges_2D[1] - ranges_2D[0]) / STEPS
    places_ND = np.floor((vectors_ND - ranges_2D[0]) / np.where(steps_D == 0, 1, steps_D))
    codes_ND = np.clip(places_ND, 0, STEPS).astype(np.uint8)
    return codes_ND if precision == "uint8" else (codes_ND ^ 128).view(np.int8)


def find_ranges(parts: Iterable[np.ndarray]) -> np.ndarray:
    """The least and the largest value of each dimension over matrices [N, D], float32 [2, D]."""
    low_D, high_D = np.full(1, np.inf, np.float32), np.full(1, -np.inf, np.float32)  # become as wide as a row
    for part_ND in parts:
        low_D = np.minimum(low_D, part_ND.min(0, initial=np.inf))
        high_D = np.maximum(high_D, part_ND.max(0, initial=-np.inf))
    return np.stack([low_D, high_D])


class Streamed(Protocol):
    """An index whose vectors can be read."""

    def batches(self, columns: Sequence[str] = ...) -> Iterator[pa.RecordBatch]:
        """The stored rows in file order."""


@dataclass(frozen=True)
class Coded:
    """An index of floats as one of another precision would answer. Picklable, as the index is."""

    index: Streamed
    precision: Precision

    def batches(self, columns: Sequence[str] = COLUMNS) -> Iterator[pa.RecordBatch]:
        """The rows in file order."""
        for batch in self.index.batches(columns):
            yield self.precision.decoded(self.precision.encoded(batch)) if "vector" in columns else batch
