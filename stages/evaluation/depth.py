"""The depth curve: hit@5 on a validation sample, read out after each decoder layer, beside what that many layers cost.

Shapes: Q queries, C candidates, K layers, D values of a state.

Every query searches among the sampled candidates of its target's modality. The pool is smaller than the full one, so
the numbers compare depths with each other, not with published results.
"""

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
        {"layers": [{"layers": k, "hit@5": mean, "sets": {set: hit@5}}], "queries", "candidates", "chance hit@5"}.
    """
    query_QKD, candidate_CKD = _unit_states(queries, dim), _unit_states(candidates, dim)
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
        scores_QC = np.where(allowed_QC, query_QKD[:, depth] @ candidate_CKD[:, depth].T, -np.inf)
        top_Q5 = np.argsort(-scores_QC, axis=1, kind="stable")[:, :5]
        sets = _mean_by(names, np.take_along_axis(relevant_QC, top_Q5, axis=1).any(axis=1))
        entries.append({"layers": depth + 1, "hit@5": _mean(sets), "sets": sets})
    return {
        "layers": entries,
        "queries": len(queries),
        "candidates": len(candidates),
        "chance hit@5": _mean(_mean_by(names, chance)),
    }


def best_layer(curve: dict[str, Any]) -> int:
    """The layer, counted from 1, that finds most; of equals the deepest. The last one is made to predict words."""
    return max((entry["hit@5"], entry["layers"]) for entry in curve["layers"])[1]


def _truth(queries: pa.Table, candidates: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Bool [Q, C] twice: which candidate is a positive, and which has the target's modality."""
    place = {did: index for index, did in enumerate(candidates["did"].to_pylist())}
    relevant_QC = np.zeros((len(queries), len(candidates)), bool)
    for row, dids in enumerate(queries["positives"].to_pylist()):
        relevant_QC[row, [place[did] for did in dids if did in place]] = True
    modality_C = np.array(candidates["modality"].to_pylist())
    return relevant_QC, np.array(queries["target_modality"].to_pylist())[:, None] == modality_C


def _unit_states(table: pa.Table, dim: int) -> np.ndarray:
    """Unit vectors float32 [N, K, D]."""
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    states_NKD = flat.reshape(len(table), -1, dim)
    return states_NKD / np.maximum(np.linalg.norm(states_NKD, axis=-1, keepdims=True), 1e-12)


def _mean_by(names: list[str], values: Any) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        groups.setdefault(name, []).append(float(value))
    return {name: sum(group) / len(group) for name, group in sorted(groups.items())}


def _mean(sets: dict[str, float]) -> float:
    return sum(sets.values()) / len(sets)
