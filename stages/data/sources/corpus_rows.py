"""One record of a user's own corpus → one candidate with its metadata, or the reason why not."""

import json
from typing import Any

import pyarrow as pa

from stages.data.metadata import RAW
from stages.data.schemas import RAW_QUERIES
from stages.data.sources.chunks import FileChunk, lines, position
from stages.data.sources.columns import FILE_NAME
from stages.data.sources.fields import BadField
from stages.data.sources.records import Records, check_cells, content_of, id_of, is_row, source_line

NO_QUERIES = RAW_QUERIES.empty_table()
POOL = "corpus"


def read_rows(records: Records, number: int, chunk: FileChunk) -> pa.Table:
    """All rows of chunk `number` in RAW; bad ones have a reason and what is known."""
    rows = []
    for line_number, line in lines(records.root, chunk):
        row: dict[str, Any] = {"position": position(number, line_number - chunk.first_line), "pool": POOL}
        source = f"{records.name(chunk.source)}:{source_line(line, line_number)}"
        try:
            fields = records.read(chunk.source, line)
            row["did"] = id_of(fields, "a row") or source
            row |= {**candidate(fields), "cells": is_row(line)}
        except BadField as error:
            row |= {"reason": error.reason, "detail": error.detail}
        rows.append(row | {"source": source})
    return pa.Table.from_pylist(rows, RAW)


def candidate(fields: dict[str, Any]) -> dict[str, Any]:
    """The columns of a record; a picture of a row without an id is named in the metadata. Raises BadField."""
    kind, text, image = content_of(fields, "the row")
    check_cells(fields)
    nested = fields.get("metadata")
    flat = {name: value for name, value in fields.items() if name not in ("id", "text", "image", "metadata")}
    named = {FILE_NAME: image} if image and id_of(fields, "a row") is None else {}
    both = named | flat | (nested if isinstance(nested, dict) else {})
    metadata = {name: value for name, value in both.items() if value is not None}
    written = json.dumps(metadata, ensure_ascii=False) if metadata else None
    return {"dataset_id": 0, "modality": kind, "text": text, "image_path": image, "metadata": written}
