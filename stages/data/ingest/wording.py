"""What ingest says of a source to people, and when it refuses to go on."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import StageError

if TYPE_CHECKING:
    from ray.data import Dataset

    from stages.data.ingest.outcome import Report

IN_NO_KEY = True  # words, and a check that ends the stage

REASONS_SHOWN = 3
SAMPLE = 1000


def kept_line(report: "Report") -> str:
    """One line for a person."""
    numbers, rejects = report.numbers(), report.rejects()
    kept = f"{numbers['queries']} queries and {numbers['candidates']} candidates kept"
    return f"{kept}, {rejects['queries']} and {rejects['candidates']} rejected ({reasons(report)})"


def refuse(report: "Report", limit: float, rejects: "Dataset", work: Path) -> None:
    """Raises StageError where more than `limit` of the rows are bad, or a split has no query left.

    Rejected rows are then shown by a sample in `work`, because the artifact will not be committed.
    """
    empty = [split for split, count in report.stats()["queries"]["by_split"].items() if not count]
    if report.share() <= limit and not empty:
        return
    path = work / "rejects.json"
    path.write_text(json.dumps(rejects.take(SAMPLE), indent=1, ensure_ascii=False))
    seen = f"{reasons(report)}; rows and reasons in {path}"
    if report.share() > limit:
        numbers = report.numbers()
        rejected = numbers["rejected_queries"] + numbers["rejected_candidates"]
        every = rejected + numbers["queries"] + numbers["candidates"]
        share = f"{rejected} of {every} rows ({report.share():.1%}) are bad, data.max_reject_share={limit} allows less"
        raise StageError(f"{share}: {seen}; mend the rows or raise data.max_reject_share")
    raise StageError(f"no usable query in {', '.join(empty)}: {seen}; every split needs at least one")


def reasons(report: "Report") -> str:
    """The most frequent reasons, each with an example: 'missing image 12 (query/train/x.jsonl:17)'."""
    examples, counts = report.examples(), Counter(report.rejects()["by_reason"]).most_common(REASONS_SHOWN)
    return ", ".join(f"{reason} {count} ({examples[reason]})" for reason, count in counts) or "nothing was rejected"


def rejects_line(rejects: Mapping[str, Any]) -> str:
    """One line for a person about `Report.rejects`: how many of what, and the most frequent reasons."""
    counts = [f"{rejects[kind]:,} {kind}" for kind in ("queries", "candidates", "images") if rejects.get(kind)]
    if not counts:
        return "none"
    by_reason = Counter(rejects.get("by_reason", {}))
    shown = [f"{reason} {count:,}" for reason, count in by_reason.most_common(REASONS_SHOWN)]
    shown += [f"{len(by_reason) - REASONS_SHOWN} more reasons"] if len(by_reason) > REASONS_SHOWN else []
    return ", ".join(counts) + (f" ({', '.join(shown)})" if shown else "")
