"""The depth curve: hit@5 on a validation sample, read out after each decoder layer, beside what that many layers cost.

Shapes: Q queries, C candidates, K layers, D values of a state.

The same is told for states with their mean taken off: those of a language model have one direction in common, which
hides what tells them apart (anisotropy: Ethayarajh 2019, arXiv 1909.00512; all-but-the-top: Mu and Viswanath 2018,
arXiv 1702.01417). Queries and candidates lose one mean together, in which both sides weigh the same: so an
input has one vector, whichever side it stands on.

Every query searches among the sampled candidates of its target's modality. The pool is smaller than the full one, so
the numbers compare depths with each other, not with published results.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stages.contract.context import Artifact
from stages.data.schemas import CANDIDATES, QUERIES
from stages.data.tables import MappedTable
from stages.evaluation.chance import chance_of_hit

POSITIVES = 5
"""Positives of a query that enter the sample: popular products have dozens, and a sample must stay one."""


def validation_sample(ingest: Artifact, queries_per_set: int, most_candidates: int) -> tuple[pa.Table, pa.Table]:
    """Evenly spaced validation queries of each evaluation set, and candidates that hold their positives.

    Both tables are empty where there is no validation query, as in data without labels.

    Args:
        ingest: the ingest artifact.
        queries_per_set: queries of each set, at most.
        most_candidates: filled up with evenly spaced others to this number; positives always belong.
    """
    queries = MappedTable.open(ingest, "queries", "qid", where={"split": "val"})
    if not len(queries):
        return QUERIES.empty_table(), CANDIDATES.empty_table()
    rows = [queries.row(index) for index in _spread_by_set(queries, queries_per_set)]
    candidates = MappedTable.open(ingest, "candidates", "did", where={"pools": "union_val"})
    if not len(candidates):
        candidates = MappedTable.open(ingest, "candidates", "did")
    wanted = {did for row in rows for did in row["positives"][:POSITIVES]}
    places = {candidates.find(did) for did in wanted if did in candidates}
    others = [place for place in evenly(len(candidates), most_candidates) if place not in places]
    places |= set(others[: max(0, most_candidates - len(places))])
    found = [candidates.row(place) for place in sorted(places)]
    return pa.Table.from_pylist(rows, QUERIES), pa.Table.from_pylist(found, CANDIDATES)


def _spread_by_set(queries: MappedTable, most: int) -> list[int]:
    names = zip(queries.column("dataset").to_pylist(), queries.column("task_id").to_pylist(), strict=True)
    groups: dict[tuple[str, int], list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return [group[place] for group in groups.values() for place in evenly(len(group), most)]


def evenly(size: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 … size - 1, evenly spaced."""
    return np.linspace(0, size - 1, min(size, most)).astype(int).tolist() if size else []


def curve_of(queries: pa.Table, candidates: pa.Table, dim: int) -> dict[str, Any]:
    """Mean over evaluation sets of hit@5 for each depth.

    Args:
        queries: sampled queries with the states of all layers, one after the other, in `vector`.
        candidates: sampled candidates, likewise.
        dim: D, length of one state.

    Returns:
        {"layers": [{"layers": k, "hit@5": mean, "hit@5 centred": mean, "sets": {set: hit@5}}], "queries",
        "candidates", "chance hit@5"}.
    """
    query_QKD, candidate_CKD = _states(queries, dim), _states(candidates, dim)
    names = [
        f"{dataset}_task{task}"
        for dataset, task in zip(queries["dataset"].to_pylist(), queries["task_id"].to_pylist(), strict=True)
    ]
    relevant_QC, allowed_QC = _truth(queries, candidates)
    chance = [
        chance_of_hit(int(allowed.sum()), int((relevant & allowed).sum()), 5)
        for relevant, allowed in zip(relevant_QC, allowed_QC, strict=True)
    ]
    entries = []
    for depth in range(query_QKD.shape[1]):
        query_QD, candidate_CD = query_QKD[:, depth], candidate_CKD[:, depth]
        mean_D = mean_of_sides([query_QD.mean(axis=0), candidate_CD.mean(axis=0)])
        raw, centred = (
            _mean_by(names, _finds(query_QD - off, candidate_CD - off, relevant_QC, allowed_QC)) for off in (0, mean_D)
        )
        entries.append(
            {"layers": depth + 1, "hit@5": _mean(raw), "hit@5 centred": _mean(centred), "sets": raw},
        )
    return {
        "layers": entries,
        "queries": len(queries),
        "candidates": len(candidates),
        "chance hit@5": _mean(_mean_by(names, chance)),
    }


def mean_of_sides(means: Sequence[np.ndarray]) -> np.ndarray:
    """The one mean that all states lose: of the sides' means, however many rows each side has."""
    return np.mean(np.stack(means), axis=0)


def best_layer(curve: dict[str, Any], centre: bool | str = "auto") -> tuple[int, bool]:
    """The layer, counted from 1, that finds most, and whether without its mean; of equals as it is, and the deepest.

    The last layer is made to predict words.

    Args:
        centre: whether the mean is taken off; `auto` tries both.
    """
    ways = [False, True] if centre == "auto" else [bool(centre)]
    _, raw, layer = max(
        (entry["hit@5 centred" if off else "hit@5"], not off, entry["layers"])
        for entry in curve["layers"]
        for off in ways
    )
    return layer, not raw


def _finds(
    query_QD: np.ndarray, candidate_CD: np.ndarray, relevant_QC: np.ndarray, allowed_QC: np.ndarray
) -> np.ndarray:
    """Bool [Q]: whether a query has a positive among the five allowed candidates of the largest cosines."""
    scores_QC = np.where(allowed_QC, _units(query_QD) @ _units(candidate_CD).T, -np.inf)
    top_Q5 = np.argsort(-scores_QC, axis=1, kind="stable")[:, :5]
    return np.take_along_axis(relevant_QC, top_Q5, axis=1).any(axis=1)


def _truth(queries: pa.Table, candidates: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Bool [Q, C] twice: which candidate is a positive, and which has the target's modality."""
    place = {did: index for index, did in enumerate(candidates["did"].to_pylist())}
    relevant_QC = np.zeros((len(queries), len(candidates)), bool)
    for row, dids in enumerate(queries["positives"].to_pylist()):
        relevant_QC[row, [place[did] for did in dids if did in place]] = True
    modality_C = np.array(candidates["modality"].to_pylist())
    return relevant_QC, np.array(queries["target_modality"].to_pylist())[:, None] == modality_C


def _states(table: pa.Table, dim: int) -> np.ndarray:
    """States float32 [N, K, D]."""
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(table), -1, dim)


def _units(states_ND: np.ndarray) -> np.ndarray:
    return states_ND / np.maximum(np.linalg.norm(states_ND, axis=-1, keepdims=True), 1e-12)


def _mean_by(names: list[str], values: Any) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        groups.setdefault(name, []).append(float(value))
    return {name: sum(group) / len(group) for name, group in sorted(groups.items())}


def _mean(sets: dict[str, float]) -> float:
    return sum(sets.values()) / len(sets)
