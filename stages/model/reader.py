"""Stored rows become the encoder's rows: a query's instruction chosen, image bytes looked up by id."""

from typing import TYPE_CHECKING, Any, Literal

from stages.contract.context import Artifact
from stages.data.instructions import Instructions, before_text
from stages.data.tables import MappedTable
from stages.model.rows import Row

if TYPE_CHECKING:
    import pyarrow as pa

Side = Literal["query", "candidate"]
READ = ("text", "image_id", "dataset_id", "modality", "target_modality")
"""The columns that a row is made of; candidates have only some."""


class RowReader:
    """Reads rows of an ingest artifact. Queries get the first instruction of their task, candidates get none."""

    def __init__(self, ingest: Artifact, side: Side) -> None:
        self.images = MappedTable.open(ingest, "images", "image_id")
        self.instructions = Instructions.load(ingest) if side == "query" else None

    def rows(self, table: "pa.Table") -> list[Row]:
        """The encoder's rows for a table of stored rows."""
        columns = [name for name in READ if name in table.column_names]
        return [self.read(row) for row in table.select(columns).to_pylist()]

    def read(self, row: dict[str, Any]) -> Row:
        """The encoder's row for one stored row."""
        wording, image = None, row["image_id"]
        if self.instructions is not None:
            wording = self.instructions.choose(row["dataset_id"], row["modality"], row["target_modality"], pick=0)
        picture = self.images.row(self.images.find(image))["bytes"] if image is not None else None
        return Row(row["text"], picture, instruction=before_text(wording))
