"""What became of a source's rows: counts, pools, rejects. What is said of it to people stands in `wording`."""

from dataclasses import dataclass, field
from typing import Any

from stages.data.instructions import Instructions
from stages.data.schemas import SPLITS

QUERY_COLUMNS = ["split", "dataset", "dataset_id", "task_id", "modality", "target_modality", "reason"]
CANDIDATE_COLUMNS = ["dataset_id", "modality", "reason"]
DUPLICATE = "duplicate id"
"""Why a query is rejected whose qid its split has already."""


@dataclass(frozen=True)
class Counts:
    """Tallies of the validated rows (`validate.merge_tallies`), and what else there is to count."""

    queries: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    images: int
    rejected_images: int
    pools: dict[str, int]
    instructions: list[dict[str, Any]] = field(default_factory=list)
    """Of the source, in the columns of schemas.INSTRUCTIONS."""

    def stats(self) -> dict[str, Any]:
        """The content of stats.json."""
        kept_queries, kept_candidates = _kept(self.queries), _kept(self.candidates)
        return {
            "queries": {
                "kept": _count(kept_queries),
                "by_split": {split: _count(kept_queries, split=split) for split in SPLITS},
                "by_task": {split: _by_task(kept_queries, split) for split in SPLITS},
                "rejected_by_task": {split: self.rejected_by_task(split) for split in SPLITS},
                "without_instruction": self.without_instruction(),
                "dangling_ids_dropped": sum(row["dangling"] for row in kept_queries),
            },
            "candidates": {"kept": _count(kept_candidates), "by_modality": _counter(kept_candidates, "modality")},
            "images": {"kept": self.images},
            "pools": self.pools,
            "rejects": self.rejects(),
            "share": self.share(),
        }

    def rejects(self) -> dict[str, Any]:
        """Rejected rows; `by_reason` counts queries and candidates, not the pictures that some of them failed by."""
        queries, candidates = _rejected(self.queries), _rejected(self.candidates)
        return {
            "candidates": _count(candidates),
            "queries": _count(queries),
            "images": self.rejected_images,
            "by_reason": _counter([*queries, *candidates], "reason"),
        }

    def rejected_by_task(self, split: str) -> dict[str, int]:
        """{"grocery_task3": 2}: rejected queries whose set is known; a second row of one qid is no query more."""
        found: dict[str, int] = {}
        for row in _rejected(self.queries):
            known = row["dataset"] is not None and row["task_id"] is not None
            if row["split"] == split and known and row["reason"] != DUPLICATE:
                name = f"{row['dataset']}_task{row['task_id']}"
                found[name] = found.get(name, 0) + row["count"]
        return dict(sorted(found.items()))

    def without_instruction(self) -> dict[str, int]:
        """{"grocery text→image": 20}: kept queries for which the source has no wording; they are asked bare."""
        instructions, found = Instructions(self.instructions), {}
        for row in _kept(self.queries):
            if not instructions.choose(row["dataset_id"], row["modality"], row["target_modality"]):
                name = f"{row['dataset']} {row['modality']}→{row['target_modality']}"
                found[name] = found.get(name, 0) + row["count"]
        return dict(sorted(found.items()))

    def tasks(self) -> list[tuple[str, str, str]]:
        """(data set, query modality, target modality) of all kept queries."""
        return sorted({(row["dataset"], row["modality"], row["target_modality"]) for row in _kept(self.queries)})

    def share(self) -> float:
        """Rejected queries and candidates of all; 0 for a source without rows."""
        rejected, every = _count(_rejected(self._rows())), self.rows()
        return rejected / every if every else 0.0

    def rows(self) -> int:
        """Queries and candidates, kept or rejected."""
        return _count(self._rows())

    def asked(self) -> int:
        """Queries, kept or rejected: of a corpus without labels its rows."""
        return _count(self.queries)

    def numbers(self) -> dict[str, float]:
        """The headline."""
        return {
            "queries": _count(_kept(self.queries)),
            "candidates": _count(_kept(self.candidates)),
            "images": self.images,
            "rejected_queries": _count(_rejected(self.queries)),
            "rejected_candidates": _count(_rejected(self.candidates)),
            "reject_share": self.share(),
        }

    def examples(self) -> dict[str, str]:
        """{reason: where the first row is that was rejected for it}."""
        return {row["reason"]: row["source"] for row in reversed(_rejected(self._rows()))}

    def _rows(self) -> list[dict[str, Any]]:
        return [*self.candidates, *self.queries]


def _kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["reason"] is None]


def _rejected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["reason"] is not None]


def _count(rows: list[dict[str, Any]], **where: Any) -> int:
    return sum(row["count"] for row in rows if all(row[name] == value for name, value in where.items()))


def _counter(rows: list[dict[str, Any]], column: str) -> dict[str, int]:
    return {value: _count(rows, **{column: value}) for value in sorted({row[column] for row in rows})}


def _by_task(rows: list[dict[str, Any]], split: str) -> dict[str, dict[str, Any]]:
    """{"grocery_task3": {"queries": 12, "modality": "image→text"}}; a task's rows share their modalities."""
    tasks: dict[str, dict[str, Any]] = {}
    for row in sorted(
        (row for row in rows if row["split"] == split), key=lambda row: (row["dataset"], row["task_id"])
    ):
        label = f"{row['modality']}→{row['target_modality']}"
        task = tasks.setdefault(f"{row['dataset']}_task{row['task_id']}", {"queries": 0, "modality": label})
        task["queries"] += row["count"]
    return tasks
