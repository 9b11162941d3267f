"""Which index answers a search: exact, lance or faiss behind one method; which for how many is told by `choice`.

    exact   compares all vectors, streamed from disk or held in memory; every reported number comes from it
    lance   approximate, on disk: 1-bit codes pick what is compared exactly; filters
    faiss   approximate, in memory: a replica for many queries a second, made from the stored vectors when opened

The Parquet files below `embeddings/` of an index artifact stay the truth; the others are made from them. Both
approximate backends compare what they pick by the stored vectors, so a score is the same everywhere.
"""

import shutil
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from stages.contract.context import Artifact, Attempt, InputError
from stages.search.choice import MODULES, choose
from stages.search.exact import ExactIndex
from stages.search.filters import Filter
from stages.search.precision import Precision
from stages.search.ranking import Ranking

FORMAT = 1
"""Of retriever.json and the embeddings beside it."""


class Index(Protocol):
    """Vectors that can be searched."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def search(self, queries_QD: np.ndarray, k: int, *filters: Filter) -> list[Ranking]:
        """The k best candidates of each query, float32 [Q, D], once for each filter; best first, then rising id."""


def build(output: Attempt, backend: str, files: Sequence[str]) -> dict[str, Any]:
    """Makes from the stored vectors in `files` what the backend keeps beside them; what its card adds."""
    if backend != "lance":
        return {"backend": backend}
    from stages.search.lance_index import LanceIndex

    # Built here and then copied: the copy is immutable like every file of an artifact, wherever the store is.
    place = output.work / "lance"
    shutil.rmtree(place, ignore_errors=True)  # a killed attempt's
    index = LanceIndex.build(str(place), ExactIndex(tuple(files), output.filesystem))
    output.upload(place, "lance")
    return {"backend": backend, "lance_version": index.version}


def read_card(index: Artifact) -> dict[str, Any]:
    """`retriever.json` of an index. Raises InputError where the artifact is none, or of another format."""
    if index.stage != "index":
        raise InputError(f"{index.uri} is an artifact of {index.stage}, not an index; give one of stage index")
    card = index.read_json("retriever.json")
    if card.get("format") != FORMAT:
        raise InputError(f"the index {index.uri} is of format {card.get('format')}, not {FORMAT}; make it again")
    return card


def open_index(index: Artifact, card: dict[str, Any], backend: str = "") -> Index:
    """The index of an artifact by the backend that its card names, or by another that can be made from it.

    Raises:
        InputError: the backend is unknown, not installed, or was not built.
    """
    wanted = backend or card["backend"]
    if wanted not in ("exact", *MODULES):
        raise InputError(f"there is no index backend '{wanted}'; choose one of: exact {' '.join(MODULES)}")
    precision = Precision.of(card)
    choose(wanted, card["rows"], precision=precision.name)
    exact = ExactIndex.open(index, precision)
    if wanted == "exact":
        return exact.ready()
    if wanted == "faiss":
        from stages.search.faiss_index import FaissIndex

        return FaissIndex.of(exact.batches(exact.columns()), card["rows"], precision)
    if card["backend"] != "lance":
        raise InputError(f"the index {index.uri} has no lance table; make it with index.backend=lance")
    from stages.search.lance_index import LanceIndex

    return LanceIndex(str(index.local("lance")), card["lance_version"])
