"""What a search gives, and what it asks of its queries; the same for every backend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.contract.context import InputError


@dataclass(frozen=True)
class Ranking:
    """Per query the found ids, best first, and their scores."""

    dids: list[list[str]]
    scores: list[list[float]]


def best_first(dids: Sequence[str], scores: np.ndarray, k: int) -> tuple[list[str], list[float]]:
    """The k best by falling score, then rising id."""
    order = np.lexsort((np.asarray(dids, dtype="U"), -scores))[:k]
    return [dids[place] for place in order], scores[order].tolist()


def check_dimension(queries_QD: np.ndarray, dim: int) -> None:
    """Raises InputError where the queries [Q, D] can't be compared with an index of `dim` numbers."""
    if queries_QD.ndim != 2 or queries_QD.shape[1] != dim:
        raise InputError(
            f"a query of {queries_QD.shape[-1]} numbers meets an index of {dim}: the index is of another student;"
            " index with this student, or search with the one that made the index"
        )
