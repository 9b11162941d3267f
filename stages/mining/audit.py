"""What was mined, in words: a few queries with the negatives that were chosen and those that were left out."""

from typing import TYPE_CHECKING, Any

from stages.contract.context import Artifact
from stages.data.tables import MappedTable
from stages.evaluation.sets import is_asked

if TYPE_CHECKING:
    from stages.mining.negatives import Mined

IN_NO_KEY = True  # shows what was mined

EXAMPLES, SHOWN = 20, 3  # queries, and candidates of each kind


def examples_of(ingest: Artifact, mined: "Mined") -> str:
    """A few evenly spaced rows of the audit table, with the words that they stand for."""
    table = MappedTable.open(mined, "negatives", "qid")
    queries = MappedTable.open(ingest, "queries", "qid", where={"split": "train"})
    candidates = MappedTable.open(ingest, "candidates", "did")
    wanted = min(EXAMPLES, len(table))
    lines = []
    for place in (place for place in range(len(table)) if is_asked(place, len(table), wanted)):
        row = table.row(place)
        query = queries.row(queries.find(row["qid"]))
        counts = f"{row['copies']} copies and {row['too_close']} too close left out"
        lines += [
            "",
            f"query {_described(query, 'qid')}: {counts}",
            *_listed("positive", query["positives"][:1], [], candidates),
        ]
        lines += [f"  {row['positive_score'] or 0:.3f} the farthest positive, {row['limit'] or 0:.3f} the limit"]
        lines += _listed("negative", row["negatives"], row["scores"], candidates)
        lines += _listed("left out", row["left_out"], row["left_out_scores"], candidates)
    return "\n".join(lines[1:]) + "\n"


def _listed(name: str, dids: list[str], scores: list[float], candidates: MappedTable) -> list[str]:
    """A line for each candidate."""
    rows = [candidates.row(candidates.find(did)) for did in dids[:SHOWN]]
    written = [f"{score:.3f}" for score in scores[:SHOWN]] or ["     "] * len(rows)
    return [f"  {score} {name} {_described(row, 'did')}" for score, row in zip(written, rows, strict=True)]


def _described(row: dict[str, Any], name: str) -> str:
    """An id, the text, and the picture's id."""
    image = f"[picture {row['image_id'][:8]}]" if row["image_id"] else ""
    return " ".join(filter(None, [row[name], " ".join((row["text"] or "").split()), image]))
