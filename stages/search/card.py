"""What `retriever.json`, the card of an index, says of the models that the index wants.

Queries are the student's, `train`, or `student` in the card of your own corpus. Candidates are the student's as well,
or with `index.candidates=teacher` those of the teacher at one of its layers.
"""

from collections.abc import Mapping
from typing import Any


def candidate_model(card: Mapping[str, Any]) -> dict[str, Any]:
    """`model` is student or teacher; of a teacher also `key`, `attempt`, `uri`, `identity`, `layer`, `mean`, and
    `turned`: whether they are turned by the rotation that `train` holds.

    A card from before there was a choice, and that of your own corpus, says nothing: both have the student's.
    """
    return dict(card.get("candidates", {"model": "student"}))


def holds_teacher(card: Mapping[str, Any]) -> bool:
    """Whether the candidates' vectors are the teacher's."""
    return bool(candidate_model(card)["model"] == "teacher")
