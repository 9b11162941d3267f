"""What ingest says of a source to people, and when it refuses to go on."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract.context import StageError
from stages.data.sources.fields import NO_UTF8

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from stages.data.ingest.outcome import Counts
    from stages.ingest import Params

IN_NO_KEY = True  # words, and a check that ends the stage

REASONS_SHOWN = 3
PICTURES_SHOWN = 10
SAMPLE = 1000
FEWEST = 100
"""Rows of a corpus without labels from which on a share of bad ones says something: of 13 photos two may be broken."""


def kept_line(counts: "Counts") -> str:
    """One line for a person."""
    numbers, rejects = counts.numbers(), counts.rejects()
    kept = f"{numbers['queries']} queries and {numbers['candidates']} candidates kept"
    return f"{kept}, {rejects['queries']} and {rejects['candidates']} rejected ({reasons(counts)})"


def refuse(counts: "Counts", data: "Params", rejects: "Dataset", work: Path) -> None:
    """Raises StageError where more rows are bad than the section `data` allows, or a split has no query left.

    Rejected rows are then shown by a sample in `work`, because the artifact will not be committed.
    """
    limit, setting = data.max_reject_share, f"{data.section}.max_reject_share"
    kept = counts.stats()["queries"]["by_split"]
    empty = [split for split in data.splits if not kept[split]]
    stops = too_many(counts.share(), counts.asked(), limit) if data.kind == "corpus" else counts.share() > limit
    if not stops and not empty:
        return
    path = work / "rejects.json"
    path.write_text(json.dumps(rejects.take(SAMPLE), indent=1, ensure_ascii=False))
    mend = "save tables as CSV UTF-8; " if NO_UTF8 in counts.rejects()["by_reason"] else ""
    seen = f"{reasons(counts)}; {mend}rows and reasons in {path}"
    if stops:
        numbers = counts.numbers()
        rejected = numbers["rejected_queries"] + numbers["rejected_candidates"]
        share = f"{rejected} of {counts.rows()} rows ({counts.share():.1%}) are bad, {setting}={limit} allows less"
        raise StageError(f"{share}: {seen}; correct the rows or raise {setting}")
    needed = "every split" if len(data.splits) > 1 else data.splits[0]
    raise StageError(f"no usable query in {', '.join(empty)}: {seen}; {needed} needs at least one")


def too_many(share: float, rows: int, limit: float) -> bool:
    """Whether the share of bad rows of a corpus without labels stops the run: not where rows are few, unless at 0."""
    return share > limit and (rows >= FEWEST or limit == 0)


def reasons(counts: "Counts") -> str:
    """The most frequent reasons, each with an example: 'missing image 12 (query/train/x.jsonl:17)'."""
    examples, most = counts.examples(), Counter(counts.rejects()["by_reason"]).most_common(REASONS_SHOWN)
    return ", ".join(f"{reason} {count} ({examples[reason]})" for reason, count in most) or "nothing was rejected"


def skipped_lines(images: "pa.Table") -> list[str]:
    """A line for each of the first rejected pictures, `REJECTS`, with its reason, and one for the others."""
    rows = images.slice(0, PICTURES_SHOWN).to_pylist()
    lines = [f"skipped {row['source']}: {row['reason']} ({row['detail']})" for row in rows]
    more = images.num_rows - len(rows)
    return [*lines, f"and {more} more, all in rejects/ of the artifact"] if more else lines


def bare_line(queries: Mapping[str, Any]) -> str:
    """One line for a person about the part `queries` of stats.json: how many have no instruction; empty if all do."""
    bare = Counter(queries.get("without_instruction", {}))
    if not bare:
        return ""
    shown = [f"{name} {count:,}" for name, count in bare.most_common(REASONS_SHOWN)]
    shown += [f"{len(bare) - REASONS_SHOWN} more"] if len(bare) > REASONS_SHOWN else []
    return (
        f"{bare.total():,} of {queries['kept']:,} queries have no instruction ({', '.join(shown)}) and are asked"
        " without one; add its line to instructions/query_instructions.tsv"
    )


def rejects_line(rejects: Mapping[str, Any]) -> str:
    """One line for a person about `Counts.rejects`: how many of what, and the most frequent reasons."""
    counts = [f"{rejects[kind]:,} {kind}" for kind in ("queries", "candidates", "images") if rejects.get(kind)]
    if not counts:
        return "none"
    by_reason = Counter(rejects.get("by_reason", {}))
    shown = [f"{reason} {count:,}" for reason, count in by_reason.most_common(REASONS_SHOWN)]
    shown += [f"{len(by_reason) - REASONS_SHOWN} more reasons"] if len(by_reason) > REASONS_SHOWN else []
    return ", ".join(counts) + (f" ({', '.join(shown)})" if shown else "")
