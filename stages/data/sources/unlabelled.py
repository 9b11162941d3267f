"""A corpus without labels: texts, pictures or both, for distillation to learn from.

Each record is a pair of the query and the candidate that it is itself. So it goes the way of pairs from here on: the
same checks, the same batches, and InfoNCE of a text on itself (SimCSE, Gao et al. 2021, arXiv 2104.08821) where the
contrastive loss has a weight. All rows are of the train split; ids and other columns are of no use and are ignored.
"""

from typing import Any

from stages.data.sources.records import check_cells, content_of

TASK = "corpus"
"""The data set and task of all rows."""


def as_pair(fields: dict[str, Any]) -> dict[str, Any]:
    """A record with `text`, `image` or both, as a pair has it. Raises BadField."""
    content_of(fields, "the row")
    check_cells(fields)
    content = {name: fields.get(name) for name in ("text", "image")}
    return {"query": content, "positives": [content], "split": "train", "task": TASK}
