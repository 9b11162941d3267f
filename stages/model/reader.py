"""Stored rows become the encoder's rows: instruction joined to the text, image bytes looked up by id."""

from typing import Any, Literal

from stages.contract.context import Artifact
from stages.data.instructions import Instructions, with_instruction
from stages.data.tables import MappedTable
from stages.model.rows import Row

Side = Literal["query", "candidate"]


class RowReader:
    """Reads rows of an ingest artifact. Queries get the first instruction of their task, candidates get none."""

    def __init__(self, ingest: Artifact, side: Side) -> None:
        self.images = MappedTable.open(ingest, "images", "image_id")
        self.instructions = Instructions.load(ingest) if side == "query" else None

    def read(self, row: dict[str, Any]) -> Row:
        """The encoder's row for one stored row."""
        text, image = row["text"], row["image_id"]
        if self.instructions is not None:
            wording = self.instructions.choose(row["dataset_id"], row["modality"], row["target_modality"], pick=0)
            text = with_instruction(wording, text)
        return Row(text, self.images.row(self.images.find(image))["bytes"] if image is not None else None)
