"""What came of a source: counts, pools, rejects, and when it refuses to go on."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import StageError
from stages.data.schemas import SPLITS

if TYPE_CHECKING:
    from ray.data import Dataset

QUERY_COLUMNS = ["split", "dataset", "task_id", "modality", "target_modality", "reason"]
CANDIDATE_COLUMNS = ["dataset_id", "modality", "reason"]
REASONS_SHOWN = 3
SAMPLE = 1000


@dataclass(frozen=True)
class Counts:
    """Tallies of the validated rows (`validate.merge_tallies`), and what else there is to count."""

    queries: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    images: int
    rejected_images: int
    pools: dict[str, int]

    def stats(self) -> dict[str, Any]:
        """The content of stats.json."""
        kept_queries, kept_candidates = _kept(self.queries), _kept(self.candidates)
        return {
            "queries": {
                "kept": _count(kept_queries),
                "by_split": {split: _count(kept_queries, split=split) for split in SPLITS},
                "by_task": {split: _by_task(kept_queries, split) for split in SPLITS},
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

    def tasks(self) -> list[tuple[str, str, str]]:
        """(data set, query modality, target modality) of all kept queries."""
        return sorted({(row["dataset"], row["modality"], row["target_modality"]) for row in _kept(self.queries)})

    def share(self) -> float:
        """Rejected queries and candidates of all; 0 for a source without rows."""
        rejected, every = _count(_rejected(self._rows())), _count(self._rows())
        return rejected / every if every else 0.0

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

    def line(self) -> str:
        """One line for a person."""
        numbers, rejects = self.numbers(), self.rejects()
        kept = f"{numbers['queries']} queries and {numbers['candidates']} candidates kept"
        return f"{kept}, {rejects['queries']} and {rejects['candidates']} rejected ({self._reasons()})"

    def refuse(self, limit: float, rejects: "Dataset", work: Path) -> None:
        """Raises StageError where more than `limit` of the rows are bad, or a split has no query left.

        Rejected rows are then shown by a sample in `work`, because the artifact will not be committed.
        """
        kept = _kept(self.queries)
        empty = [split for split in SPLITS if not _count(kept, split=split)]
        if self.share() <= limit and not empty:
            return
        path = work / "rejects.json"
        path.write_text(json.dumps(rejects.take(SAMPLE), indent=1, ensure_ascii=False))
        seen = f"{self._reasons()}; rows and reasons in {path}"
        if self.share() > limit:
            rejected, every = _count(_rejected(self._rows())), _count(self._rows())
            share = (
                f"{rejected} of {every} rows ({self.share():.1%}) are bad, data.max_reject_share={limit} allows less"
            )
            raise StageError(f"{share}: {seen}; correct the rows or raise data.max_reject_share")
        raise StageError(f"no usable query in {', '.join(empty)}: {seen}; every split needs at least one")

    def _rows(self) -> list[dict[str, Any]]:
        return [*self.candidates, *self.queries]

    def _reasons(self) -> str:
        """The most frequent reasons, each with an example: 'missing image 12 (query/train/x.jsonl:17)'."""
        rejected = _rejected(self._rows())
        examples = {row["reason"]: row["source"] for row in reversed(rejected)}
        counts = Counter(_counter(rejected, "reason")).most_common(REASONS_SHOWN)
        return (
            ", ".join(f"{reason} {count} ({examples[reason]})" for reason, count in counts) or "nothing was rejected"
        )


def rejects_line(rejects: Mapping[str, Any]) -> str:
    """One line for a person about `Counts.rejects`: how many of what, and the most frequent reasons."""
    counts = [f"{rejects[kind]:,} {kind}" for kind in ("queries", "candidates", "images") if rejects.get(kind)]
    if not counts:
        return "none"
    reasons = Counter(rejects.get("by_reason", {}))
    shown = [f"{reason} {count:,}" for reason, count in reasons.most_common(REASONS_SHOWN)]
    shown += [f"{len(reasons) - REASONS_SHOWN} more reasons"] if len(reasons) > REASONS_SHOWN else []
    return ", ".join(counts) + (f" ({', '.join(shown)})" if shown else "")


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
